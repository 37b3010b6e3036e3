"""What a training step costs in processor time, on one thread, in every way that was tried.

    python -m studies.runner.throughput --depths 8 20 --output studies/runner/throughput.json
    python -m studies.runner.throughput --one '{"backend": "jax"}'    # one variant, printed; on a GPU by the clock of the wall

User and system time of the process, the least of `--repeats` times `--steps` steps of batch 128 of ternary weights (TWN): other
work on the machine lengthens the wall's clock, and less so this one. Each variant has a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from keras_lowbit.files import atomic_write

EPOCH_IMAGES = 45_000
BASE = {
    "backend": "tensorflow",
    "onednn": True,
    "precision": "float32",
    "norm": "keras",
    "xla": False,
    "batch": 128,
    "loop": "own",
}
VARIANTS: list[dict[str, Any]] = [
    {"loop": "fit"},
    {"loop": "fit", "steps_per_execution": 16},
    {},
    {"onednn": False},
    {"precision": "mixed_bfloat16"},
    {"norm": "fused"},
    {"precision": "mixed_bfloat16", "norm": "fused"},
    {"precision": "mixed_bfloat16", "norm": "fused", "batch": 512},
    {"xla": True},
    {"backend": "jax"},
    {"backend": "jax", "precision": "mixed_bfloat16"},
]


def measure(variant: dict[str, Any], depth: int, steps: int, repeats: int) -> dict[str, Any]:
    """Seconds per step of one variant, in this process, whose environment already has its backend."""
    import keras
    import numpy as np

    from studies.common.machine import machine

    rng = np.random.default_rng(0)
    count = steps * variant["batch"]
    train = rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8), rng.integers(0, 10, count)
    run = _runner(variant, depth, train)
    run()
    seconds = []
    for _ in range(repeats):
        start = time.process_time(), time.perf_counter()
        run()
        seconds.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    processor, wall = (min(column) / count for column in zip(*seconds, strict=True))
    return {
        **variant,
        "depth": depth,
        "images_per_processor_s": round(1 / processor, 1),
        "images_per_s": round(1 / wall, 1),
        "processor_s_per_epoch": round(EPOCH_IMAGES * processor, 1),
        "load": os.getloadavg()[0],
        "machine": machine() | {"backend": keras.backend.backend()},
    }


def _runner(variant: dict[str, Any], depth: int, train: Any) -> Any:
    """A function that trains on all images of `train` once."""
    import keras

    from keras_lowbit.distill import losses
    from studies.common import cifar_resnet
    from studies.runner.batches import draw_epoch
    from studies.runner.training import backend

    model = _network(variant, depth)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=1e-3)
    if variant["loop"] == "fit":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        at_once = variant.get("steps_per_execution", 1)
        model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=variant["xla"], steps_per_execution=at_once)
        batches = cifar_resnet.AugmentedImages(*train, variant["batch"])
        return lambda: model.fit(batches, verbose=0)
    model.compile(optimizer)
    options = {"jit_compile": variant["xla"]} if variant["backend"] == "tensorflow" else {}
    steps = backend().Steps(model, losses.cross_entropy, train, **options)
    epoch = draw_epoch(len(train[0]), variant["batch"], 0, 0)
    return lambda: steps.run(epoch)


def _network(variant: dict[str, Any], depth: int) -> Any:
    import keras

    import keras_lowbit as klb
    from studies.common import cifar_resnet
    from studies.runner.batch_norm import FusedBatchNormalization

    keras.config.set_dtype_policy(variant["precision"])
    norm = FusedBatchNormalization if variant["norm"] == "fused" else keras.layers.BatchNormalization
    recipe = klb.recipes.get("twn").replace(activations=None)
    return klb.quantize_model(cifar_resnet.cifar_resnet(depth, norm=norm), recipe)[0]


def in_a_process(variant: dict[str, Any], depth: int, parsed: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a process that has one thread."""
    environment = os.environ | {
        "KERAS_BACKEND": variant["backend"],
        "TF_ENABLE_ONEDNN_OPTS": str(int(variant["onednn"])),
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    }
    numbers = ["--depths", str(depth), "--steps", str(parsed.steps), "--repeats", str(parsed.repeats)]
    command = [sys.executable, "-m", "studies.runner.throughput", "--one", json.dumps(variant), *numbers]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def differences_from_base(row: dict[str, Any]) -> str:
    """What a variant has that `BASE` has not, in words."""
    names = (*BASE, "steps_per_execution")
    return ", ".join(f"{name} {row[name]}" for name in names if row.get(name) != BASE.get(name)) or "the base"


def table(found: list[dict[str, Any]]) -> str:
    """One line for each variant, with what differs from `BASE`."""
    lines = []
    for row in found:
        what = differences_from_base(row)
        numbers = f"{row['images_per_processor_s']:8.0f} images a second {row['processor_s_per_epoch']:7.1f} s an epoch"
        lines.append(f"ResNet-{row['depth']:<3} {what:<60} {numbers}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[8])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--variants", type=int, nargs="+", default=range(len(VARIANTS)), help="numbers in `VARIANTS`; default: all"
    )
    parser.add_argument("--one", type=json.loads, help="measure this variant in this process")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("throughput.json"))
    parsed = parser.parse_args(arguments)
    if parsed.one is not None:
        from studies.runner.queue import one_thread

        one_thread(idle=False)
        print(json.dumps(measure(BASE | parsed.one, parsed.depths[0], parsed.steps, parsed.repeats)))
        return
    for depth in parsed.depths:
        for number in parsed.variants:
            row = in_a_process(BASE | VARIANTS[number], depth, parsed)
            print(table([row]), flush=True)
            _store(parsed.output, row)


def _store(path: Path, row: dict[str, Any]) -> None:
    """Puts a row in the place of what was measured of the same variant before."""
    found = json.loads(path.read_text()) if path.exists() else []
    kept = [other for other in found if _place(other) != _place(row)]
    atomic_write(path, (json.dumps(sorted([*kept, row], key=_place), indent=1) + "\n").encode())


def _place(row: dict[str, Any]) -> tuple[int, int]:
    names = (*BASE, "steps_per_execution")
    variants = [{name: (BASE | variant).get(name) for name in names} for variant in VARIANTS]
    return row["depth"], variants.index({name: row.get(name) for name in names})


if __name__ == "__main__":
    main()
