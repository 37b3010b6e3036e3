"""correct_biases: the mean error that quantizing brings into each channel, taken out of its bias."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_lowbit.convert.post_training.layer_steps import Step, guarded_steps, layer_by_layer, relative_errors
from keras_lowbit.convert.reports.conversion import ConversionReport, LayerReport, left_if
from keras_lowbit.data import Batches
from keras_lowbit.guard import Samples
from keras_lowbit.keras_graph.variables import to_numpy

_SEARCH_ROWS = 65_536  # of a layer's sums, that a shift in front of an activation is searched on
_SEARCH_STEPS = 12
_FLATTEST = 0.05  # slope of a channel's mean below which the search does not trust it


@dataclasses.dataclass(frozen=True)
class BiasCorrection(Mapping[str, float]):
    """What `correct_biases` did: path of each layer -> the largest shift that stays, in units of its sums; prints as a table.

    report: a row for each layer, "corrected" or "left", with its error before and after; its `verdict` is on the outputs.
    """

    shifts: Mapping[str, float]
    report: ConversionReport

    def __getitem__(self, path: str) -> float:
        return self.shifts[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shifts)

    def __len__(self) -> int:
        return len(self.shifts)

    def __str__(self) -> str:
        return str(self.report)


def correct_biases(
    quantized: keras.Model,
    reference: keras.Model,
    data: Any,
    *,
    batch_size: int = 32,
    steps: int | None = None,
    validation_data: Any = None,
    check: bool = True,
    verbose: int | bool = 1,
) -> BiasCorrection:
    """Change the biases of a calibrated model so that no channel's mean output is shifted by quantization.

    Layer by layer in running order, each seeing the corrected ones before it: ``b_k += d_k`` with
    ``mean(f(y_k + d_k)) = mean(f(y_k of the float model))``, y the sums of the layer, f the activation that its readers see
    (its own, or one right behind it; none: ``d_k`` is the difference of the means), the mean over samples and positions.
    Nothing else changes. All of `data` are in memory at once, layer by layer: a few dozen images are enough.

    Every shift is judged on samples that it was not made from: a channel whose squared error behind f does not fall there keeps
    its bias, and if the outputs of the whole model have moved away from the float model's, all biases stay as they were, with
    a warning.

    quantized: what `quantize_model` made of `reference` (Functional or Sequential), calibrated; changed in place.
    reference: the float model, folded, with layers of the same paths.
    data, batch_size, steps, verbose: as for `calibrate`.
    validation_data: samples that judge, in the forms of `data`; by default every fourth of `data` is held back for that (256 at
    most; a single sample judges itself).   check=False: all data make the shifts and nothing is judged.
    Returns a `BiasCorrection`: path of each layer -> the largest shift that stays, in the units of its output; `print` it.
    Layers without a bias, shared layers and those whose bias is quantized stay as they are. Of a separable convolution the
    pointwise half, which has its path and bias, is corrected for both.
    Raises ValueError if no layer of the two models matches.
    Nagel et al. 2019, arXiv:1906.04721, section 4.2, empirical form (appendix D); differs: behind the activation, and checked.

    >>> quantized, report = klb.quantize_model(folded, "int8")
    >>> ranges = klb.calibrate(quantized, images, verbose=0)
    >>> shifts = klb.correct_biases(quantized, folded, images, verbose=0)
    >>> sorted(shifts)
    ['depthwise', 'first', 'kind', 'pointwise']
    """
    samples = Samples(Batches(data, batch_size, steps, verbose), validation_data, check)
    wanted: dict[str, Wanted] = {}
    shifts: dict[str, float] = {}
    rows: list[LayerReport] = []

    def remember(step: Step) -> None:
        wanted[step.call.path] = Wanted.of(step)

    def correct(step: Step) -> None:
        shift, detail = corrected_bias(step, wanted.pop(step.call.path))
        shifts[step.call.path] = float(np.abs(shift).max())
        rows.append(LayerReport.of(step.call, "corrected" if shift.any() else "left", detail))

    def all_layers() -> None:
        layer_by_layer(quantized, reference, samples, remember, correct, verbose)

    verdict = guarded_steps("correct_biases", quantized, reference, samples, all_layers)
    if not verdict.kept:
        shifts = dict.fromkeys(shifts, 0.0)
    report = ConversionReport(quantized.name, "correct_biases", left_if(not verdict.kept, rows), verdict)
    return BiasCorrection(shifts, report)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a layer of the float model gives. mean: of each channel behind the activation.   judging: rows of the same."""

    mean: np.ndarray
    judging: np.ndarray

    @classmethod
    def of(cls, step: Step) -> "Wanted":
        """Of the float model's step."""
        mean = step.activated(step.sums()).mean(axis=0, dtype=np.float64)
        return cls(mean, step.activated(step.judging_sums()))


def corrected_bias(step: Step, wanted: Wanted) -> tuple[np.ndarray, str]:
    """Shift the bias of a layer where that helps; the shift of each channel, and in words what it did."""
    shift = _shift(step, wanted.mean).astype(np.float32)
    seen = step.judging_sums()
    if not len(seen):
        detail = "not checked"
    else:
        before, after = (relative_errors(wanted.judging, step.activated(seen + d)) for d in (0, shift))
        helped = after < before
        shift = np.where(helped, shift, np.float32(0))
        detail = f"error {before.mean():.3g} -> {np.where(helped, after, before).mean():.3g}"
        detail += f", {int((~helped).sum())} of {helped.size} channels as they were" if not helped.all() else ""
    bias = step.call.operation.bias
    bias.assign(to_numpy(bias) + shift)
    return shift, detail


def _shift(step: Step, mean: np.ndarray) -> np.ndarray:
    """d_k with ``mean(f(y_k + d_k)) = mean``, as far as Newton's steps reach it; float64 [channels]."""
    sums = step.sums()
    if step.activation is None:
        return np.asarray(mean - sums.mean(axis=0, dtype=np.float64))
    # The means of all rows agree up to the same error as those of the rows the search looks at.
    gap = mean - step.activated(sums).mean(axis=0, dtype=np.float64)
    sums = sums[:: -(-len(sums) // _SEARCH_ROWS)]
    start = step.activated(sums).mean(axis=0, dtype=np.float64)
    spread = np.maximum(sums.std(axis=0, dtype=np.float64), 1e-6)
    shift, missing = np.zeros(sums.shape[1]), gap
    for _ in range(_SEARCH_STEPS):
        here, beside = (
            step.activated(sums + (shift + nudge).astype(np.float32)).mean(axis=0, dtype=np.float64)
            for nudge in (0.0, 0.01 * spread)
        )
        missing = gap - (here - start)
        slope = np.maximum((beside - here) / (0.01 * spread), _FLATTEST)
        shift = np.clip(shift + missing / slope, -spread, spread)
        if np.all(np.abs(missing) <= 1e-5 * spread):
            break
    return shift
