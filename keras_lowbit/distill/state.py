"""Snapshots of the variables that learn, and the checkpoint file of a distillation."""

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_lowbit.files import atomic_write
from keras_lowbit.keras_graph.variables import to_numpy

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Values of variables and the loss of the epoch that made them."""

    values: tuple[np.ndarray, ...]
    loss: float

    @classmethod
    def of(cls, variables: Sequence[Any], loss: float) -> "Snapshot":
        """The values as they are now."""
        return cls(tuple(np.array(to_numpy(variable)) for variable in variables), loss)

    def restore(self, variables: Sequence[Any]) -> None:
        """Give the variables these values."""
        for variable, value in zip(variables, self.values, strict=True):
            variable.assign(value)


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a checkpoint says: epochs and steps done, the history so far and the best state.

    written: `fingerprint` of the weights into which the factors of the finished run were multiplied, or None.
    """

    epoch: int
    step: int
    history: dict[str, list[float]]
    best: Snapshot
    written: str | None


def save(
    path: str | os.PathLike[str], distiller: Any, epoch: int, step: int, history: dict[str, list[Any]], best: Snapshot
) -> None:
    """Write variables, optimizer and progress; the file appears complete or not at all."""
    groups = {"variable": distiller.trainable_variables, "optimizer": distiller.optimizer.variables}
    arrays: dict[str, Any] = {f"{name}_{i}": to_numpy(v) for name, found in groups.items() for i, v in enumerate(found)}
    arrays |= {f"best_{i}": value for i, value in enumerate(best.values)}
    plain = {name: [float(value) for value in values] for name, values in history.items()}
    about = {"format_version": FORMAT_VERSION, "epoch": epoch, "step": step, "history": plain, "best_loss": best.loss}
    _write(path, about, arrays)


def mark_written(path: str | os.PathLike[str], weights: Sequence[Any]) -> None:
    """Say in a checkpoint that its factors are multiplied in, and what that gave."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    about = json.loads(str(arrays.pop("about")))
    _write(path, about | {"written": fingerprint(weights)}, arrays)


def fingerprint(weights: Sequence[Any]) -> str:
    """The same for weights of the same bits."""
    found = hashlib.sha256()
    for weight in weights:
        found.update(to_numpy(weight).tobytes())
    return found.hexdigest()


def _write(path: str | os.PathLike[str], about: dict[str, Any], arrays: dict[str, Any]) -> None:
    stream = io.BytesIO()
    np.savez(stream, about=np.array(json.dumps(about)), **arrays)
    atomic_write(path, stream.getvalue())


def load(path: str | os.PathLike[str], distiller: Any) -> Progress:
    """Give a distiller, its optimizer built, the state of a checkpoint; a ValueError if it is not one of this model."""
    variables = [*distiller.trainable_variables, *distiller.optimizer.variables]
    try:
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{os.fspath(path)} is no checkpoint of distill ({error}). Delete it to start anew."
        ) from error
    count = len(distiller.trainable_variables)
    names = [f"variable_{i}" for i in range(count)] + [f"optimizer_{i}" for i in range(len(variables) - count)]
    fits = all(n in arrays and arrays[n].shape == tuple(v.shape) for n, v in zip(names, variables, strict=True))
    if not fits or about["format_version"] > FORMAT_VERSION or f"variable_{count}" in arrays:
        raise ValueError(
            f"The checkpoint {os.fspath(path)} is of another model or other variables ({count} wanted). "
            "Delete it, or give another path."
        )
    for name, variable in zip(names, variables, strict=True):
        variable.assign(arrays[name])
    best = Snapshot(tuple(arrays[f"best_{i}"] for i in range(count)), float(about["best_loss"]))
    return Progress(about["epoch"], about["step"], about["history"], best, about.get("written"))
