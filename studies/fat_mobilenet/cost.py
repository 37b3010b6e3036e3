"""What a tuning step costs against a float forward pass: time and memory, as ratios.

    python -m studies.fat_mobilenet.cost [--batch 32] [--repeats 5] [--threads 1]

MobileNetV2 at 224 pixels with random weights (neither matters for the cost), recipe "fat", teacher logits at hand. Each of the
two runs in a process of its own; time is the median of the repeats in processor seconds (so other work on the machine
does not count), memory the peak beyond what the process held before its first batch. Stored under "cost" in cost.json.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

HERE = Path(__file__).resolve().parent


def measure(what: str, batch: int, repeats: int, threads: int) -> dict[str, float]:
    """Processor seconds and peak MB of one forward pass ("forward") or tuning step ("step"), in this process."""
    import keras
    import tensorflow as tf

    import keras_lowbit as klb

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(weights=None)
    images = np.random.default_rng(0).normal(size=(batch, 224, 224, 3)).astype("float32")
    if what == "forward":
        run = lambda: model.predict_on_batch(images)  # noqa: E731
    else:
        quantized, _ = klb.quantize_model(klb.fold_batch_norms(model), "fat")
        klb.calibrate(quantized, images[:2], verbose=0)
        distiller = klb.Distiller(quantized, model)
        distiller.compile(keras.optimizers.Adam(1e-3), jit_compile=False)
        targets = {"teacher_logits": [np.zeros((batch, 1000), "float32")]}
        run = lambda: distiller.train_on_batch(images, targets)  # noqa: E731
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()  # traces the graph
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"processor_seconds": round(float(np.median(seconds)), 3), "peak_mb": round(peak / 1024, 1)}


def main() -> None:
    """Runs both in processes of their own, prints and stores the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["forward", "step"], help="measure one in this process and print it as JSON")
    parsed = parser.parse_args()
    numbers = (parsed.batch, parsed.repeats, parsed.threads)
    if parsed.only:
        print(json.dumps(measure(parsed.only, *numbers)))
        return
    from keras_lowbit.bench.machine import machine

    found = {}
    for what in ("forward", "step"):
        options = ["--batch", "--repeats", "--threads"]
        words = [word for pair in zip(options, map(str, numbers), strict=True) for word in pair]
        command = [sys.executable, "-m", "studies.fat_mobilenet.cost", "--only", what, *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[what] = json.loads(done.stdout.strip().splitlines()[-1])
    ratios = {name: round(found["step"][name] / found["forward"][name], 2) for name in found["step"]}
    result = found | {"ratios": ratios, "batch": parsed.batch, "threads": parsed.threads, "machine": machine()}
    (HERE / "cost.json").write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"one tuning step takes {ratios['processor_seconds']} times the time of a float forward pass of the same batch"
    )
    print(
        f"and {ratios['peak_mb']} times its memory ({found['step']['peak_mb']} MB against {found['forward']['peak_mb']} MB)"
    )


if __name__ == "__main__":
    main()
