"""Two networks run side by side, block by block, over all samples; values between blocks in half precision."""

import tempfile
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_lowbit.convert.post_training.reconstruction.blocks import ancestors
from keras_lowbit.keras_graph.calls import CallGraph, run_calls

_LARGEST_HALF = 6e4


class Replay:
    """What a network's tensors hold for all samples, as far as it has run.

    batches: inputs in the graph's order, one list for each batch.   in_memory: bytes of one tensor beyond which it lies in a
    file without a name instead, which goes when nobody reads it any more.
    """

    def __init__(self, graph: CallGraph, batches: Sequence[Sequence[np.ndarray]], in_memory: int) -> None:
        self.graph, self.in_memory = graph, in_memory
        self._sizes = [len(batch[0]) for batch in batches]
        arrays = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
        self._values = {key: self._stored(array) for key, array in zip(graph.inputs, arrays, strict=True)}

    def __getitem__(self, key: int) -> np.ndarray:
        """A tensor of all samples."""
        self.run_to([key])
        return self._values[key]

    def run_to(self, keys: Sequence[int]) -> None:
        """Make these tensors of those that are there."""
        for key in keys:
            if key not in self._values:
                self._values[key] = self._run(key)

    def again(self, key: int, inputs: Sequence[int]) -> np.ndarray:
        """A tensor made anew of its block's inputs, with the weights as they are now."""
        self.run_to(inputs)
        self._values[key] = self._run(key, inputs)
        return self._values[key]

    def keep_only(self, keys: Sequence[int]) -> None:
        """Forget the other tensors; the inputs stay."""
        wanted = {*keys, *self.graph.inputs}
        self._values = {key: value for key, value in self._values.items() if key in wanted}

    def _run(self, key: int, inputs: Sequence[int] | None = None) -> np.ndarray:
        known = tuple(self._values) if inputs is None else tuple(inputs)
        calls = ancestors(self.graph, key, known)
        reads = [k for k in known if any(k in call.inputs for call in calls)]
        parts, start = [], 0
        for size in self._sizes:
            rows = slice(start, start := start + size)
            values = {k: _tensor(self._values[k][rows]) for k in reads}
            run_calls(calls, [values], keep=[key])
            parts.append(_halved(keras.ops.convert_to_numpy(values[key])))
        if len({part.dtype for part in parts}) > 1:
            parts = [part.astype(np.float32) for part in parts]
        return self._stored(np.concatenate(parts))

    def _stored(self, array: np.ndarray) -> np.ndarray:
        if array.nbytes <= self.in_memory:
            return array
        with tempfile.TemporaryFile() as file:
            stored = np.memmap(file, array.dtype, "w+", shape=array.shape)
        stored[:] = array
        return stored


def _tensor(array: np.ndarray) -> Any:
    return keras.ops.convert_to_tensor(array.astype(np.float32) if array.dtype == np.float16 else np.asarray(array))


def _halved(array: np.ndarray) -> np.ndarray:
    """Reals as float16 where none of them overflows."""
    if array.dtype.kind != "f" or array.dtype.itemsize <= 2 or np.abs(array).max(initial=0.0) > _LARGEST_HALF:
        return array
    return array.astype(np.float16)
