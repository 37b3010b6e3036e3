"""4-bit weights without labels: rounding learnt block by block, on a pretrained MobileNet.

    python -m studies.reconstruction.run                            # everything that result.json lacks
    python -m studies.reconstruction.run --cells "ends 8, block" --iterations 2000 --threads 2

Trains on the unlabelled training images of the data folder, a fourth of them held back to judge each block, and reports top-1
and agreement with the float model on the 1,024 labelled ones; every cell is a .tflite file run by LiteRT. A cell that was
stopped goes on behind its last block.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit.quantizers import AdjustableThreshold, Uniform
from studies.fat_mobilenet import run as fat

HERE = Path(__file__).resolve().parent
ENDS = {"mobilenet_v2": r"Conv1|[Pp]redictions", "mobilenet_v1": r"conv1|conv_preds"}
CELLS: dict[str, dict[str, Any]] = {
    "all 4, nearest": {"ends": 4, "unit": None},
    "all 4, block": {"ends": 4, "unit": "block"},
    "ends 8, nearest": {"ends": 8, "unit": None},
    "ends 8, layer": {"ends": 8, "unit": "layer"},
    "ends 8, block": {"ends": 8, "unit": "block"},
    "ends 8, block, nothing dropped": {"ends": 8, "unit": "block", "drop_probability": 0.0},
}


def make(study: fat.Study, cell: dict[str, Any], iterations: int, checkpoint: Path) -> tuple[keras.Model, Any]:
    """The quantized model of a cell, and the report of the rounding."""
    base = fat.equalized(study)
    network = study.config["network"]
    overrides = {ENDS[network]: AdjustableThreshold(Uniform(8))} if cell["ends"] == 8 else {}
    quantized = study.quantized(base, "fat-w4", overrides=overrides)
    klb.correct_biases(quantized, base, study.images(study.config["correction_images"]), verbose=0)
    if cell["unit"] is None:
        return quantized, None
    more = {key: value for key, value in cell.items() if key not in ("ends", "unit")}
    report = klb.reconstruct(
        quantized,
        base,
        study.images(study.config["reconstruction_images"]),
        batch_size=study.config["reconstruction_batch"],
        unit=cell["unit"],
        iterations=iterations,
        checkpoint=checkpoint,
        seed=study.config["seed"],
        verbose=2,
        **more,
    )
    print(report, flush=True)
    klb.correct_biases(quantized, base, study.images(study.config["correction_images"]), verbose=0)
    return quantized, report


def main(arguments: list[str] | None = None) -> None:
    """Runs what is missing and prints the table."""
    config = json.loads((fat.HERE / "config.json").read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--network", choices=list(fat.NETWORKS), default=config["network"])
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--images", type=int, help="training images; all by default")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "result.json")
    parsed = parser.parse_args(arguments)
    config |= {"network": parsed.network, "threads": parsed.threads, "iterations": parsed.iterations}
    config |= {"reconstruction_images": parsed.images, "reconstruction_batch": parsed.batch_size}
    tf.config.threading.set_intra_op_parallelism_threads(parsed.threads)
    fat.WORK.mkdir(exist_ok=True)
    study = fat.Study(config, parsed.output)
    if not study.file("float.npy").exists():
        path = study.file("float.tflite")
        path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(study.model).convert())
        study.record("float", path)
    for name in parsed.cells:
        full = name if CELLS[name]["unit"] is None else f"{name}, {parsed.iterations} iterations"
        if f"{config['network']} {full}" in study.found:
            print(f"{full}: already in {parsed.output.name}")
            continue
        keras.utils.set_random_seed(config["seed"])
        started = (time.perf_counter(), time.process_time())
        quantized, report = make(study, CELLS[name], parsed.iterations, study.file(f"{full}.checkpoint"))
        path = study.file(f"{full}.tflite")
        klb.export_litert(quantized, path, weights="int4")
        study.record(full, path, started, verdict=None if report is None else str(report.verdict))
    print(fat.table(study.found))


if __name__ == "__main__":
    main()
