"""The steps from a float model to a verified file, each with what came of it and how long it took."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_lowbit.callbacks.batch_norms import reestimate_batch_norms
from keras_lowbit.convert.post_training.calibrate import calibrate
from keras_lowbit.convert.post_training.correct_biases import correct_biases
from keras_lowbit.convert.post_training.equalize import equalize
from keras_lowbit.convert.post_training.fold_batch_norms import fold_batch_norms
from keras_lowbit.convert.quantize_model import quantize_model
from keras_lowbit.convert.reports.conversion import ConversionReport
from keras_lowbit.data import batch_count
from keras_lowbit.distill.train import distill
from keras_lowbit.keras_graph.calls import find_layers
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.quantizers import AdjustableThreshold, Clustered, Uniform
from keras_lowbit.recipes import Recipe

_CORRECTED_FROM = 64  # samples that biases are corrected from: all are in memory at once
_FEW_BITS = 4


@dataclasses.dataclass(frozen=True)
class Step:
    """A row of the table. outcome: in words."""

    step: str
    outcome: str
    seconds: float


class Conversion:
    """Makes a quantized model of a float one with data, and keeps account of the steps.

    data: batches that can be read again, of `batch_size`.   verbose: as for `calibrate`.   said: is called as a step begins.
    """

    def __init__(
        self, model: keras.Model, recipe: Recipe, data: Any, batch_size: int, verbose: int = 0, said: Any = None
    ) -> None:
        self.model, self.recipe, self.data, self.verbose = model, recipe, data, verbose
        self.steps: list[Step] = []
        self.report: ConversionReport | None = None
        self.batches = batch_count(data)
        self.first = max(1, _CORRECTED_FROM // batch_size)
        self._said: Callable[[str], Any] = said or (lambda step: None)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Times a step; the words that are put into the list are its outcome."""
        self._said(name)
        words: list[str] = []
        begun = time.perf_counter()
        yield words
        self.steps.append(Step(name, "; ".join(words), round(time.perf_counter() - begun, 1)))

    def quantized(self, skip: list[str]) -> keras.Model:
        """Fold, equalize, quantize, calibrate, correct and tune, as far as the recipe wants it."""
        model = self.model
        clustered = any(isinstance(rule.kernel, Clustered) for rule in self.recipe.plan)
        statistics = clustered and bool(find_layers(model, keras.layers.BatchNormalization))
        if not statistics:
            model = self._folded(model)
            model = self._equalized(model) if wants_equal_ranges(self.recipe) else model
        with self.step("quantize") as words:
            quantized, self.report = quantize_model(model, self.recipe, skip=skip)
            words.append(f"{len(self.report.outcomes('quantized'))} layers with {self.recipe.name}")
        self._calibrated(quantized)
        if statistics:
            with self.step("batch norms") as words:
                count = reestimate_batch_norms(quantized, self.data, reference=model, verbose=self.verbose)
                words.append(f"statistics of {count} taken anew" if count else "statistics left as they were")
            self._calibrated(quantized)
            return quantized
        with self.step("correct biases") as words:
            found = correct_biases(quantized, model, self.data, steps=self.first, verbose=self.verbose)
            words.append(str(found.report.verdict))
        if any(isinstance(rule.kernel, AdjustableThreshold) for rule in self.recipe.plan):
            self._tuned(quantized, model)
        return quantized

    def _folded(self, model: keras.Model) -> keras.Model:
        with self.step("fold batch norms") as words:
            folded = fold_batch_norms(model)
            count = len(find_layers(model, keras.layers.BatchNormalization))
            left = len(find_layers(folded, keras.layers.BatchNormalization))
            words.append(f"{count - left} of {count}")
        return folded

    def _equalized(self, model: keras.Model) -> keras.Model:
        with self.step("equalize") as words:
            found, report = equalize(
                model, self.data, recipe=self.recipe, return_report=True, steps=self.first, verbose=self.verbose
            )
            words.append(str(report.verdict) if report.outcomes("equalized") else "nothing to equalize, or no help")
        return found

    def _calibrated(self, quantized: keras.Model) -> None:
        with self.step("calibrate") as words:
            words.append(f"{len(calibrate(quantized, self.data, verbose=self.verbose))} ranges")

    def _tuned(self, quantized: keras.Model, teacher: keras.Model) -> None:
        """FAT: thresholds learn the teacher's outputs, judged on every fourth batch."""
        with self.step("tune") as words:
            before = [np.array(to_numpy(variable)) for variable in quantized.variables]
            training, judging = self._parts()
            epochs = int(self.recipe.training.get("epochs", 6))
            history = distill(
                quantized, teacher, training, epochs=epochs, validation_data=judging, verbose=self.verbose
            ).history
            same = all(np.array_equal(old, to_numpy(now)) for old, now in zip(before, quantized.variables, strict=True))
            loss = min(history.get("val_loss") or history["loss"])
            words.append(
                f"{epochs} epochs, {'none better than the start' if same else f'loss {loss:.4g} at best, kept'}"
            )

    def _parts(self) -> tuple[Any, Any]:
        """What trains and what judges; a single batch does both."""
        count = self.batches if self.batches is not None else sum(1 for _ in self.data)
        kept = count // 4
        if not kept:
            return self.data, None
        training = self.data.skip(kept)
        return training.shuffle(count - kept, seed=0), self.data.take(kept)


def wants_equal_ranges(recipe: Recipe) -> bool:
    """Whether channels share a scale, or have so few codes that ranges should be alike: `equalize` may help then."""
    kernels = (
        rule.kernel for rule in recipe.plan if not isinstance(rule.kernel, Clustered)
    )  # a cluster has its own scale
    bases = [getattr(kernel, "base", kernel) for kernel in kernels]
    uniform = (base for base in bases if isinstance(base, Uniform))
    return any(base.granularity == "tensor" or base.bits <= _FEW_BITS for base in uniform)
