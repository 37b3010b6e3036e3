"""The steps from a float model to a verified file, each with what came of it and how long it took."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_lowbit.callbacks.batch_norms import reestimate_batch_norms
from keras_lowbit.cli.stages import Stages, Step
from keras_lowbit.convert.post_training.calibrate import calibrate
from keras_lowbit.convert.post_training.correct_biases import correct_biases
from keras_lowbit.convert.post_training.equalize import equalize
from keras_lowbit.convert.post_training.fold_batch_norms import fold_batch_norms
from keras_lowbit.convert.post_training.reconstruction.reconstruct import reconstruct
from keras_lowbit.convert.quantize_model import quantize_model
from keras_lowbit.convert.reports.conversion import ConversionReport
from keras_lowbit.data import batch_count
from keras_lowbit.distill.config import DistillConfig
from keras_lowbit.distill.train import distill
from keras_lowbit.keras_graph.calls import find_layers
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.quantizers import AdjustableThreshold, Clustered, Uniform
from keras_lowbit.recipes import Recipe

_CORRECTED_FROM = 64  # samples that biases are corrected from: all are in memory at once
_FEW_BITS = 4


class Epoch(keras.callbacks.Callback):
    """Knows which epoch a training is in: the order of its data is drawn with the number."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Before the data are read for the epoch."""
        self.number = epoch


class Conversion:
    """Makes a quantized model of a float one with data, and keeps account of the steps.

    data: batches that can be read again, of `batch_size`.   verbose: as for `calibrate`.   said: is called as a step begins.
    stages: where finished steps are kept; those that are there already are not done again, and the models are the same bits.
    """

    def __init__(
        self,
        model: keras.Model,
        recipe: Recipe,
        data: Any,
        batch_size: int,
        stages: Stages,
        verbose: int = 0,
        said: Callable[[str], Any] = lambda step: None,
    ) -> None:
        self.model, self.recipe, self.data, self.verbose = model, recipe, data, verbose
        self.steps: list[Step] = []
        self.report: ConversionReport | None = None
        self.stages, self._said = stages, said
        self.batches = batch_count(data)
        self.first = max(1, _CORRECTED_FROM // batch_size)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Times a step; the words that are put into the list are its outcome."""
        self._said(name)
        words: list[str] = []
        begun = time.perf_counter()
        yield words
        self.steps.append(Step(name, "; ".join(words), round(time.perf_counter() - begun, 1)))

    def _stage(self, name: str, kind: str, make: Callable[[list[str]], keras.Model]) -> Any:
        """What a step makes, kept; of a finished one the model if it is the newest of its kind, which alone is asked for."""
        place = len(self.steps)
        if place < len(self.stages.steps):
            self.steps.append(self.stages.steps[place])
            return self.stages.model(kind, place)
        with self.step(name) as words:
            made = make(words)
        self.stages.keep(self.steps[-1], kind, made)
        return made

    def quantized(self, skip: list[str], **loops: Any) -> keras.Model:
        """Fold, equalize, quantize, calibrate, correct and tune, as far as the recipe wants it. loops: of `quantize_model`."""
        model, steps = self.model, self._steps()
        if "reestimate_batch_norms" not in steps:  # which wants them where they are
            model = self._stage("fold batch norms", "float", self._folded)
        if "equalize" in steps:
            model = self._stage("equalize", "float", functools.partial(self._equalized, model))

        def made(words: list[str]) -> keras.Model:
            quantized, self.report = quantize_model(model, self.recipe, skip=skip, **loops)
            if self.report.no_file_because:  # before hours of tuning
                raise ValueError(f"No file can be written of {model.name!r}: {self.report.no_file_because}.")
            words.append(f"{len(self.report.outcomes('quantized'))} layers with {self.recipe.name}")
            return quantized

        quantized = self._stage("quantize", "quantized", made)
        for step in steps:
            if step in _CHANGES:
                name, change = _CHANGES[step]
                quantized = self._stage(
                    name, "quantized", functools.partial(_changed, functools.partial(change, self), quantized, model)
                )
        if self.report is None:  # an earlier run has quantized
            _, self.report = quantize_model(model, self.recipe, skip=skip, **loops)
        return quantized

    def _steps(self) -> list[str]:
        """The recipe's, or what its plan asks for."""
        plan = self.recipe.plan
        if self.recipe.steps:
            return list(self.recipe.steps)
        clustered = any(isinstance(rule.kernel, Clustered) for rule in plan)
        if clustered and find_layers(self.model, keras.layers.BatchNormalization):
            return ["calibrate", "reestimate_batch_norms", "calibrate"]
        first = ["equalize"] if wants_equal_ranges(self.recipe) else []
        tuned = ["distill"] if any(isinstance(rule.kernel, AdjustableThreshold) for rule in plan) else []
        return [*first, "calibrate", "correct_biases", *tuned]

    def _folded(self, words: list[str]) -> keras.Model:
        folded = fold_batch_norms(self.model)
        count = len(find_layers(self.model, keras.layers.BatchNormalization))
        words.append(f"{count - len(find_layers(folded, keras.layers.BatchNormalization))} of {count}")
        return folded

    def _equalized(self, model: keras.Model, words: list[str]) -> keras.Model:
        found, report = equalize(
            model, self.data, recipe=self.recipe, return_report=True, steps=self.first, verbose=self.verbose
        )
        words.append(str(report.verdict) if report.outcomes("equalized") else "nothing to equalize, or no help")
        return found

    def _calibrated(self, quantized: keras.Model, model: keras.Model) -> str:
        return f"{len(calibrate(quantized, self.data, verbose=self.verbose))} ranges"

    def _reestimated(self, quantized: keras.Model, model: keras.Model) -> str:
        count = reestimate_batch_norms(quantized, self.data, reference=model, verbose=self.verbose)
        return f"statistics of {count} taken anew" if count else "statistics left as they were"

    def _corrected(self, quantized: keras.Model, model: keras.Model) -> str:
        found = correct_biases(quantized, model, self.data, steps=self.first, verbose=self.verbose)
        return str(found.report.verdict)

    def _reconstructed(self, quantized: keras.Model, model: keras.Model) -> str:
        """Rounding learnt block by block; goes on behind its last block after a kill."""
        iterations = int(self.recipe.training.get("iterations", 1000))
        found = reconstruct(
            quantized,
            model,
            self.data,
            iterations=iterations,
            checkpoint=self.stages.tuning,
            verbose=self.verbose,
        )
        return f"{iterations} iterations of a block, {len(found.outcomes('reconstructed'))} layers; {found.verdict}"

    def _tuned(self, quantized: keras.Model, model: keras.Model) -> str:
        """FAT: thresholds learn the float model's outputs, judged on every fourth batch."""
        before = [np.array(to_numpy(variable)) for variable in quantized.variables]
        epochs, epoch = int(self.recipe.training.get("epochs", 6)), Epoch()
        training, count, judging = self._parts(epoch)
        history = distill(
            quantized,
            model,
            training,
            DistillConfig(variables=self.recipe.training.get("variables", "thresholds")),
            steps=count,
            epochs=epochs,
            validation_data=judging,
            callbacks=[epoch],
            checkpoint=self.stages.tuning,
            verbose=self.verbose,
        ).history
        same = all(np.array_equal(old, to_numpy(now)) for old, now in zip(before, quantized.variables, strict=True))
        loss = min(history.get("val_loss") or history["loss"])
        return f"{epochs} epochs, {'none better than the start' if same else f'loss {loss:.4g} at best, kept'}"

    def _parts(self, epoch: Epoch) -> tuple[Any, int, Any]:
        """What trains, in an order of each epoch's own, its batches, and what judges; a single batch does both."""
        count = self.batches if self.batches is not None else sum(1 for _ in self.data)
        kept = count // 4
        if not kept:
            return self.data, count, None
        training = self.data.skip(kept)
        return lambda: training.shuffle(count - kept, seed=epoch.number), count - kept, self.data.take(kept)


#: Steps that change the quantized model: their rows in the table, and what makes them.
_CHANGES: dict[str, tuple[str, Callable[..., str]]] = {
    "calibrate": ("calibrate", Conversion._calibrated),
    "reestimate_batch_norms": ("batch norms", Conversion._reestimated),
    "correct_biases": ("correct biases", Conversion._corrected),
    "reconstruct": ("reconstruct", Conversion._reconstructed),
    "distill": ("tune", Conversion._tuned),
}


def _changed(change: Callable[..., str], quantized: keras.Model, model: keras.Model, words: list[str]) -> keras.Model:
    """A step that changes a model in place, as one that makes one."""
    words.append(change(quantized, model))
    return quantized


def wants_equal_ranges(recipe: Recipe) -> bool:
    """Whether channels share a scale, or have so few codes that ranges should be alike: `equalize` may help then."""
    kernels = (
        rule.kernel for rule in recipe.plan if not isinstance(rule.kernel, Clustered)
    )  # a cluster has its own scale
    bases = [getattr(kernel, "base", kernel) for kernel in kernels]
    uniform = (base for base in bases if isinstance(base, Uniform))
    return any(base.granularity == "tensor" or base.bits <= _FEW_BITS for base in uniform)
