"""Snapshots of the variables that learn, and the checkpoint file of a distillation."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_lowbit.files import FilePath, atomic_write, name_of, read_whole
from keras_lowbit.keras_graph.variables import fingerprint, to_numpy
from keras_lowbit.sealed import DamagedError, seal, unseal

FORMAT_VERSION = 2
_KEY = "distill"
_HISTORY = "history:"
_FIELDS = {"format_version": (int,), "epoch": (int,), "step": (int,), "written": (str, type(None))}


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


def save(path: FilePath, distiller: Any, epoch: int, step: int, history: dict[str, list[Any]], best: Snapshot) -> None:
    """Write variables, optimizer and progress; the file appears complete or not at all."""
    arrays: dict[str, Any] = {name: to_numpy(variable) for name, variable in _variables(distiller).items()}
    arrays |= {f"best_{i}": value for i, value in enumerate(best.values)} | {"best_loss": np.float64(best.loss)}
    arrays |= {_HISTORY + name: np.array(values, np.float64) for name, values in history.items()}
    _write(path, {"format_version": FORMAT_VERSION, "epoch": epoch, "step": step, "written": None}, arrays)


def mark_written(path: FilePath, weights: Sequence[Any]) -> None:
    """Say in a checkpoint that its factors are multiplied in, and what that gave."""
    about, arrays = _read(path)
    _write(path, about | {"written": fingerprint(weights)}, arrays)


def load(path: FilePath, distiller: Any) -> Progress:
    """Give a distiller, its optimizer built, the state of a checkpoint; a ValueError, and nothing is changed, if it is not one
    of this model."""
    about, arrays = _read(path)
    variables, history = _variables(distiller), _taken_history(path, about, arrays)
    count = len(distiller.changing_variables)
    wanted: dict[str, Any] = {name: to_numpy(variable) for name, variable in variables.items()}
    wanted |= {f"best_{i}": wanted[f"variable_{i}"] for i in range(count)} | {"best_loss": np.float64(0)}
    fits = {name: (array.dtype, array.shape) for name, array in wanted.items()}
    if fits != {name: (array.dtype, array.shape) for name, array in arrays.items()}:
        raise ValueError(
            f"The checkpoint {name_of(path)!r} is of another model or other variables ({count} wanted). "
            "Delete it, or give another path."
        )
    for name, variable in variables.items():
        variable.assign(arrays[name])
    best = Snapshot(tuple(arrays[f"best_{i}"] for i in range(count)), float(arrays["best_loss"]))
    return Progress(about["epoch"], about["step"], history, best, about["written"])


def _variables(distiller: Any) -> dict[str, Any]:
    groups = {"variable": distiller.changing_variables, "optimizer": distiller.optimizer.variables}
    return {f"{name}_{i}": variable for name, found in groups.items() for i, variable in enumerate(found)}


def _write(path: FilePath, about: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    atomic_write(path, seal(_KEY, about, {name: np.asarray(array) for name, array in arrays.items()}))


def _read(path: FilePath) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a checkpoint says, of the right types, and its arrays."""
    try:
        content = read_whole(path)
        about, arrays = unseal(_KEY, content)
    except DamagedError as error:
        kind = "a zip file, as former versions wrote" if content[:2] == b"PK" else error
        raise _unreadable(path, str(kind)) from error
    if not isinstance(about, dict) or about.keys() != _FIELDS.keys():
        raise _unreadable(path, f"it says {str(about)[:80]}")
    for field, kinds in _FIELDS.items():
        if type(about[field]) not in kinds:
            raise _unreadable(path, f"its {field} is {str(about[field])[:80]!r}")
    if not 1 <= about["format_version"] <= FORMAT_VERSION:
        raise _unreadable(path, f"its format version is {about['format_version']}, this one reads {FORMAT_VERSION}")
    return about, arrays


def _taken_history(path: FilePath, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """The history out of the arrays. An epoch leaves at least its learning rate there: more epochs than that are no truth."""
    names = [name for name in arrays if name.startswith(_HISTORY)]
    found = {name.removeprefix(_HISTORY): arrays.pop(name) for name in names}
    lengths = [len(values) if values.dtype == np.float64 and values.ndim == 1 else -1 for values in found.values()]
    if (
        min(lengths, default=0) < 0
        or max(lengths, default=0) != about["epoch"]
        or about["epoch"] < 1
        or about["step"] < 0
    ):
        raise _unreadable(path, f"it says epoch {about['epoch']}, step {about['step']} with histories of {lengths}")
    return {name: values.tolist() for name, values in found.items()}


def _unreadable(path: FilePath, reason: str) -> ValueError:
    return ValueError(
        f"{name_of(path)!r} is no checkpoint of distill, or damaged ({reason}). Delete it to start anew, or give another path."
    )
