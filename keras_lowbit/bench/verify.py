"""keras-lowbit bench verify: seconds of converting, exporting and verifying large networks of `keras.applications`.

    keras-lowbit bench verify --model ResNet152 --model ConvNeXtBase --output verify.json

Each network has random weights and four images of its own size. How long `verify` takes beside conversion, calibration and
export together is a ratio of one run on one machine.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import flags

import keras_lowbit as klb
from keras_lowbit.bench.machine import machine
from keras_lowbit.bench.output import define_output, write_report

FLAGS = flags.FlagValues()
define_output(FLAGS)
flags.DEFINE_multi_string("model", ["ResNet152"], "networks, by their names in keras.applications", flag_values=FLAGS)
flags.DEFINE_integer("images", 4, "images to calibrate and to verify with", lower_bound=1, flag_values=FLAGS)


def measure(name: str, images: int) -> dict[str, Any]:
    """Seconds of each part for one network, and whether the file verified (a network of random weights has no labels)."""
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None)
    data = np.random.default_rng(0).normal(size=(images, *model.input_shape[1:])).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder, "model.tflite"), time.perf_counter()
        quantized, _ = klb.quantize_model(model, "int8")
        klb.calibrate(quantized, data, verbose=0)
        klb.export_litert(quantized, path)
        converted = time.perf_counter()
        parity = klb.verify(quantized, path, data)
        end = time.perf_counter()
    return {
        "converted_s": round(converted - start, 1),
        "verified_s": round(end - converted, 1),
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
