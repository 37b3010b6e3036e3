"""MobileNetV2 on a phone runtime: accuracy of 8-bit files, and sizes and latencies of low-bit ones.

    python -m studies.deploy_mobilenet.run              # both parts, about ten minutes on two cores
    python -m studies.deploy_mobilenet.run --parts size

Part "accuracy": the published MobileNetV2, calibrated on 100 training images, against the post-training
quantization of TensorFlow and (with the extra `peers`) ai-edge-quantizer of the same model with the same images, all run
by LiteRT (XNNPACK) on the 1,024 labelled images.
Part "size": MobileNetV2 (224, 1000 classes) as float, int8, 4-bit and ternary pointwise files; latency in one run,
interleaved; the packed files' outputs against their int8 containers.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_lowbit as klb
from keras_lowbit.deploy.litert.file_runner import FileRunner
from studies.common import imagenet
from studies.common.cifar10 import data_folder

HERE = Path(__file__).resolve().parent
WORK = HERE / "work"
CALIBRATION_IMAGES = 100
POINTWISE = r".*(expand|project|Conv_1|predictions)"


def main() -> None:
    """Runs the parts asked for and keeps result.json up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["accuracy", "size"], default=["accuracy", "size"])
    parser.add_argument("--images", type=int, default=1024, help="labelled images to look at")
    arguments = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    folder = data_folder()
    path = HERE / "result.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    model = imagenet.mobilenet_v2(folder)
    pixels, _ = imagenet.images(folder, imagenet.TRAINING, CALIBRATION_IMAGES)
    calibration = imagenet.normalize(pixels)
    if "accuracy" in arguments.parts:
        result["accuracy"] = accuracy(model, calibration, folder, arguments.images)
    if "size" in arguments.parts:
        result["size"] = size(model, calibration)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def accuracy(model: keras.Model, calibration: np.ndarray, folder: Path, count: int) -> dict[str, Any]:
    """Top-1 and agreement with the float model of every 8-bit file."""
    pixels, classes = imagenet.images(folder, imagenet.VALIDATION, count)
    images = imagenet.normalize(pixels)
    float_best = model.predict(images, batch_size=64, verbose=0).argmax(-1)
    found = {"images": count, "float": {"top1": float(np.mean(float_best == classes))}}
    files = {f"int8 ({method})": ours(model, calibration, method) for method in ("max", "percentile", "mse")}
    peers = klb.bench.write_peers(model, WORK, calibration)
    files |= {name: path for name, path in peers.items() if name != "float"}
    for name, file in files.items():
        best = FileRunner(file, threads=2).run([images])[0].argmax(-1)
        found[name] = {
            "top1": float(np.mean(best == classes)),
            "agreement_with_float": float(np.mean(best == float_best)),
            "bytes": file.stat().st_size,
        }
        print(name, found[name], flush=True)
    return found


def ours(model: keras.Model, images: np.ndarray, calibration: str) -> Path:
    """8-bit weights per channel, ranges from the calibration images."""
    quantized, _ = klb.quantize_model(model, "int8")
    klb.calibrate(quantized, images, calibration=calibration, verbose=0)
    path = WORK / f"int8_{calibration}.tflite"
    klb.export_litert(quantized, path)
    return path


def size(model: keras.Model, calibration: np.ndarray) -> dict[str, Any]:
    """Bytes, latency and bit-equality of the low-bit files."""
    files = klb.bench.write_peers(model, WORK, calibration[:32])
    equal: dict[str, bool] = {}
    verified: dict[str, Any] = {}
    for name, kernel, weights in (
        ("int8", None, "int8"),
        ("4-bit pointwise", klb.quantizers.Uniform(4), "int4"),
        ("ternary pointwise", klb.quantizers.Ternary(), "int2"),
    ):
        overrides = {POINTWISE: kernel} if kernel is not None else {}
        quantized, _ = klb.quantize_model(model, "int8", overrides=overrides)
        klb.calibrate(quantized, calibration[:32], verbose=0)
        files[name] = WORK / f"{weights}.tflite"
        klb.export_litert(quantized, files[name], weights=weights)
        parity = klb.verify(quantized, files[name], calibration[:8], layer_samples=1)
        verified[name] = {
            "ok": parity.ok,
            "max_layer_steps": parity.max_layer_steps,
            "reference_equal": parity.reference_equal,
            "operators": parity.delegate.operators,
            "not_on_xnnpack": parity.delegate.left_by_operator,
        }
        if weights != "int8":
            container = WORK / f"{weights}_in_int8.tflite"
            klb.export_litert(quantized, container)
            codes = [FileRunner(path).run([calibration[:8]])[0] for path in (files[name], container)]
            equal[name] = bool(np.array_equal(*codes))
    latency = json.loads(klb.bench.latency(list(files.values()), threads=1).to_json())
    for row in latency["rows"]:
        row["path"] = Path(row["path"]).name
    return {
        "bytes": {name: path.stat().st_size for name, path in files.items()},
        "equal_to_int8_container": equal,
        "verify": verified,
        "latency": latency,
    }


if __name__ == "__main__":
    main()
