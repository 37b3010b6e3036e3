"""FAT on pretrained MobileNets: what label-free tuning on 1,000 images gives back, scalar and vector, 8 and 4 bits.

    python -m studies.fat_mobilenet.run                         # everything that result.json lacks
    python -m studies.fat_mobilenet.run --cells float "fat" --threads 2

Tunes on the 1,000 unlabelled training images of the data folder, reports top-1 and agreement with the float model on the
1,024 labelled ones. Every cell is a .tflite file run by LiteRT (XNNPACK). A cell is in result.json as soon as it is done; a
tuning that was stopped goes on behind its last epoch.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit.bench.machine import machine
from keras_lowbit.deploy.litert.file_runner import FileRunner
from keras_lowbit.distill import biases, thresholds
from keras_lowbit.quantizers import AdjustableThreshold, Uniform
from studies.common import imagenet
from studies.common.cifar10 import data_folder

HERE = Path(__file__).resolve().parent
WORK = HERE / "work"
TOGETHER = {"variables": "thresholds+biases"}
UNPACKED = {r"[Cc]onv1|.*(depthwise|conv_dw_).*": AdjustableThreshold(Uniform(8))}
NETWORKS = {"mobilenet_v2": imagenet.mobilenet_v2, "mobilenet_v1": imagenet.mobilenet_v1}
CELLS: dict[str, Callable[["Study"], keras.Model]] = {}


def cell(name: str) -> Callable[[Callable], Callable]:
    """Registers a function that makes the quantized model of one cell."""

    def add(function: Callable) -> Callable:
        CELLS[name] = function
        return function

    return add


class Study:
    """The float network, its images and what has been found so far."""

    def __init__(self, config: dict[str, Any], output: Path) -> None:
        self.config, self.output = config, output
        folder = data_folder()
        self.model = NETWORKS[config["network"]](folder)
        self.pixels = _pixels(folder, imagenet.TRAINING)[0]
        self.validation, self.classes = _pixels(folder, imagenet.VALIDATION)
        self.folded = klb.fold_batch_norms(self.model)
        self.found = json.loads(output.read_text()) if output.exists() else {}
        self.history: dict[str, list[float]] | None = None
        self.rounded: keras.Model | None = None  # two cells start from it

    def images(self, count: int | None = None) -> np.ndarray:
        """The first training images, normalised."""
        return imagenet.normalize(self.pixels[:count])

    def file(self, name: str) -> Path:
        """Where a file of this network lies."""
        return WORK / f"{self.config['network']}_{name.replace(' ', '_')}"

    def quantized(self, base: keras.Model, recipe: Any, **options: Any) -> keras.Model:
        """A quantized and calibrated copy."""
        quantized, _ = klb.quantize_model(base, recipe, **options)
        klb.calibrate(quantized, self.images(self.config["calibration_images"]), verbose=0)
        return quantized

    def corrected(self, quantized: keras.Model, base: keras.Model) -> keras.Model:
        """The model with corrected biases, calibrated again."""
        klb.correct_biases(quantized, base, self.images(self.config["correction_images"]), verbose=0)
        klb.calibrate(quantized, self.images(self.config["calibration_images"]), verbose=0)
        return quantized

    def tuned(
        self, quantized: keras.Model, base: keras.Model | None, name: str, recipe: str, used: int = 0, **options: Any
    ) -> keras.Model:
        """The model tuned. base: its biases are corrected against that model afterwards.   used: see `split`.   options: of
        `DistillConfig`."""
        tuning, held_back = split(len(self.pixels), self.config, used)
        steps = -(-len(tuning) // self.config["batch_size"]) * self.config["epochs"]
        rate = self.config["learning_rate"][recipe]
        history = klb.distill(
            quantized,
            self.model,
            imagenet.normalize(self.pixels[tuning]),
            klb.DistillConfig(learning_rate=rate, period=steps, **options),  # one fall, no restart
            epochs=self.config["epochs"],
            batch_size=self.config["batch_size"],
            validation_data=imagenet.normalize(self.pixels[held_back]),
            checkpoint=self.file(f"{name}.npz"),
            seed=self.config["seed"],
            verbose=2,
        )
        self.history = {key: [round(float(v), 5) for v in values] for key, values in history.history.items()}
        if base is not None:
            klb.correct_biases(quantized, base, self.images(self.config["correction_images"]), verbose=0)
        return quantized

    def record(self, name: str, path: Path, started: tuple[float, float] | None = None, **more: Any) -> None:
        """Store what a file does on the labelled images."""
        runner, parts = FileRunner(path, threads=self.config["threads"]), range(0, len(self.validation), 128)
        logits = [runner.run([imagenet.normalize(self.validation[i : i + 128])])[0] for i in parts]
        best = np.concatenate(logits).reshape(len(self.validation), -1).argmax(-1)
        if name == "float":
            np.save(self.file("float.npy"), best)
        agreement = float(np.mean(best == np.load(self.file("float.npy"))))
        row: dict[str, Any] = {"agreement_with_float": agreement, "bytes": path.stat().st_size}
        row |= accuracy(best == self.classes) | more
        if started is not None:
            row["minutes"] = round((time.perf_counter() - started[0]) / 60, 2)
            row["processor_minutes"] = round((time.process_time() - started[1]) / 60, 2)
        row |= {"config": self.config, "machine": machine(), "load": [round(x, 1) for x in os.getloadavg()]}
        self.found = (
            json.loads(self.output.read_text()) if self.output.exists() else {}
        )  # another process may write too
        self.found[f"{self.config['network']} {name}"] = row
        self.output.write_text(json.dumps(self.found, indent=1) + "\n")
        print(f"{name}: top-1 {100 * row['top1']:.2f} %, agreement {100 * agreement:.2f} %", flush=True)


def split(count: int, config: dict[str, Any], used: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which training images tune, and which are held back to choose the epoch: none of the first, which calibrate.

    used: how many of the first something else has seen, such as the rounding of weights.
    """
    first = max(used, config["never_held_back"])
    order = first + np.random.default_rng(config["seed"]).permutation(count - first)
    held_back, rest = np.split(order, [config["held_back_images"]])
    return np.concatenate([np.arange(first), rest]), held_back


def accuracy(right: np.ndarray) -> dict[str, Any]:
    """Top-1 with its 95 % confidence interval (Wilson)."""
    n, share, z = len(right), float(np.mean(right)), 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return {"top1": share, "interval": [round(float(middle - half), 4), round(float(middle + half), 4)], "images": n}


@cell("int8 vector")
def int8_vector(study: Study) -> keras.Model:
    """Naive: one scale per channel, ranges by max."""
    return study.quantized(study.folded, "int8")


@cell("int8 scalar")
def int8_scalar(study: Study) -> keras.Model:
    """Naive: one scale per tensor."""
    return study.quantized(study.folded, "fat-scalar")


@cell("int8 vector, biases corrected")
def int8_corrected(study: Study) -> keras.Model:
    """The naive vector model with corrected biases."""
    return study.corrected(int8_vector(study), study.folded)


@cell("int8 scalar, rescaled")
def int8_rescaled(study: Study) -> keras.Model:
    """FAT's rescaling before the scalar quantizer."""
    return study.quantized(rescaled(study), "fat-scalar")


@cell("int8 scalar, equalized")
def int8_equalized(study: Study) -> keras.Model:
    """Equalization of all pairs, ReLU6 kept, before the scalar quantizer."""
    return study.quantized(equalized(study), "fat-scalar")


@cell("int8 scalar, equalized, biases corrected")
def int8_equalized_corrected(study: Study) -> keras.Model:
    """The same with corrected biases."""
    return study.corrected(int8_equalized(study), equalized(study))


@cell("fat vector")
def fat_vector(study: Study) -> keras.Model:
    """The goal: per channel, biases corrected, then tuned with the thresholds."""
    base = study.folded
    return study.tuned(study.corrected(study.quantized(base, "fat"), base), None, "fat_vector", "fat", **TOGETHER)


@cell("fat vector, thresholds of activations")
def fat_vector_activations(study: Study) -> keras.Model:
    """The same, but thresholds of weights stay: only ranges and biases learn."""
    quantized = study.corrected(study.quantized(study.folded, "fat"), study.folded)
    ranges = [variable for variable in thresholds(quantized) if variable.name in ("left", "width")]
    return study.tuned(quantized, None, "fat_vector_activations", "fat", variables=ranges + biases(quantized))


@cell("fat vector, biases as they are")
def fat_vector_alone(study: Study) -> keras.Model:
    """Thresholds tuned and nothing else, as published."""
    return study.tuned(study.quantized(study.folded, "fat"), None, "fat_vector_alone", "fat")


@cell("fat scalar, rescaled")
def fat_scalar(study: Study) -> keras.Model:
    """Per tensor, rescaled, biases corrected, then tuned with the thresholds."""
    base = rescaled(study)
    quantized = study.corrected(study.quantized(base, "fat-scalar"), base)
    return study.tuned(quantized, None, "fat_scalar", "fat-scalar", **TOGETHER)


@cell("int8 scalar, rescaled, biases corrected")
def int8_rescaled_corrected(study: Study) -> keras.Model:
    """Per tensor, rescaled, biases corrected."""
    base = rescaled(study)
    return study.corrected(study.quantized(base, "fat-scalar"), base)


@cell("w4")
def w4(study: Study) -> keras.Model:
    """Naive: 4-bit weights, a scale of least squared error per channel, nearest rounding."""
    return study.quantized(study.folded, "fat-w4")


@cell("w4, equalized, biases corrected")
def w4_corrected(study: Study) -> keras.Model:
    """Equalized and with corrected biases, nearest rounding."""
    base = equalized(study)
    return study.corrected(study.quantized(base, "fat-w4"), base)


@cell("w4, equalized, rounded by output")
def w4_rounded(study: Study) -> keras.Model:
    """Equalized, weights rounded for the least error of each layer's output."""
    if study.rounded is None:
        base = equalized(study)
        study.rounded = study.quantized(base, "fat-w4")
        print(klb.round_weights(study.rounded, base, study.images(study.config["rounding_images"]), verbose=0))
    return study.rounded


@cell("w4 where it packs, equalized, rounded by output")
def w4_packed(study: Study) -> keras.Model:
    """4 bits where a file holds them as 4 bits (1x1 and dense layers); depthwise filters and the first layer at 8."""
    base = equalized(study)
    quantized = study.quantized(base, "fat-w4", overrides=UNPACKED)
    print(klb.round_weights(quantized, base, study.images(study.config["rounding_images"]), verbose=0))
    return quantized


@cell("fat-w4, equalized, rounded by output")
def fat_w4(study: Study) -> keras.Model:
    """The same, then the weights and biases tuned by pointwise factors."""
    used = study.config["rounding_images"]
    return study.tuned(w4_rounded(study), None, "fat_w4", "fat-w4", used, variables="pointwise", loss="kl")


def rescaled(study: Study) -> keras.Model:
    """The folded network, depthwise filters rescaled."""
    return klb.rescale_depthwise(study.folded, study.images(study.config["calibration_images"]), verbose=0)


def equalized(study: Study) -> keras.Model:
    """The folded network, equalized with ReLU6 in place."""
    return klb.equalize(study.folded, study.images(study.config["calibration_images"]), verbose=0)


def _pixels(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images and classes, decoded once."""
    cache = WORK / f"{Path(name).stem}.npz"
    if not cache.exists():
        pixels, classes = imagenet.images(folder, name)
        np.savez(cache, pixels=pixels, classes=classes)
    with np.load(cache) as stored:
        return stored["pixels"], stored["classes"]


def peers(study: Study) -> None:
    """The float file and the post-training quantization of the others, from the same calibration images."""
    wanted = {
        "float": "float",
        "tensorflow int8": "tensorflow int8",
        "ai-edge-quantizer int8": "ai-edge-quantizer int8",
    }
    folder = study.file("peers")
    folder.mkdir(exist_ok=True)
    paths = klb.bench.write_peers(study.model, folder, study.images(study.config["calibration_images"]))
    for name, path in paths.items():
        study.record(wanted[name], path)


def run_cell(study: Study, name: str) -> None:
    """Make, export and measure one cell."""
    keras.utils.set_random_seed(study.config["seed"])
    study.history = None
    started = (time.perf_counter(), time.process_time())
    quantized = CELLS[name](study)
    path = study.file(f"{name}.tflite")
    klb.export_litert(quantized, path)
    more = {} if study.history is None else {"history": study.history}
    study.record(name, path, started, **more)


def main(arguments: list[str] | None = None) -> None:
    """Runs what is missing and prints the table."""
    config = json.loads((HERE / "config.json").read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=["peers", *CELLS], default=["peers", *CELLS])
    parser.add_argument("--network", choices=list(NETWORKS), default=config["network"])
    parser.add_argument("--threads", type=int, default=config["threads"])
    parser.add_argument("--output", type=Path, default=HERE / "result.json")
    parsed = parser.parse_args(arguments)
    config |= {"network": parsed.network, "threads": parsed.threads}
    tf.config.threading.set_intra_op_parallelism_threads(parsed.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    WORK.mkdir(exist_ok=True)
    study = Study(config, parsed.output)
    for name in ["peers", *(n for n in parsed.cells if n != "peers")]:
        have = "float" if name == "peers" else name
        if f"{config['network']} {have}" in study.found and (name != "peers" or study.file("float.npy").exists()):
            print(f"{name}: already in {parsed.output.name}")
        elif name == "peers":
            peers(study)
        else:
            run_cell(study, name)
        keras.backend.clear_session()
    print(table(study.found))


def table(found: dict[str, Any]) -> str:
    """The cells as text."""
    from keras_lowbit.tables import table as text

    def row(name: str, r: dict[str, Any]) -> tuple[Any, ...]:
        low, high = (100 * end for end in r["interval"])
        shares = (100 * r["top1"], f"{low:.1f} to {high:.1f}", 100 * r["agreement_with_float"])
        return (name, *shares, r.get("minutes"), r.get("processor_minutes"))

    rows = [row(name, r) for name, r in found.items()]
    return text(("cell", "top-1 %", "95 % interval", "agreement %", "minutes", "processor minutes"), rows)


if __name__ == "__main__":
    main()
