"""Batches for distillation: shuffled and with the teacher's logits at hand for arrays, as they come for the rest."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from keras import tree

from keras_lowbit import data as klb_data
from keras_lowbit.distill.distiller import TEACHER, Distiller
from keras_lowbit.guard import held_back_rows
from keras_lowbit.keras_graph.calls import as_taken

# Teacher logits are kept for data up to this many bytes of them.
_CACHE_LIMIT = 2**30


class Source:
    """Epochs of (inputs, targets) for a distiller; an epoch of arrays is a function of (seed, epoch).

    cache: compute the teacher's logits once; None: where data are arrays, epochs several and the logits below 1 GiB.
    """

    def __init__(self, model: Any, data: Any, batch_size: int, steps: int | None, labels: Any, seed: int) -> None:
        self.model, self.data, self.batch_size, self.steps, self.seed = model, data, batch_size, steps, seed
        self.arrays = as_taken(model, _arrays(data, batch_size))
        self.labels = None if labels is None else _label_arrays(labels)
        self.teacher: list[np.ndarray] | None = None
        self.count = klb_data.batch_count(data, batch_size, steps)
        if self.labels is not None:
            self._check_labels()

    def _check_labels(self) -> None:
        lengths = sorted({len(leaf) for leaf in tree.flatten(self.labels)})
        if self.arrays is None:
            raise ValueError("labels= needs data in arrays. For data sets use klb.Distiller and fit.")
        if lengths != [self.samples]:
            raise ValueError(f"labels= holds {lengths} labels for {self.samples} samples. Give one for each.")
        logits = tree.flatten(getattr(self.model, "outputs", None) or [])
        for classes, output in zip(tree.flatten(self.labels), logits, strict=False):
            _check_classes(classes, output.shape)

    @property
    def samples(self) -> int:
        """Samples in the arrays."""
        return len(tree.flatten(self.arrays)[0])

    def split(self) -> "tuple[Source, Source | None]":
        """What trains and what judges: held-back samples of arrays, the first batch of data that can be read again."""
        if self.arrays is None:
            if isinstance(self.data, Iterator):
                return self, None
            first = next(klb_data.batches(self.data, self.batch_size, self.steps))
            return self, Source(self.model, first, self.batch_size, None, None, self.seed)
        judging = held_back_rows(self.samples)
        training = np.setdiff1d(np.arange(self.samples), judging)
        return self._part(training if len(training) else judging, self.steps), self._part(judging, None)

    def _part(self, rows: np.ndarray, steps: int | None) -> "Source":
        arrays = tree.map_structure(lambda leaf: leaf[rows], self.arrays)
        labels = None if self.labels is None else tree.map_structure(lambda leaf: leaf[rows], self.labels)
        return Source(self.model, arrays, self.batch_size, steps, labels, self.seed)

    def cache(self, distiller: Distiller, epochs: int, wanted: bool | None) -> None:
        """Compute the teacher's logits for every sample, if that is wanted and possible."""
        if self.arrays is None:
            if wanted:
                raise ValueError("cache_teacher=True needs data in arrays.")
            return
        shapes = [output.shape[1:] for output in tree.flatten(distiller.teacher_logits.outputs or [])]
        known = bool(shapes) and all(None not in shape for shape in shapes)
        small = known and 4 * self.samples * sum(int(np.prod(shape)) for shape in shapes) <= _CACHE_LIMIT
        if wanted or (wanted is None and epochs > 1 and small):
            # Uncompiled, a model predicts with XLA, whatever the distiller was compiled with.
            distiller.teacher_logits.compile(jit_compile=distiller.jit_compile)
            found = distiller.teacher_logits.predict(self.arrays, batch_size=self.batch_size, verbose=0)
            self.teacher = [np.asarray(logits, np.float32) for logits in tree.flatten(found)]

    def epoch(self, epoch: int) -> Iterator[tuple[Any, Any]]:
        """Inputs and targets of each batch of one epoch."""
        if self.arrays is None:
            found = klb_data.batches(self.data, self.batch_size, self.steps)
            return ((as_taken(self.model, batch), None) for batch in found)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.samples)
        chosen = (order[start : start + self.batch_size] for start in range(0, self.samples, self.batch_size))
        return (self._batch(rows) for _, rows in zip(range(self.count or 0), chosen, strict=False))

    def _batch(self, rows: np.ndarray) -> tuple[Any, Any]:
        targets: dict[str, Any] = {}
        if self.teacher is not None:
            targets[TEACHER] = [logits[rows] for logits in self.teacher]
        if self.labels is not None:
            targets["labels"] = tree.map_structure(lambda leaf: leaf[rows], self.labels)
        inputs = tree.map_structure(lambda leaf: leaf[rows], self.arrays)
        return inputs, (targets if self.teacher is not None else targets.get("labels"))


def _label_arrays(labels: Any) -> Any:
    """Labels as arrays; a flat list of numbers is one, any other list holds one for each output."""
    if isinstance(labels, list | tuple) and all(np.ndim(label) == 0 for label in labels):
        return np.asarray(labels)
    found = tree.map_structure(np.asarray, labels)
    if any(leaf.ndim == 0 for leaf in tree.flatten(found)):
        raise ValueError(
            "labels= holds numbers in nested lists. Give an array: np.asarray(labels), one for each output."
        )
    return found


def _check_classes(labels: np.ndarray, shape: tuple[int | None, ...]) -> None:
    """ValueError for class numbers that logits of that shape do not have; probabilities [..., classes] are not looked at."""
    count = shape[-1]
    if count is None or count == 1 or (labels.ndim == len(shape) and labels.shape[-1] == count):
        return
    wrong = labels[(labels != np.floor(labels)) | (labels < 0) | (labels >= count)]
    if wrong.size:
        raise ValueError(
            f"labels= holds {wrong.size} values that are no class, the first is {wrong[0]!r}; give whole numbers from 0 to "
            f"{count - 1}, or probabilities with an axis of {count}."
        )


def check_rereadable(name: str, data: Any, steps: int | None, times: int) -> None:
    """ValueError for data that can be read once, read to the end by the first of several readings."""
    if isinstance(data, Iterator) and steps is None and times > 1:
        raise ValueError(
            f"{name} is a {type(data).__name__}, which can be read once, but it is needed {times} times. Give the function "
            "that makes it, arrays or a data set."
        )


def _arrays(data: Any, batch_size: int) -> Any:
    """The data as NumPy arrays in their structure, looked through for bad values; None for data of another kind."""
    is_array = hasattr(data, "shape") and hasattr(data, "dtype")
    if not is_array and not isinstance(data, Mapping | list | tuple):
        return None
    for _ in klb_data.batches(data, batch_size):
        pass
    if is_array:
        return np.asarray(data)
    if isinstance(data, Mapping):
        return {name: np.asarray(part) for name, part in data.items()}
    return [np.asarray(part) for part in data]
