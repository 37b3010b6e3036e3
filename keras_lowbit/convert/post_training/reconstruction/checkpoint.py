"""What blocks have learnt so far, in a file."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_lowbit.convert.post_training.reconstruction.ranges import RangeFactor
from keras_lowbit.convert.post_training.reconstruction.trainer import Learnt
from keras_lowbit.files import FilePath, atomic_write, check_writable, make_folder_of, name_of, read_whole
from keras_lowbit.keras_graph.variables import fingerprint
from keras_lowbit.sealed import DamagedError, seal, unseal

_KEY = "reconstruct"
_UP, _BIAS, _FACTOR = "up ", "bias ", "factor "  # before the paths of layers, and the keys of ranges


class Checkpoint:
    """Where the weights of each layer were rounded up, and its bias, and the factors of ranges, of the blocks that are done.

    path: of the file, or None.   layers, ranges: those that train, as they are before the first block; layers by path.
    settings: how they train; a file of others is refused. ValueError for a damaged file and one of another model.
    """

    def __init__(
        self,
        path: FilePath | None,
        layers: Mapping[str, Any],
        ranges: Sequence[RangeFactor],
        settings: Mapping[str, Any],
    ) -> None:
        self.path, self._shapes = path, {_UP + name: tuple(layer.kernel.shape) for name, layer in layers.items()}
        self._shapes |= {
            _BIAS + name: tuple(layer.bias.shape) for name, layer in layers.items() if layer.bias is not None
        }
        self._shapes |= {_FACTOR + factor.key: tuple(factor.variable.shape) for factor in ranges}
        self._about = {"settings": dict(settings), "weights": fingerprint([layer.kernel for layer in layers.values()])}
        self.layers: dict[str, Learnt] = {}  # of the blocks that are done, by path
        self.factors: dict[str, np.ndarray] = {}  # of their ranges, by key
        if path is not None:
            make_folder_of(path)
            check_writable(path)
            if os.path.exists(path):
                self._read(path)

    def has(self, paths: Sequence[str]) -> bool:
        """Whether the block of these layers is done."""
        return all(path in self.layers for path in paths)

    def add(self, learnt: Mapping[str, Learnt], factors: Mapping[str, np.ndarray]) -> None:
        """Write what one more block learnt."""
        self.layers |= learnt
        self.factors |= factors
        if self.path is not None:
            arrays = {_UP + name: found.up.astype(np.uint8) for name, found in self.layers.items()}
            arrays |= {_BIAS + name: found.bias for name, found in self.layers.items() if found.bias is not None}
            arrays |= {_FACTOR + key: value for key, value in self.factors.items()}
            atomic_write(self.path, seal(_KEY, self._about, arrays))

    def _read(self, path: FilePath) -> None:
        try:
            about, arrays = unseal(_KEY, read_whole(path))
        except DamagedError as error:
            raise ValueError(
                f"{name_of(path)!r} is no checkpoint of reconstruct, or damaged ({error}). Delete it to start anew, or give "
                "another path."
            ) from error
        fits = all(self._shapes.get(name) == array.shape for name, array in arrays.items())
        if about != self._about or not fits:
            raise ValueError(
                f"The checkpoint {name_of(path)!r} is of another model, other weights or other settings ({str(about)[:200]}). "
                "Delete it, or give another path."
            )
        paths = [name.removeprefix(_UP) for name in arrays if name.startswith(_UP)]
        self.layers = {path: Learnt(arrays[_UP + path].astype(bool), arrays.get(_BIAS + path)) for path in paths}
        self.factors = {name.removeprefix(_FACTOR): arrays[name] for name in arrays if name.startswith(_FACTOR)}
