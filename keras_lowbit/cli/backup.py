"""The state of a training run after its last whole epoch.

Keras' `BackupAndRestore` writes weights and epoch into two files, one after the other and in place: a kill between or within
leaves weights of another epoch, or half of a file. Here the name of one file says the epoch, and it is there whole or not at
all.
"""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import keras

from keras_lowbit.files import atomic_write, printable

ENDING = ".weights.h5"


class Backup(keras.callbacks.Callback):
    """Writes weights, quantizer and optimizer state to a folder after every epoch, as `epoch-3.weights.h5`."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def restore(self, model: keras.Model) -> int:
        """Give a compiled model the newest state; the epochs behind it, 0 without one. ValueError for a damaged one."""
        epochs = self._epochs()
        if not epochs:
            return 0
        model.optimizer.build(model.trainable_variables)
        path = self._path(epochs[-1])
        try:
            model.load_weights(path)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"the state in {printable(path)} cannot be read; delete it to begin anew: {error}"
            ) from error
        return epochs[-1]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write the state, then drop what it replaces."""
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder, f"state{ENDING}")
            self.model.save_weights(made)
            atomic_write(self._path(epoch + 1), made.read_bytes())
        self._drop(before=epoch + 1)

    def clear(self) -> None:
        """Drop the state of a run that is done."""
        self._drop(before=None)

    def _drop(self, before: int | None) -> None:
        for epoch in self._epochs():
            if before is None or epoch < before:
                os.unlink(self._path(epoch))

    def _epochs(self) -> list[int]:
        found = (re.fullmatch(rf"epoch-(\d+){re.escape(ENDING)}", name) for name in os.listdir(self.folder))
        return sorted(int(match[1]) for match in found if match)

    def _path(self, epoch: int) -> str:
        return os.path.join(self.folder, f"epoch-{epoch}{ENDING}")
