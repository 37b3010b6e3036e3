"""Clustered ternary and 4-bit weights with 8-bit dynamic fixed point on real pretrained networks, without retraining.

    python -m studies.dfp_imagenet.run                                       # everything, hours on two cores
    python -m studies.dfp_imagenet.run --networks resnet20 --threads 1

Each run converts a pretrained float network (calibrate, re-estimate batch norms, calibrate), writes the int8 file and
measures its accuracy with LiteRT on all labelled images: 10,000 of CIFAR-10, 1,024 of ImageNet. Every finished run is in
result.json at once; runs that are there are skipped, so a killed study goes on where it was.
"""

import argparse
import contextlib
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit.recipes import Recipe
from studies.common import imagenet
from studies.common.cifar10 import data_folder
from studies.common.machine import machine
from studies.dfp_imagenet.networks import NETWORKS, file_accuracy, keras_accuracy, unfold_batch_norms
from studies.dfp_imagenet.tune import tune, tune_without_labels

HERE = Path(__file__).resolve().parent
CALIBRATION_IMAGES = 64
KEYS = ("network", "weights", "cluster_size", "calibration", "groups", "statistics", "tuning", "last")
DEFAULTS = {
    "cluster_size": None,
    "calibration": "rms",
    "groups": "kernels",
    "statistics": "new",
    "tuning": None,
    "last": 8,
}


def plan(network: str) -> list[dict[str, Any]]:
    """The runs of one network, the important ones first. statistics: "new" (re-estimated), "old", "unfolded"."""
    # Folded batch norms have nothing to take anew: as they are, and with the statistics of data put back in.
    old, new = {"statistics": "old"}, {"statistics": "unfolded" if network == "mobilenet_v2" else "new"}
    runs: list[dict[str, Any]] = [{"weights": "float"}, {"weights": "8w8a", **(old if "v2" in network else new)}]
    for size in (4, 64, 1, 16):
        runs += [{"weights": weights, "cluster_size": size, **new} for weights in ("4w8a", "2w8a")]
        if network == "resnet20" and size == 64:
            runs += [{"weights": "2w8a", "cluster_size": tuned, "tuning": "labels"} for tuned in (64, 4)]
        if network.startswith("mobilenet") and size == 4:
            runs += [{"weights": "2w8a", "cluster_size": 4, "tuning": "teacher", **new}]
    if network == "mobilenet_v2":
        runs += [{"weights": "8w8a", **new}]
    if network == "resnet56":  # the choices below are compared on the smaller one
        return [{"network": network, **DEFAULTS, **run} for run in runs]
    runs += [{"weights": weights, "cluster_size": 4, **old} for weights in ("4w8a", "2w8a")]
    runs += [{"weights": "2w8a", "cluster_size": size, "calibration": "mse", **new} for size in (4, 64)]
    if network == "resnet20":
        runs += [
            {"weights": "2w8a", "cluster_size": size, "calibration": "mse", "groups": "weights"} for size in (4, 64)
        ]
        runs += [{"weights": "2w8a", "cluster_size": 4, "calibration": "rms_literal"}]
        runs += [{"weights": "2w8a", "cluster_size": 4, "last": None}]
    return [{"network": network, **DEFAULTS, **run} for run in runs]


def recipe(run: dict[str, Any]) -> Recipe:
    """The recipe of a run."""
    if run["weights"] == "8w8a":
        return klb.recipes.get("dfp-8w8a")
    choices = {name: run[name] for name in ("calibration", "groups", "last")}
    return klb.recipes.dfp(int(run["weights"][0]), run["cluster_size"], **choices)


def measure(run: dict[str, Any], data: dict[str, Any], folder: Path, work: Path) -> dict[str, Any]:
    """What one run found."""
    network = NETWORKS[run["network"]]
    keras.utils.set_random_seed(0)
    model, images, (labelled, classes) = network.make(folder), data["tuning"], data["labelled"]
    if run["weights"] == "float":
        return {"accuracy": keras_accuracy(model, labelled, classes)}
    if run["statistics"] == "unfolded":
        unfold_batch_norms(model, images)
    started = time.perf_counter()
    quantized, _ = klb.quantize_model(model, recipe(run))
    found: dict[str, Any] = {"convert_s": round(time.perf_counter() - started, 1)}
    prepare(quantized, images, network.batch_size, renew=run["statistics"] != "old")
    if run["tuning"] == "labels":
        found |= tune(quantized, folder)
        prepare(quantized, images, network.batch_size, renew=True)
    elif run["tuning"] == "teacher":
        found |= tune_without_labels(quantized, network.make(folder), imagenet.images(folder, imagenet.TRAINING)[0])
        prepare(quantized, images, network.batch_size, renew=False)
    found |= clustered_errors(quantized)
    file = work / f"{run['network']}_{os.getpid()}.tflite"
    return found | {"accuracy": file_accuracy(quantized, file, labelled, classes), "bytes": file.stat().st_size}


def clustered_errors(quantized: keras.Model) -> dict[str, float]:
    """``|W - Q|^2 / |W|^2``, and the part of it that fitting int8 adds: means over the clustered layers."""
    rows = [row for row in klb.weight_errors(quantized).layers if row.quantizer.startswith("Clustered")]
    if not rows:
        return {}
    return {
        "weight_error": sum(row.relative for row in rows) / len(rows),
        "weight_error_to_fit_int8": sum(row.added for row in rows) / len(rows),
    }


def prepare(quantized: keras.Model, images: Any, batch_size: int, renew: bool) -> None:
    """Ranges, statistics with the quantized weights, ranges again."""
    calibration = images[:: max(1, len(images) // CALIBRATION_IMAGES)][:CALIBRATION_IMAGES]
    klb.calibrate(quantized, calibration, batch_size=batch_size, verbose=0)
    if renew:
        klb.reestimate_batch_norms(quantized, images, batch_size=batch_size, check=False, verbose=0)
        klb.calibrate(quantized, calibration, batch_size=batch_size, verbose=0)


def key(run: dict[str, Any]) -> tuple[Any, ...]:
    """What tells runs apart."""
    return tuple(run[name] for name in KEYS)


def read(path: Path) -> list[dict[str, Any]]:
    """The finished runs."""
    return json.loads(path.read_text())["runs"] if path.exists() else []


@contextlib.contextmanager
def update(path: Path):
    """Gives the finished runs to add to, and stores them as a whole: processes can share the file."""
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs = read(path)
        yield runs
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
        os.replace(partial, path)


def table(runs: list[dict[str, Any]]) -> str:
    """The finished runs as text."""
    lines = [f"{'network':<13} {'weights':<6} {'N':>3}  {'what':<34} {'top-1 %':>8} {'weight error':>12}"]
    for run in sorted(runs, key=lambda run: [list(NETWORKS).index(run["network"]), *map(str, key(run)[1:])]):
        what = " ".join(str(run[name]) for name in KEYS[3:-1] if run[name] != DEFAULTS[name])
        what += "" if run["last"] else " last layer too"
        error = f"{run['weight_error']:.4f}" if "weight_error" in run else "-"
        size = run["cluster_size"] or "-"
        accuracy = 100 * run["accuracy"]
        lines.append(f"{run['network']:<13} {run['weights']:<6} {size!s:>3}  {what:<34} {accuracy:8.2f} {error:>12}")
    return "\n".join(lines)


def main(arguments: Any = None) -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=0, help="threads per operation; 0: all cores")
    parser.add_argument("--untuned", action="store_true", help="leave the runs with fine-tuning out")
    parser.add_argument("--first", type=int, help="only so many runs of each network; the important ones come first")
    parser.add_argument("--images", type=int, default=10_000, help="labelled images to look at, at most")
    parser.add_argument("--output", type=Path, default=HERE / "result.json")
    parsed = parser.parse_args(arguments)
    if parsed.threads:
        tf.config.threading.set_intra_op_parallelism_threads(parsed.threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    folder, work = data_folder(), HERE / "work"
    work.mkdir(exist_ok=True)
    for name in parsed.networks:
        data: dict[str, Any] = {}
        for run in plan(name)[: parsed.first]:
            if key(run) in {key(done) for done in read(parsed.output)} or (parsed.untuned and run["tuning"]):
                continue
            if not data:
                network = NETWORKS[name]
                data = {
                    "tuning": network.tuning(folder, network.statistics),
                    "labelled": network.labelled(folder, parsed.images),
                }
            started = time.perf_counter()
            found = measure(run, data, folder, work) | {"images": len(data["labelled"][1])}
            wall = round(time.perf_counter() - started, 1)
            with update(parsed.output) as runs:
                runs.append({**run, **found, "wall_s": wall, "machine": machine()})
            print(*key(run), f"{100 * found['accuracy']:.2f} % in {wall:.0f} s", flush=True)
            keras.backend.clear_session()
    print(table(read(parsed.output)))


if __name__ == "__main__":
    main()
