"""Super-resolution in 8 and in 16 bits: what activations of 8 bits lose, and what LiteRT's 16x8 mode keeps.

    python -m studies.int16_super_resolution.measure     # about ten minutes on two cores; writes result.json, prints the table

A network that doubles the size of photos is trained (kept in work/, so that a second run starts behind it), quantized after
training with the recipes "int8" and "int16x8", and by TensorFlow's converter in both modes, with the same calibration photos.
All files take and give float32 and run on LiteRT with its default delegate, one thread.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from keras import layers as kl

import keras_lowbit as klb
from keras_lowbit.deploy.litert.file_runner import FileRunner
from studies.common import imagenet
from studies.common.cifar10 import data_folder

HERE = Path(__file__).resolve().parent
WORK = HERE / "work"
CONFIG = json.loads((HERE / "config.json").read_text())


def network(size: int | None) -> keras.Model:
    """RGB of 0 to 1 in, twice the size out: convolutions learn what bilinear enlarging lacks."""
    entry = x = keras.Input((size, size, 3), name="small")
    x = kl.Conv2D(CONFIG["channels"], 5, padding="same", activation="relu")(x)
    for _ in range(CONFIG["convolutions"]):
        x = kl.Conv2D(CONFIG["channels"], 3, padding="same", activation="relu")(x)
    detail = kl.Conv2DTranspose(3, 4, strides=2, padding="same", name="detail")(x)
    coarse = kl.UpSampling2D(2, interpolation="bilinear", name="coarse")(entry)
    return keras.Model(entry, kl.Add(name="large")([coarse, detail]), name="doubled")


def photos(name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of 2 x 2 pixels and the photos themselves, float32 of 0 to 1."""
    large = imagenet.images(data_folder(), name, count)[0].astype(np.float32) / 255
    size = large.shape[1] // 2
    return large.reshape(count, size, 2, size, 2, 3).mean((2, 4)), large


def patches(small: np.ndarray, large: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of places drawn at random."""
    random, side = np.random.default_rng(CONFIG["seed"]), CONFIG["patch"]
    while True:
        places = random.integers((len(small), *(small.shape[1] - side,) * 2), size=(CONFIG["batch_size"], 3))
        yield (
            np.stack([small[n, y : y + side, x : x + side] for n, y, x in places]),
            np.stack([large[n, 2 * y : 2 * (y + side), 2 * x : 2 * (x + side)] for n, y, x in places]),
        )


def trained() -> keras.Model:
    """The network of whole photos with the weights of a training on patches."""
    path, model = WORK / "trained.weights.h5", network(None)
    if not path.exists():
        keras.utils.set_random_seed(CONFIG["seed"])
        rate = keras.optimizers.schedules.CosineDecay(CONFIG["learning_rate"], CONFIG["steps"])
        model = network(None)
        model.compile(keras.optimizers.Adam(rate), "mae", jit_compile=False)
        batches = patches(*photos(imagenet.TRAINING, CONFIG["training_photos"]))
        model.fit(batches, steps_per_epoch=CONFIG["steps"], epochs=1, verbose=2)
        model.save_weights(path)
    model.load_weights(path)
    whole = network(112)
    whole.set_weights(model.get_weights())
    return whole


def files_of(model: keras.Model, small: np.ndarray) -> dict[str, Path]:
    """Every file, by name."""
    found = {"float32": WORK / "float32.tflite"}
    found["float32"].write_bytes(converted(model, lambda converter: None))
    for recipe in ("int8", "int16x8"):
        quantized, _ = klb.quantize_model(model, recipe)
        klb.calibrate(quantized, small, verbose=0)
        found[recipe] = WORK / f"{recipe}.tflite"
        klb.export_litert(quantized, found[recipe], io="float32")
        parity = klb.verify(quantized, found[recipe], small[:2], layer_samples=1)
        print(recipe, "verified:", parity.ok, "equal to the reference:", parity.reference_equal, flush=True)
        if not (parity.ok and parity.reference_equal):
            raise SystemExit(str(parity))
    return found | peers(model, small)


def peers(model: keras.Model, small: np.ndarray) -> dict[str, Path]:
    """TensorFlow's post-training quantization of the same model, calibrated on the same photos."""
    import tensorflow as tf

    modes = {
        "TensorFlow int8": tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
        "TensorFlow 16x8": tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
    }
    found = {}
    for name, mode in modes.items():

        def choose(converter: Any, mode: Any = mode) -> None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([image[None]] for image in small)
            converter.target_spec.supported_ops = [mode]

        found[name] = WORK / f"{name.replace(' ', '_').lower()}.tflite"
        found[name].write_bytes(converted(model, choose))
    return found


def converted(model: keras.Model, choose: Callable[[Any], None]) -> bytes:
    """A file of TensorFlow's converter, of batch 1."""
    import tensorflow as tf

    entry = keras.Input(batch_shape=(1, *model.input.shape[1:]))
    converter = tf.lite.TFLiteConverter.from_keras_model(keras.Model(entry, model(entry)))
    choose(converter)
    return bytes(converter.convert())


def decibels(wanted: np.ndarray, got: np.ndarray, peak: float | None = None) -> float:
    """Signal-to-noise ratio, or with a peak its ratio to the noise (PSNR)."""
    noise = float(np.mean(np.square(wanted.astype(np.float64) - got)))
    signal = float(np.mean(np.square(wanted.astype(np.float64)))) if peak is None else peak**2
    return round(10 * np.log10(signal / noise), 2)


def main() -> None:
    """Trains, quantizes, measures, and keeps result.json."""
    WORK.mkdir(exist_ok=True)
    model = trained()
    files = files_of(model, photos(imagenet.TRAINING, CONFIG["calibration_photos"])[0])
    small, large = photos(imagenet.VALIDATION, CONFIG["photos"])
    outputs = {name: FileRunner(path).run([small])[0] for name, path in files.items()}
    latency = json.loads(klb.bench.latency(list(files.values()), threads=1).to_json())
    enlarged = np.asarray(keras.ops.image.resize(small, large.shape[1:3], interpolation="bilinear"))
    rows: dict[str, Any] = {"bilinear": {"psnr_db": decibels(large, enlarged, 1.0)}}
    for row, (name, path) in zip(latency["rows"], files.items(), strict=True):
        row["path"] = path.name
        to_float = None if name == "float32" else decibels(outputs["float32"], outputs[name])
        figures = {"psnr_db": decibels(large, outputs[name], 1.0), "to_float_db": to_float}
        rows[name] = {**figures, "bytes": path.stat().st_size, "median_ms": round(row["median_ms"], 1)}
    result = {"config": CONFIG, "files": rows, "latency": latency}
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print("| file | PSNR dB | dB to the float network | bytes | ms |\n|---|---|---|---|---|")
    for name, found in rows.items():
        cells = (found.get(key) for key in ("psnr_db", "to_float_db", "bytes", "median_ms"))
        print(f"| {name} | " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |")


if __name__ == "__main__":
    main()
