"""One run from its beginning, or its last checkpoint, to its record."""

import hashlib
import importlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from studies.common.cifar10 import Split
from studies.common.machine import machine
from studies.runner import checkpoints, networks
from studies.runner.batches import draw_epoch, hold_out
from studies.runner.runs import Run

EVALUATION_BATCH = 500


def train(run: Run, data: tuple[Split, Split], folder: Path, checkpoint: Path) -> dict[str, Any]:
    """The record of a run: curves, accuracies, seconds, machine. Goes on from `checkpoint` if that exists.

    data: training and test images as `load_cifar10` gives them.   folder: of the pretrained networks.
    The test images are looked at once, at the end; the curve is that of the held-out training images.
    """
    steps_of = backend()
    train_split, held_out = hold_out(data[0], run.settings["held_out"])
    batch_size = run.settings["batch_size"]
    model = networks.build(run, folder)
    model.compile(networks.optimizer_of(run, model, len(train_split[0]) // batch_size))
    model.optimizer.build(model.trainable_variables)
    progress = checkpoints.load(checkpoint, model)
    if progress is None:
        networks.prepare(model, run, train_split[0])
        progress = {"curves": {}, "processor_s": 0.0, "wall_s": 0.0, "commits": [], "epochs": 0}
    _same_precision(progress, networks.precision_of(run), checkpoint)
    progress["commits"] = sorted({*progress["commits"], commit()})
    steps = steps_of.Steps(model, networks.loss_of(run), train_split, networks.teacher_of(run, folder))
    predict = steps_of.predictor(model)
    logs: dict[str, float] = {}
    keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, found: logs.update(found))
    callbacks = [*networks.callbacks_of(run), keep]  # which add to the logs
    listeners = keras.callbacks.CallbackList(callbacks, model=model, epochs=run.epochs)
    listeners.on_train_begin()
    for number in range(progress["epochs"], run.epochs):
        clock = time.process_time(), time.perf_counter()
        listeners.on_epoch_begin(number)
        losses, right = steps.run(draw_epoch(len(train_split[0]), batch_size, run.seed, number))
        listeners.on_epoch_end(number, {"loss": float(losses.mean()), "accuracy": float(right.mean())})
        logs["held_out_accuracy"] = accuracy(predict, held_out)
        _note(progress, logs, clock)
        checkpoints.save(checkpoint, model, progress)
        print(_line(run, progress), flush=True)
    return _record(run, model, progress, held_out, data[1], folder)


def _same_precision(progress: dict[str, Any], here: str, checkpoint: Path) -> None:
    """A run is trained in one precision from its first epoch to its last."""
    before = progress.setdefault("precision", here)
    if before != here:
        raise ValueError(
            f"{checkpoint} was trained in {before}, this machine would go on in {here}. Go on where it began, or remove it: "
            "the run then starts anew."
        )


def backend() -> Any:
    """The module with the steps of Keras' backend."""
    name = keras.backend.backend()
    if name not in ("tensorflow", "jax"):
        raise ValueError(f"The runner has steps for the backends tensorflow and jax, not {name!r}. Set KERAS_BACKEND.")
    return importlib.import_module(f"studies.runner.{name}_steps")


def accuracy(predict: Any, split: Split) -> float:
    """Share of right classes, fully quantized."""
    images, labels = split
    starts = range(0, len(images), EVALUATION_BATCH)
    found = np.concatenate([predict(images[start : start + EVALUATION_BATCH]).argmax(-1) for start in starts])
    return float(np.mean(found == labels))


def _note(progress: dict[str, Any], logs: dict[str, float], clock: tuple[float, float]) -> None:
    for name, value in logs.items():
        progress["curves"].setdefault(name, []).append(round(float(value), 5))
    progress["epochs"] += 1
    progress["processor_s"] += time.process_time() - clock[0]
    progress["wall_s"] += time.perf_counter() - clock[1]


def _line(run: Run, progress: dict[str, Any]) -> str:
    last = "  ".join(f"{name} {values[-1]:.4f}" for name, values in progress["curves"].items())
    seconds = progress["processor_s"] / progress["epochs"]
    return f"{run.name} {progress['epochs']}/{run.epochs}: {last}  ({seconds:.0f} processor seconds an epoch)"


def _record(run: Run, model: keras.Model, progress: Any, held_out: Split, test: Split, folder: Path) -> dict[str, Any]:
    exact = networks.build(run, folder, precision="float32")
    exact.set_weights(model.get_weights())
    predict = backend().predictor(exact)
    return {
        **run.identity,
        "test_accuracy": accuracy(predict, test),
        "held_out_accuracy": accuracy(predict, held_out),
        "curves": progress["curves"],
        "precision": progress["precision"],
        "processor_s": round(progress["processor_s"], 1),
        "wall_s": round(progress["wall_s"], 1),
        "weights_sha256": _digest(exact),
        "commits": progress["commits"],
        "machine": machine() | {"backend": keras.backend.backend()},
    }


def _digest(model: keras.Model) -> str:
    digest = hashlib.sha256()
    for values in model.get_weights():
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def commit() -> str:
    """The version of the sources, with "+" where files differ from it."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def as_json(record: dict[str, Any]) -> str:
    """A record as it is stored: every curve on a line of its own."""
    text = json.dumps(record | {"curves": None}, indent=1)
    curves = ",\n".join(f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in record["curves"].items())
    return text.replace('"curves": null', f'"curves": {{\n{curves}\n }}') + "\n"
