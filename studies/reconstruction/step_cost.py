"""What a step of `reconstruct` costs, against a float forward and backward pass of the same block.

    python -m studies.reconstruction.step_cost --output studies/reconstruction/step_cost.json

The blocks of a MobileNetV2 with random weights, random images: nothing is downloaded. The float step has the same batch, the
squared error of the same output, and gradients to the kernels and biases of the block; no optimizer. A row has both in
milliseconds (medians, interleaved) and the median of their ratios. Peak memory: of one `reconstruct` of few iterations.
"""

import argparse
import dataclasses
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit.bench.machine import machine
from keras_lowbit.bench.output import write_report
from keras_lowbit.bench.timing import interleaved, on_cores
from keras_lowbit.convert.expansion.expand import expand
from keras_lowbit.convert.post_training.reconstruction.blocks import Block, find_blocks
from keras_lowbit.convert.post_training.reconstruction.trainer import BlockTrainer, Settings, samples_of_an_iteration
from keras_lowbit.convert.post_training.reconstruction.twins import Twins
from keras_lowbit.keras_graph.calls import calls_of, run_calls
from keras_lowbit.tables import table

IMAGES = 16
SETTINGS = Settings(1000, 0.05, 0.5, 30.0, IMAGES, 0)


@dataclasses.dataclass(frozen=True)
class Row:
    """One block. samples: of an iteration.   ratio: median of step over float step."""

    block: str
    samples: int
    step_ms: float
    float_ms: float
    ratio: float


def row(twins: Twins, block: Block, repeats: int) -> Row:
    """Times one block."""
    pair = twins.quantized_block(block)
    rng, count = np.random.default_rng(0), samples_of_an_iteration(pair, SETTINGS, IMAGES)
    shapes = [tuple(twins.float_graph.tensors[key].shape[1:]) for key in (*block.inputs, block.output)]
    arrays = [rng.uniform(0, 1, (count, *shape)).astype("float32") for shape in shapes]
    trainer = BlockTrainer(pair, twins.layers, {path: twins.neighbours[path] for path in block.layers}, SETTINGS)
    trainer.compile(keras.optimizers.Adam(SETTINGS.learning_rate), jit_compile=False)
    runs = [lambda: trainer.train_on_batch([*arrays[:-1], *arrays[:-1]], arrays[-1]), float_step(block, arrays)]
    step, plain = interleaved(runs, repeats, warmup=2)
    medians = [round(float(np.median(times)), 2) for times in (step, plain)]
    return Row(block.name, count, *medians, round(float(np.median(step / plain)), 2))


def float_step(block: Block, arrays: list[np.ndarray]) -> Callable[[], Any]:
    """The squared error of a float block and its gradients."""
    layers = [call.operation for call in block.calls if getattr(call.operation, "trainable_variables", None)]
    weights = [variable.value for layer in layers for variable in layer.trainable_variables]
    inputs, target = [tf.constant(array) for array in arrays[:-1]], tf.constant(arrays[-1])

    @tf.function
    def step() -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            known = dict(zip(block.inputs, inputs, strict=True))
            run_calls(block.calls, [known], keep=[block.output])
            loss = tf.reduce_mean(tf.square(known[block.output] - target))
        return tape.gradient(loss, weights)

    return lambda: step()[0].numpy()


def peak_gigabytes(quantized: keras.Model, base: keras.Model, images: np.ndarray) -> float:
    """Of this process, after a run of few iterations over all blocks; `images` in memory included."""
    klb.reconstruct(quantized, base, images, iterations=3, batch_size=IMAGES, check=False, verbose=0)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def main(arguments: list[str] | None = None) -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--images", type=int, default=64, help="of the run whose memory is measured")
    parsed = parser.parse_args(arguments)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    images = np.random.default_rng(0).uniform(-1, 1, (parsed.images, 224, 224, 3)).astype("float32")
    base = klb.fold_batch_norms(keras.applications.MobileNetV2(weights=None))
    quantized, _ = klb.quantize_model(base, "w4")
    klb.calibrate(quantized, images[:IMAGES], verbose=0)
    twins = Twins(calls_of(quantized, inline=True), calls_of(expand(base).model, inline=True))
    blocks = find_blocks(twins.float_graph, lambda call: call.path in twins.layers)
    with on_cores(1):
        rows = [row(twins, block, parsed.repeats) for block in blocks]
    ratio = round(float(np.exp(np.mean(np.log([found.ratio for found in rows])))), 2)
    titles = ("block", "samples", "step ms", "float ms", "ratio")
    print(table(titles, [tuple(dataclasses.asdict(found).values()) for found in rows]))
    memory = {"images": parsed.images, "peak_gigabytes": peak_gigabytes(quantized, base, images)}
    print(f"geometric mean of the ratios {ratio}; {memory}")
    found = {"machine": machine(), "repeats": parsed.repeats, "threads": 1, "ratio": ratio, "memory": memory}
    write_report(str(parsed.output), found | {"rows": [dataclasses.asdict(each) for each in rows]})


if __name__ == "__main__":
    main()
