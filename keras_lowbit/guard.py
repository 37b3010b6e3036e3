"""Changes of a model that are judged on samples they were not made from, and taken back where they did harm.

Every function that corrects a model without training it (biases, rounding, equalization, statistics) and `distill` goes through
here: `Samples` keeps a part of the data back, `guarded` measures before and after, and what did not help is undone and said.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_lowbit.arguments import check_flag
from keras_lowbit.data import Batches, batch_count, samples_in, take
from keras_lowbit.keras_graph.calls import CallGraph, calls_of, inputs_in_order
from keras_lowbit.keras_graph.variables import to_numpy

_EVERY = 4  # of so many samples one is held back
_MOST = 256  # samples held back: they stay in memory


class Samples:
    """Data in two parts: iterating gives the batches that a change is made from, `held_back` those that judge it.

    Of `validation_data` if they are given, else of every fourth sample of the data, 256 at most, evenly over arrays; of a
    single sample, that one. Without `check` nothing is held back. Iterating a second time reads the data again.
    rows: which samples of the data are held back, counted from 0; empty with `validation_data`.   read: samples of the data.
    """

    def __init__(self, data: Batches, validation_data: Any = None, check: bool = True) -> None:
        check_flag("A correction", "check", check)
        self.data, self.check = data, check
        self.held_back: list[Any] = []
        self.rows: list[int] = []
        self.read = 0
        self.unseen = True
        self._splits = check and validation_data is None
        if check and validation_data is not None:
            self.held_back = list(Batches(validation_data, data.batch_size))

    def __iter__(self) -> Iterator[Any]:
        return self._split(iter(self.data))

    def with_progress(self) -> Iterator[Any]:
        """The batches; a progress bar counts them."""
        return self._split(self.data.with_progress())

    def hold_back(self) -> None:
        """Read the data for the part that is held back alone."""
        for _ in self:
            pass

    def _split(self, stream: Iterator[Any]) -> Iterator[Any]:
        if not self._splits:
            self.read = 0
            for batch in stream:
                self.read += samples_in(batch)
                yield batch
            return
        self.held_back, self.rows, self.unseen = [], [], True
        every, start, last = self._every(), 0, None
        for batch in stream:
            count = samples_in(batch)
            places = np.arange(start, start + count)
            chosen = np.flatnonzero(places % every == every - 1)[: _MOST - len(self.rows)]
            start += count
            if len(chosen):
                self._hold_back(batch, chosen, places)
                batch = take(batch, np.setdiff1d(np.arange(count), chosen))
            if last is not None:
                yield last
            last = batch if samples_in(batch) else None
        self.read = start
        if not self.rows and last is not None:  # fewer samples than `every`
            count = samples_in(last)
            self._hold_back(last, np.array([count - 1]), np.arange(start - count, start))
            self.unseen = start > 1
            last = take(last, np.arange(count - 1)) if count > 1 else None if self.unseen else last
        if last is not None:
            yield last

    def _hold_back(self, batch: Any, chosen: np.ndarray, places: np.ndarray) -> None:
        self.held_back.append(take(batch, chosen))
        self.rows.extend(int(place) for place in places[chosen])

    def _every(self) -> int:
        count = batch_count(self.data.data, self.data.batch_size, self.data.steps)
        return _distance((count or 0) * self.data.batch_size)

    @property
    def count(self) -> int:
        """Samples held back."""
        return sum(map(samples_in, self.held_back))


def _distance(samples: int) -> int:
    """Of so many samples one is held back."""
    return max(_EVERY, -(-samples // _MOST))


def held_back_rows(count: int) -> np.ndarray:
    """Which of `count` samples in arrays are held back: every fourth, 256 at most; the last of fewer than four."""
    every = _distance(count)
    return np.arange(every - 1, count, every) if count >= every else np.array([count - 1])


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a change did to the error on samples that judge it; prints as a sentence.

    before, after: the error, 0 at best, such as noise over signal (`noise`); None where nothing was measured.
    kept: whether the change stays.   samples: how many judged it.   unseen: it was not made from them.
    """

    before: float | None = None
    after: float | None = None
    kept: bool = True
    samples: int = 0
    unseen: bool = True

    def __str__(self) -> str:
        if self.before is None or self.after is None:
            return "not checked"
        part = f"{self.samples} held-back samples" if self.unseen else "the data themselves: there is one sample only"
        return f"error {self.before:.4g} -> {self.after:.4g} on {part}, {'kept' if self.kept else 'taken back'}"


def judged(samples: Samples, before: float, after: float) -> Verdict:
    """The verdict on a change that gave these errors: it stays unless the error grew or is not finite."""
    return Verdict(before, after, bool(np.isfinite(after) and after <= before), samples.count, samples.unseen)


def guarded(
    samples: Samples, variables: Sequence[Any], change: Callable[[], None], measure: Callable[[], float]
) -> Verdict:
    """Make a change of some variables and keep it only if it did not make `measure` worse.

    change: makes it.   measure: the error as the variables are now, on what `samples` hold back; without `samples.check` it
    is not called and the change stays.   If `change` or `measure` fails, nothing has changed.
    """
    before = [np.array(to_numpy(variable)) for variable in variables]

    def swap(values: list[np.ndarray]) -> None:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    try:
        change()
        if not samples.check:
            return Verdict()
        after, changed = measure(), [np.array(to_numpy(variable)) for variable in variables]
        swap(before)
        verdict = judged(samples, measure(), after)
    except BaseException:
        swap(before)
        raise
    if verdict.kept:
        swap(changed)
    return verdict


def say_left_out(what: str, verdict: Verdict, remedy: str) -> None:
    """Warn if a change was taken back. what: begins the sentence, "equalize left ... as it was"."""
    if not verdict.kept:
        warnings.warn(
            f"{what}: it did not help ({verdict}). {remedy} check=False keeps the change unchecked.", stacklevel=3
        )


def outputs_of(model: keras.Model, batches: Sequence[Any], graph: CallGraph | None = None) -> list[np.ndarray]:
    """The outputs of a model at inference for all batches, flattened, each [samples, ...]."""
    graph = graph or calls_of(model, inline=True)
    parts = [graph.run(map(keras.ops.convert_to_tensor, inputs_in_order(model, batch))) for batch in batches]
    arrays = [[keras.ops.convert_to_numpy(keras.ops.cast(value, "float32")) for value in part] for part in parts]
    return [np.concatenate(values) for values in zip(*arrays, strict=True)]


def noise(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """``sum (y - r)^2 / sum r^2``, noise over signal, mean over the outputs; 0.001 is 30 dB."""
    return float(np.mean([_relative(r.astype(np.float64), y) for r, y in zip(wanted, found, strict=True)]))


def _relative(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(np.square(found - wanted).sum() / max(float(np.square(wanted).sum()), 1e-30))
