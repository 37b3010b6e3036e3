"""Times the compiled ops against TensorFlow's float layers and LiteRT's int8 ones: same shapes, one thread, in turns.

    python -m keras_lowbit.bench.kernels --output kernels.json

Every layer runs on the ternary op (2-bit weights, int8 out), on our int8 op, as TensorFlow's float32 Conv2D or MatMul, and
as an int8 .tflite file on XNNPACK. The last columns set the ternary op beside this machine's ceilings: multiplications
against the fastest int8 product that was measured here, weight bytes against the measured memory bandwidth.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_lowbit.bench.machine import machine
from keras_lowbit.bench.timing import calls_for, interleaved
from keras_lowbit.convert.report import table
from keras_lowbit.deploy import fixed_point as fp
from keras_lowbit.deploy.files import atomic_write


class Shape(NamedTuple):
    """One layer: side of the square image (0: dense), window, input and output channels, stride."""

    network: str
    side: int
    window: int
    inputs: int
    outputs: int
    stride: int = 1

    def __str__(self) -> str:
        if not self.side:
            return f"dense {self.inputs} -> {self.outputs}"
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        return f"{self.side}x{self.side} {self.window}x{self.window} {self.inputs} -> {self.outputs}{stride}"

    @property
    def macs(self) -> int:
        """Multiplications of one image."""
        pixels = (-(-self.side // self.stride)) ** 2 if self.side else 1
        return pixels * self.window**2 * self.inputs * self.outputs


def _stage(side: int, inputs: int, width: int, stride: int) -> list[Shape]:
    """The distinct layers of one stage of ResNet-50: the first block, and what the others repeat."""
    inner, outputs = -(-side // stride), 4 * width
    return [
        Shape("ResNet-50", side, 1, inputs, width, stride),
        Shape("ResNet-50", inner, 3, width, width),
        Shape("ResNet-50", inner, 1, width, outputs),
        Shape("ResNet-50", side, 1, inputs, outputs, stride),
        Shape("ResNet-50", inner, 1, outputs, width),
    ]


RESNET50 = (
    Shape("ResNet-50", 224, 7, 3, 64, 2),
    *_stage(56, 64, 64, 1),
    *_stage(56, 256, 128, 2),
    *_stage(28, 512, 256, 2),
    *_stage(14, 1024, 512, 2),
)
MOBILENET_V2 = tuple(
    Shape("MobileNetV2", side, 1, inputs, outputs)
    for side, inputs, outputs in (
        *((112, 32, 16), (112, 16, 96), (56, 96, 24), (56, 24, 144), (56, 144, 24), (28, 144, 32), (28, 32, 192)),
        *((28, 192, 32), (14, 192, 64), (14, 64, 384), (14, 384, 64), (14, 384, 96), (14, 96, 576), (14, 576, 96)),
        *((7, 576, 160), (7, 160, 960), (7, 960, 160), (7, 960, 320), (7, 320, 1280)),
    )
)
DENSE = tuple(Shape("dense", 0, 1, inputs, 4096) for inputs in (4096, 9216, 25088))
SHAPES = tuple(dict.fromkeys((*RESNET50, *MOBILENET_V2, *DENSE)))
KINDS = ("ternary", "int8", "tf_float32", "litert_int8")


# A call of a tf.function costs about 0.13 ms by itself, more than a small layer: so one call runs this many copies of the
# layer in a chain, and the LiteRT file is invoked as often. Times are of one copy.
COPIES = 16


def runs_of(shape: Shape) -> list[Callable[[], Any]]:
    """Calls of `COPIES` copies of one layer in the order of `KINDS`."""
    rng = np.random.default_rng(0)
    size = (shape.window, shape.window, shape.inputs, shape.outputs)
    ternary = rng.integers(-1, 2, size).astype(np.int8)
    codes = rng.integers(-127, 128, size).astype(np.int8)
    return [own(shape, ternary), own(shape, codes), _float(shape, codes), _litert(shape, codes)]


def _image(shape: Shape) -> tuple[int, ...]:
    return (1, shape.side, shape.side, shape.inputs) if shape.side else (1, shape.inputs)


def _codes(shape: Shape) -> np.ndarray:
    return np.random.default_rng(1).integers(-128, 128, _image(shape)).astype(np.int8)


def _chain(operation: Callable[[Any], Any], x: Any) -> Callable[[], Any]:
    """A traced function that runs an operation `COPIES` times, each after the last."""
    import tensorflow as tf

    @tf.function
    def run(x: Any) -> Any:
        result = operation(x)
        for _ in range(COPIES - 1):
            with tf.control_dependencies([result]):
                result = operation(x)
        return result

    concrete = run.get_concrete_function(x)
    return lambda: concrete(x)


def own(shape: Shape, kernel: np.ndarray) -> Callable[[], Any]:
    """Calls of `COPIES` copies of our layer with that kernel: packed ternary if its codes are, else int8."""
    import tensorflow as tf

    from keras_lowbit import ops
    from keras_lowbit.ops import functions

    pack = ops.pack_kernel if np.abs(kernel).max() <= 1 else ops.pack_int8
    packed = pack(kernel if shape.side else kernel[0, 0])
    arrays = {name: tf.constant(getattr(packed, name)) for name in ("data", "scales", "sums")}
    packed = dataclasses.replace(packed, **arrays)
    factor = fp.quantize_multiplier(np.full(shape.outputs, 1e-3))
    bias, x = tf.zeros(shape.outputs, tf.int32), tf.constant(_codes(shape))
    if not shape.side:
        output = ops.Requantize(factor=np.full(shape.outputs, 1e-3))
        return _chain(lambda x: functions.ternary_dense(x, packed, bias=bias, output=output), x)
    output = ops.Requantize(factor.multiplier, factor.shift)
    return _chain(
        lambda x: functions.clustered_ternary_conv2d(
            x, packed, strides=shape.stride, padding="SAME", bias=bias, output=output
        ),
        x,
    )


def _float(shape: Shape, kernel: np.ndarray) -> Callable[[], Any]:
    import tensorflow as tf

    x = tf.constant(_codes(shape), tf.float32)
    weights = tf.constant((kernel if shape.side else kernel[0, 0]).astype(np.float32))
    if shape.side:
        return _chain(lambda x: tf.nn.conv2d(x, weights, shape.stride, "SAME"), x)
    return _chain(lambda x: tf.matmul(x, weights), x)


def _litert(shape: Shape, kernel: np.ndarray) -> Callable[[], Any]:
    from keras_lowbit.deploy import litert
    from keras_lowbit.deploy.build import GraphBuilder, Range
    from keras_lowbit.deploy.run_file import make_interpreter

    builder, grid = GraphBuilder(), Range(0.05, 0)
    scales, bias = np.full(shape.outputs, 0.01, np.float32), np.zeros(shape.outputs, np.int32)
    x = builder.input("x", _image(shape)[1:], range=grid)
    if shape.side:
        y = builder.conv2d(x, kernel, scales, bias, Range(0.5, 0), "y", (shape.stride, shape.stride), "same")
    else:
        y = builder.fully_connected(x, kernel[0, 0], scales, bias, Range(0.5, 0), "y")
    content = litert.to_bytes(builder.build([y]), weights="int8")[0]
    interpreter = make_interpreter("xnnpack", 1, model_content=content)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], _codes(shape))

    def run() -> None:
        for _ in range(COPIES):
            interpreter.invoke()

    return run


def bandwidth_gbs(megabytes: int = 256) -> float:
    """GB/s of reading memory on one thread: a float64 sum of an array larger than the caches, the best of five."""
    import time

    data, best = np.ones(megabytes << 17), 0.0
    for _ in range(5):
        start = time.perf_counter()
        data.sum()
        best = max(best, data.nbytes / (time.perf_counter() - start) / 1e9)
    return best


def measure(shapes: Sequence[Shape] = SHAPES, repeats: int = 20, milliseconds: float = 5.0) -> dict[str, Any]:
    """All figures of these layers; times are medians in milliseconds, with the 10th and 90th percentile of each ratio."""
    import tensorflow as tf

    from keras_lowbit import ops

    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": True}
    )  # it would merge equal copies into one
    rows = []
    for shape in shapes:
        runs = runs_of(shape)
        inner = [calls_for(run, milliseconds) for run in runs]
        times = interleaved(runs, repeats, 2, inner)
        row: dict[str, Any] = {**shape._asdict(), "macs": shape.macs}
        for kind, samples in zip(KINDS, times, strict=True):
            row[f"{kind}_ms"] = round(float(np.median(samples)) / COPIES, 5)
            if kind != "ternary":
                low, middle, high = np.percentile(samples / times[0], [10, 50, 90])
                row[f"times_{kind}"] = [round(float(v), 3) for v in (middle, low, high)]
        row["ternary_gmacs"] = round(shape.macs / row["ternary_ms"] / 1e6, 2)
        row["ternary_weight_gbs"] = round(
            shape.window**2 * shape.inputs * shape.outputs / 4 / row["ternary_ms"] / 1e6, 2
        )
        rows.append(row)
    peak = max(row["macs"] / row[f"{kind}_ms"] / 1e6 for row in rows for kind in ("ternary", "int8", "litert_int8"))
    about = {**machine(), "tensorflow": tf.__version__, "kernel": ops.active_kernel(), "threads": 1, "repeats": repeats}
    about |= {"peak_gmacs": round(peak, 1), "bandwidth_gbs": round(bandwidth_gbs(), 1)}
    return {"machine": about, "rows": rows, "means": means(rows)}


def means(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Geometric mean of each ratio over each network: how many times as fast the ternary op is."""
    found: dict[str, dict[str, float]] = {}
    for network in dict.fromkeys(row["network"] for row in rows):
        for kind in KINDS[1:]:
            ratios = [row[f"times_{kind}"][0] for row in rows if row["network"] == network]
            found.setdefault(network, {})[kind] = round(float(np.exp(np.mean(np.log(ratios)))), 3)
    return found


def markdown(report: dict[str, Any]) -> str:
    """The README's table: geometric means by network, and the machine."""
    about = report["machine"]
    heads = "| layers | x TensorFlow float32 | x LiteRT int8 | x our int8 |\n|---|---|---|---|"
    lines = [
        f"| {network} | {found['tf_float32']:.2f} | {found['litert_int8']:.2f} | {found['int8']:.2f} |"
        for network, found in report["means"].items()
    ]
    conditions = (
        f"{about['cpu']}, {about['cores']} cores, one thread, row {about['kernel']}, TensorFlow {about['tensorflow']}, "
        f"ai-edge-litert {about['ai-edge-litert']}; fastest int8 product seen {about['peak_gmacs']} GMAC/s, memory "
        f"{about['bandwidth_gbs']} GB/s."
    )
    return "\n".join([heads, *lines, "", conditions])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, writes the JSON and prints tables."""
    import tensorflow as tf

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="file to write (JSON)")
    parser.add_argument("--repeats", type=int, default=20, help="times each layer is measured")
    parser.add_argument("--only", choices=("ResNet-50", "MobileNetV2", "dense"), help="one group of layers")
    given = parser.parse_args(arguments)
    if given.repeats < 1:
        parser.error(f"--repeats {given.repeats} must be at least 1")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": True}
    )  # it would merge equal copies into one
    report = measure([s for s in SHAPES if given.only in (None, s.network)], given.repeats)
    atomic_write(given.output, (json.dumps(report, indent=1) + "\n").encode())
    heads = ("layer", "ternary ms", "int8", "TF float32", "LiteRT int8", "GMAC/s", "weights GB/s")
    cells = [
        (
            str(Shape(*(r[f] for f in Shape._fields))),
            *(r[f"{k}_ms"] for k in KINDS),
            r["ternary_gmacs"],
            r["ternary_weight_gbs"],
        )
        for r in report["rows"]
    ]
    print(table(heads, cells))
    print(markdown(report))


if __name__ == "__main__":
    main()
