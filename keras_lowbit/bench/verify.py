"""keras-lowbit bench verify: seconds of converting, exporting and verifying large networks of `keras.applications`.

    keras-lowbit bench verify --model ResNet152 --model ConvNeXtBase --output verify.json

Each network has random weights and four images of its own size. How long `verify` takes beside conversion, calibration and
export together is a ratio of one run on one machine; seconds of all processors say more where others use it too.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import flags

from keras_lowbit.bench.machine import machine
from keras_lowbit.bench.output import define_output, write_report
from keras_lowbit.convert.post_training.calibrate import calibrate
from keras_lowbit.convert.quantize_model import quantize_model
from keras_lowbit.deploy.export import export_litert
from keras_lowbit.deploy.verification.verify import verify

FLAGS = flags.FlagValues()
define_output(FLAGS)
flags.DEFINE_multi_string("model", ["ResNet152"], "networks, by their names in keras.applications", flag_values=FLAGS)
flags.DEFINE_integer("images", 4, "images to calibrate and to verify with", lower_bound=1, flag_values=FLAGS)


def measure(name: str, images: int) -> dict[str, Any]:
    """Seconds of each part for one network, and whether the file verified (a network of random weights has no labels)."""
    keras.utils.set_random_seed(0)
    make = getattr(keras.applications, name, None)
    if not callable(make):
        known = [other for other in vars(keras.applications) if other[0].isupper()]
        raise flags.Error(f"--model={name}: keras.applications has no such network, but {', '.join(sorted(known))}")
    model = make(weights=None)
    data = np.random.default_rng(0).normal(size=(images, *model.input_shape[1:])).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder, "model.tflite"), time.perf_counter()
        quantized, _ = quantize_model(model, "int8")
        calibrate(quantized, data, verbose=0)
        export_litert(quantized, path)
        converted, before = time.perf_counter(), time.process_time()
        parity = verify(quantized, path, data)
        end, busy = time.perf_counter(), time.process_time() - before
    return {
        "converted_s": round(converted - start, 1),
        "verified_s": round(end - converted, 1),
        "verified_processor_s": round(busy, 1),
        "ratio": round((end - converted) / (converted - start), 2),
        "ok": parity.ok,
    }


def run(values: Any) -> int:
    """Measures each network, prints the rows and writes the file."""
    rows = {}
    for name in values.model:
        rows[name] = measure(name, values.images)
        print(f"{name:<20}", rows[name], flush=True)
    write_report(values.output, {"machine": machine(), "images": values.images, "rows": rows})
    return 0 if all(row["ok"] for row in rows.values()) else 1
