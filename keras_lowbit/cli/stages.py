"""The finished steps of a conversion on the disk: what a killed `keras-lowbit convert` goes on from.

A folder beside the output, with `state.json` (settings of the run, the rows of its table) and the models that the steps gave,
the newest of each kind. A model is written before `state.json` names it, and what that no longer names is deleted after:
the folder always stands for a whole step.
"""

import contextlib
import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
from absl import flags

from keras_lowbit.cli.settings import check_same, read_fields
from keras_lowbit.files import atomic_write, printable
from keras_lowbit.keras_graph.depth import read_model

ENDING = ".stages"
_STATE, _TUNING = "state.json", "tune.state"
_OURS = re.compile(r"state\.json|tune\.state|[a-z]+-\d+\.keras|\.keras_lowbit-.*")


@dataclasses.dataclass(frozen=True)
class Step:
    """A row of the table. outcome: in words."""

    step: str
    outcome: str
    seconds: float


class Stages:
    """The steps of one conversion, in a folder that the first finished one makes.

    settings: of the run, with which the steps were made.   steps: the finished ones.   writing: the outputs are about to be
    written, or some are.
    """

    def __init__(self, folder: str, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        self.steps: list[Step] = []
        self.writing = False
        self._models: dict[str, str] = {}

    @property
    def tuning(self) -> str:
        """The file for the state within the longest step."""
        return self._path(_TUNING)

    def open(self, resume: bool, force: bool) -> None:
        """Take up what is there if `resume`, else begin anew. flags.Error for another run's, and for one that would be lost."""
        remedy = f"or delete {printable(self.folder)} to begin anew"
        found = read_fields(self._path(_STATE), f"Give the same flags, {remedy}")
        if found is None or (force and not resume):
            self.clear()
            return
        if not resume:
            raise flags.Error(
                f"{printable(self.folder)} holds {len(found['steps'])} steps of a conversion that was stopped. Go on with "
                "--resume, or begin anew with --force"
            )
        check_same(printable(self.folder), found["settings"], self.settings, remedy)
        self.steps = [Step(**row) for row in found["steps"]]
        self._models, self.writing = found["models"], found["writing"]

    def model(self, kind: str, made_by: int) -> keras.Model | None:
        """The newest model of a kind, if that step made it; a later step has replaced the others."""
        name = self._models.get(kind)
        if name != _name(kind, made_by):
            return None
        try:
            return read_model(self._path(name), compile=False)
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise ValueError(
                f"{printable(self._path(name))} cannot be read; delete {printable(self.folder)} to begin anew: {error}"
            ) from error

    def keep(self, step: Step, kind: str, model: keras.Model) -> None:
        """A step is finished and gave this model."""
        os.makedirs(self.folder, exist_ok=True)
        name = _name(kind, len(self.steps))
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder, "model.keras")
            model.save(made)
            atomic_write(self._path(name), made.read_bytes())
        self.steps.append(step)
        replaced, self._models = self._models.get(kind), {**self._models, kind: name}
        self._write()
        for path in (self.tuning, *([] if replaced is None else [self._path(replaced)])):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def begin_writing(self) -> None:
        """From here on what stands under the names of the outputs may be this run's own."""
        self.writing = True
        self._write()

    def clear(self) -> None:
        """Delete what is there: `state.json` first, so that what a kill leaves is no state."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(_STATE))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for name in os.listdir(self.folder):
                if _OURS.fullmatch(name):
                    os.unlink(self._path(name))
        with contextlib.suppress(OSError):  # there is none, or something else is in it
            os.rmdir(self.folder)

    def _write(self) -> None:
        fields = {
            "settings": self.settings,
            "steps": list(map(dataclasses.asdict, self.steps)),
            "models": self._models,
            "writing": self.writing,
        }
        atomic_write(self._path(_STATE), json.dumps(fields, indent=1).encode())

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)


def _name(kind: str, place: int) -> str:
    return f"{kind}-{place}.keras"
