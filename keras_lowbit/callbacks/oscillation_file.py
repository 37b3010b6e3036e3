"""What `FreezeOscillations` knows, in a file: for the kernels it was written with, and no others."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_lowbit.files import FilePath, atomic_write, check_writable, make_folder_of, name_of, read_whole
from keras_lowbit.keras_graph.variables import fingerprint, to_numpy
from keras_lowbit.numerics.oscillation import Oscillation
from keras_lowbit.sealed import DamagedError, seal, unseal

_KEY = "oscillations"


class OscillationFile:
    """The states of two epochs, the last one and that before: a backup of the model may be one epoch behind."""

    def __init__(self, path: FilePath) -> None:
        self.path = path
        make_folder_of(path)
        check_writable(path)

    def write(self, layers: Sequence[Any], states: Sequence[Oscillation]) -> None:
        """Keep a state beside the newest one that is there."""
        kernels = fingerprint([layer.kernel for layer in layers])
        arrays = {f"0/{place}/{name}": array for place, state in enumerate(states) for name, array in _arrays(state)}
        prints = [kernels]
        if os.path.exists(self.path):
            before, kept = self._content()
            if before[0] != kernels:
                prints.append(before[0])
                arrays |= {f"1{name[1:]}": array for name, array in kept.items() if name.startswith("0/")}
        atomic_write(self.path, seal(_KEY, {"kernels": prints}, arrays))

    def read(self, layers: Sequence[Any]) -> list[Oscillation] | None:
        """The state of these kernels; None without a file. ValueError for a damaged one and one of other kernels."""
        if not os.path.exists(self.path):
            return None
        prints, arrays = self._content()
        kernels = fingerprint([layer.kernel for layer in layers])
        if kernels not in prints:
            raise ValueError(
                f"{name_of(self.path)!r} was written with other kernels than the model has now. Delete it to begin anew, or "
                "restore the model that it belongs to."
            )
        which = prints.index(kernels)
        return [
            Oscillation(*(np.asarray(arrays[f"{which}/{place}/{name}"]) for name in Oscillation._fields))
            for place in range(len(layers))
        ]

    def _content(self) -> tuple[list[str], dict[str, np.ndarray]]:
        try:
            about, arrays = unseal(_KEY, read_whole(self.path))
        except DamagedError as error:
            raise ValueError(
                f"{name_of(self.path)!r} holds no oscillations, or is damaged ({error}). Delete it to begin anew."
            ) from error
        return about["kernels"], arrays


def _arrays(state: Oscillation) -> list[tuple[str, np.ndarray]]:
    return [(name, to_numpy(value)) for name, value in zip(state._fields, state, strict=True)]
