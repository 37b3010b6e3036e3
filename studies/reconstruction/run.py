"""4-bit weights without labels: rounding learnt block by block, on a pretrained MobileNet.

    python -m studies.reconstruction.run                            # everything that result.json lacks
    python -m studies.reconstruction.run --cells "ends 8, block" --iterations 2000 --threads 2

Trains on the unlabelled training images of the data folder, a fourth of them held back to judge each block, and reports top-1
and agreement with the float model on the 1,024 labelled ones; every cell is a .tflite file run by LiteRT. A cell that was
stopped goes on behind its last block. A "tuned" one goes on from the saved one that is not, so that its minutes are of the
tuning alone.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import keras_lowbit as klb
from studies.fat_mobilenet import run as fat

HERE = Path(__file__).resolve().parent
HELD_BACK = 128  # images that judge the tuning
ENDS_8: dict[str, Any] = {"recipe": klb.recipes.w4()}
ALL_4: dict[str, Any] = {"recipe": klb.recipes.w4(first=None, last=None)}
DEPTHWISE_8: dict[str, Any] = {"recipe": klb.recipes.w4(depthwise=8)}
BLOCK: dict[str, Any] = {"unit": "block"}
WEIGHTED: dict[str, Any] = BLOCK | {"gradient_weights": True}
CELLS: dict[str, dict[str, Any]] = {
    "ends 8, nearest": ENDS_8,
    "ends 8, block": ENDS_8 | BLOCK,
    "ends 8, block, tuned": ENDS_8 | BLOCK | {"tuned": True},
    "ends and depthwise 8, nearest": DEPTHWISE_8,
    "ends and depthwise 8, block": DEPTHWISE_8 | BLOCK,
    "ends and depthwise 8, block, tuned": DEPTHWISE_8 | BLOCK | {"tuned": True},
    "all 4, nearest": ALL_4,
    "all 4, block": ALL_4 | BLOCK,
    "all 4, block, tuned": ALL_4 | BLOCK | {"tuned": True},
    "ends 8, block, weighted": ENDS_8 | WEIGHTED,
    "ends 8, block, weighted, tuned": ENDS_8 | WEIGHTED | {"tuned": True},
    "ends 8, layer": ENDS_8 | {"unit": "layer"},
    "ends 8, block, nothing dropped": ENDS_8 | BLOCK | {"drop_probability": 0.0},
}


class Cell:
    """One cell of the table: what it begins with, and what is done to it."""

    def __init__(self, study: fat.Study, name: str) -> None:
        self.study, self.name, self.options = study, name, dict(CELLS[name])
        self.recipe, self.tuned = self.options.pop("recipe"), self.options.pop("tuned", False)
        self.verdict: str | None = None

    @property
    def full(self) -> str:
        """The name with the iterations of each block."""
        return f"{self.name}, {self.study.config['iterations']} iterations" if self.options else self.name

    def make(self) -> keras.Model:
        """The quantized model; a tuned one from the saved one that is not tuned."""
        if self.tuned:
            untuned = Cell(self.study, self.name.removesuffix(", tuned"))
            return self._tune(keras.models.load_model(self.study.file(f"{untuned.full}.keras")))
        base = equalized(self.study)
        quantized = self.study.quantized(base, self.recipe)
        klb.correct_biases(quantized, base, self._images("correction_images"), verbose=0)
        if self.options:
            self._round(quantized, base)
            quantized.save(self.study.file(f"{self.full}.keras"))
        return quantized

    def _round(self, quantized: keras.Model, base: keras.Model) -> None:
        report = klb.reconstruct(
            quantized,
            base,
            self._images("reconstruction_images"),
            batch_size=self.study.config["reconstruction_batch"],
            iterations=self.study.config["iterations"],
            checkpoint=self.study.file(f"{self.full}.checkpoint"),
            seed=self.study.config["seed"],
            verbose=2,
            **self.options,
        )
        print(report, flush=True)
        self.verdict = str(report.verdict)

    def _tune(self, quantized: keras.Model) -> keras.Model:
        """`distill` on the recipe's variables, for its epochs, on all images; those that judge were not used for rounding."""
        training = self.recipe.training
        self.study.config["epochs"] = training["epochs"]
        used = min(self.study.config["reconstruction_images"] or 0, len(self.study.pixels) - 2 * HELD_BACK)
        return self.study.tuned(quantized, None, self.full, "w4", used, variables=training["variables"])

    def _images(self, key: str) -> Any:
        return self.study.images(self.study.config[key])


def equalized(study: fat.Study) -> keras.Model:
    """The folded network, equalized, made once."""
    path = study.file("equalized.keras")
    if not path.exists():
        fat.equalized(study).save(path)
    return keras.models.load_model(path)


def main(arguments: list[str] | None = None) -> None:
    """Runs what is missing and prints the table."""
    config = json.loads((fat.HERE / "config.json").read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--network", choices=list(fat.NETWORKS), default=config["network"])
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--images", type=int, help="training images; all by default")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "result.json")
    parsed = parser.parse_args(arguments)
    config |= {"network": parsed.network, "threads": parsed.threads, "iterations": parsed.iterations}
    config |= {"reconstruction_images": parsed.images, "reconstruction_batch": parsed.batch_size}
    config |= {"held_back_images": HELD_BACK, "learning_rate": {"w4": 1e-3}}
    tf.config.threading.set_intra_op_parallelism_threads(parsed.threads)
    fat.WORK.mkdir(exist_ok=True)
    study = fat.Study(config, parsed.output)
    if not study.file("float.npy").exists():
        path = study.file("float.tflite")
        path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(study.model).convert())
        study.record("float", path)
    for name in parsed.cells:
        cell = Cell(study, name)
        if f"{config['network']} {cell.full}" in study.found:
            print(f"{cell.full}: already in {parsed.output.name}")
            continue
        keras.utils.set_random_seed(config["seed"])
        started = (time.perf_counter(), time.process_time())
        quantized = cell.make()
        path = study.file(f"{cell.full}.tflite")
        klb.export_litert(quantized, path, weights="int4")
        study.record(cell.full, path, started, verdict=cell.verdict)
    print(fat.table(study.found))


if __name__ == "__main__":
    main()
