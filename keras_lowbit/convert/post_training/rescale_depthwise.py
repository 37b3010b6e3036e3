"""rescale_depthwise: filters of one depthwise layer brought to similar ranges, for one scale per tensor."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_lowbit.convert.post_training import layer_pairs as pairs
from keras_lowbit.convert.post_training.judged_rewrite import judged_rewrite
from keras_lowbit.convert.post_training.layer_pairs import Pair, Weights
from keras_lowbit.convert.reports.conversion import ConversionReport, LayerReport, Refused, left_if
from keras_lowbit.data import Batches
from keras_lowbit.guard import Samples, Verdict
from keras_lowbit.keras_graph.calls import calls_of
from keras_lowbit.keras_graph.edits import LayerEdit, rewrite_model, weights_of

# A dead channel (nothing above 0 on the data) or a tiny filter is not scaled up further than this.
_LARGEST_SCALE = 1e3


def rescale_depthwise(
    model: keras.Model,
    data: Any,
    *,
    batch_size: int = 32,
    steps: int | None = None,
    locked_above: float = 5.9,
    recipe: Any = None,
    validation_data: Any = None,
    check: bool = True,
    verbose: int | bool = 1,
    return_report: bool = False,
) -> Any:
    """A stock copy of a folded model whose depthwise filters have similar ranges; the output on `data` is unchanged.

    For DepthwiseConv2D, ReLU6 (or ReLU, or nothing), Conv2D or Dense: depthwise filter k and its bias are multiplied by
    S_k, input channel k of the next layer is divided by it. With ``M_k = max |w|`` of filter k and X_k the largest output
    of channel k on the data: channels with X_k > `locked_above` reach the clip of ReLU6 and stay as they are, bit for bit;
    T_0 is the mean M_k of these; the others get ``S_k = min(T_0 / M_k, 6 / X_k)``. So every M_k moves towards T_0 and
    no channel comes over 6. Behind a plain ReLU nothing is locked or limited.

    It is for quantizers with one scale per tensor; scales per filter do not need it. Exact on inputs whose channels stay
    below what `data` showed, on all inputs without ReLU6. Fold before, calibrate after.

    The result is judged: quantized by `recipe` and calibrated, it must come as close to the outputs of `model`, on samples held
    back, as `model` does; else a copy of `model` is returned, with a warning.
    model: Functional or Sequential Keras model without batch norms in those places (`fold_batch_norms` first).
    data, batch_size, steps, verbose: as for `calibrate`; about 100 images.
    recipe: name, dict or `Recipe` that the model is for; None: "int8" and "fat-scalar", by the geometric mean of both
    errors.   validation_data: samples that judge, in the forms of `data`; by default every fourth of `data` is held back for
    that (256 at most; a single sample judges itself).   check=False: nothing is judged.
    return_report: whether the report is wanted too: "rescaled" with the ranges before and after, or "left" and why,
    and the `verdict`.
    Returns the copy, or (model, `ConversionReport`) with return_report=True.
    Raises ValueError for a `locked_above` that is not between 0 and 6; TypeError for a subclassed model.
    Ours, where the paper is silent: no locked channel: T_0 is the mean of all M_k; M_k = 0: S_k = 1; S_k at most 1000.
    Goncharenko et al. 2018, arXiv:1812.07872, section 3.3.

    >>> rescaled = klb.rescale_depthwise(klb.fold_batch_norms(model), images, recipe="fat-scalar", verbose=0)
    """
    if not 0 < locked_above < 6:
        raise ValueError(
            f"locked_above={locked_above!r} must lie between 0 and 6, where ReLU6 clips; the paper has 5.9."
        )
    graph = calls_of(model, inline=True)
    found = list(pairs.find_pairs(graph, first=("DepthwiseConv2D",)))
    keys = [pair.first.outputs[0] for _, pair in found if isinstance(pair, Pair)]
    samples = Samples(Batches(data, batch_size, steps, verbose), validation_data, check)
    maxima = pairs.channel_maxima(model, graph, keys, samples.with_progress())
    weights: dict[int, Weights] = {}  # new ones by the id of their layer
    rows = []
    for call, pair in found:
        if isinstance(pair, Refused):
            rows.append(LayerReport.of(call, "left", pair.reason))
            continue
        old = [weights.get(id(layer)) or weights_of(layer) for layer in pair.layers]
        factors = _factors(pair, old[0], maxima[call.outputs[0]].astype(np.float64), locked_above)
        new = (
            pairs.scale_outputs(pair.layers[0], old[0], factors.scales),
            pairs.scale_inputs(pair.layers[1], old[1], 1.0 / factors.scales),
        )
        weights |= dict(zip(map(id, pair.layers), new, strict=True))
        rows.append(LayerReport.of(call, "rescaled", f"with {pair.second.path}: {factors}"))
    rescaled = rewrite_model(model, {key: LayerEdit(weights=new) for key, new in weights.items()})
    verdict = Verdict()
    if keys:
        rescaled, verdict = judged_rewrite("rescale_depthwise", model, rescaled, samples, recipe)
    report = ConversionReport(model.name, "rescale_depthwise", left_if(not verdict.kept, rows), verdict)
    return (rescaled, report) if return_report else rescaled


@dataclasses.dataclass(frozen=True)
class _Factors:
    """S_k, M_k and which channels are locked, [channels]; prints as in the report."""

    scales: np.ndarray
    ranges: np.ndarray
    locked: np.ndarray

    def __str__(self) -> str:
        before, after = (v.max() / max(v.min(), 1e-30) for v in (self.ranges, self.ranges * self.scales))
        return (
            f"{int(self.locked.sum())} of {len(self.scales)} channels locked, largest over smallest filter range "
            f"{before:.3g} -> {after:.3g}"
        )


def _factors(pair: Pair, depthwise: Weights, largest: np.ndarray, locked_above: float) -> _Factors:
    """The factors of one depthwise layer. largest: X_k."""
    limited = pair.activation == "relu6"
    ranges = pairs.output_maxima(pair.first.operation, depthwise)
    locked = (largest > locked_above) & limited
    return _Factors(rescale_factors(ranges, largest, locked, limited), ranges, locked)


def rescale_factors(ranges: np.ndarray, largest: np.ndarray, locked: np.ndarray, limited: bool) -> np.ndarray:
    """S_k of every channel, as `rescale_depthwise` says. ranges: M_k.   largest: X_k.   limited: ReLU6 follows."""
    target = ranges[locked].mean() if locked.any() else ranges.mean()
    scales = np.minimum(target / np.where(ranges > 0, ranges, np.inf), _LARGEST_SCALE)
    scales = np.where(ranges > 0, scales, 1.0)
    if limited:
        scales = np.minimum(scales, 6.0 / np.where(largest > 0, largest, 1e-30))
    return np.where(locked | (scales <= 0), 1.0, scales)
