"""equalize: cross-layer equalization, the data-free way to give all channels similar ranges."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from keras_lowbit.arguments import check_flag
from keras_lowbit.convert.analysis.operations import stock_kind
from keras_lowbit.convert.post_training import layer_pairs as pairs
from keras_lowbit.convert.post_training.judged_rewrite import judged_rewrite
from keras_lowbit.convert.post_training.layer_pairs import Pair, Weights
from keras_lowbit.convert.reports.conversion import ConversionReport, LayerReport, Refused, left_if
from keras_lowbit.data import Batches
from keras_lowbit.guard import Samples, Verdict
from keras_lowbit.keras_graph.calls import Call, CallGraph, calls_of
from keras_lowbit.keras_graph.edits import LayerEdit, rewrite_model, weights_of
from keras_lowbit.quantizers.base import require_choice

_CONVERGED = 1e-3  # of log(s), largest over all channels of all pairs
_LARGEST_SCALE = 1e3  # of a channel in all rounds together: filters of (almost) zeros are not blown up
_LOCKED_ABOVE = 5.9


def equalize(
    model: keras.Model,
    data: Any = None,
    *,
    relu6: str = "keep",
    iterations: int = 40,
    return_report: bool = False,
    batch_size: int = 32,
    steps: int | None = None,
    recipe: Any = None,
    validation_data: Any = None,
    check: bool = True,
    verbose: int | bool = 1,
) -> Any:
    """A stock copy of a folded model in which the channels between two layers have equal ranges in both.

    For every pair of Conv1D, Conv2D, DepthwiseConv2D or Dense layers with nothing, a ReLU, pools or zero padding between:
    ``W1_k / s_k``, ``b1_k / s_k``, ``W2_k * s_k`` with ``s_k = sqrt(r1_k r2_k) / r2_k``, r1_k the ``max |w|`` of output channel
    k of the first, r2_k that of input channel k of the second layer. Repeated until nothing changes; no channel is scaled
    by more than 1000. The function is unchanged: a ReLU passes positive factors on. It needs no data.

    With `data` the result is judged: quantized by `recipe` and calibrated, it
    must come as close to the outputs of `model`, on samples held back, as `model` does; else a copy of `model` is returned,
    with a warning. Ranges of activations spread where those of weights meet, so not every recipe gains. Without data nothing is
    judged, and the report says so.

    model: Functional or Sequential Keras model; fold its batch norms first, since they end a pair.
    data: as for `calibrate`, about 100 images; None: nothing is judged.
    relu6: what happens to pairs with a ReLU6, which does not pass factors on. "keep" leaves them as they are; with `data` it
    scales their channels that stay below 5.9 there, up to 6, and locks the others, as `rescale_depthwise` does: unchanged
    on inputs like the data. "relu" replaces the ReLU6 by ReLU, as the source does: outputs change where it clipped, and
    trained networks may need it (the published MobileNetV2 loses 8 points).
    iterations: at most so many rounds over all pairs.   batch_size, steps, verbose: of the data.
    recipe: name, dict or `Recipe` that the model is for; None: "int8" and "fat-scalar", by the geometric mean of both
    errors.   validation_data: samples that judge, in the forms of `data`; by default every fourth of `data` is held back for
    that (256 at most; a single sample judges itself).   check=False: nothing is judged.
    return_report: whether the report is wanted too: "equalized" with the factors, or "left" and why, and the `verdict`.
    Returns the copy, or (model, `ConversionReport`) with return_report=True.
    After quantizing and calibrating, `correct_biases` is the second half of the method. Not here: bias absorption.
    Nagel et al. 2019, arXiv:1906.04721 (DFQ), section 4.1. Locked channels are Goncharenko et al.'s, arXiv:1812.07872.

    >>> equalized = klb.equalize(klb.fold_batch_norms(model), images, verbose=0)
    """
    require_choice("equalize", "relu6", relu6, ("relu", "keep"))
    graph = calls_of(model, inline=True)
    found = [(call, _usable(graph, pair, relu6, data is not None)) for call, pair in pairs.find_pairs(graph)]
    chosen = [pair for _, pair in found if isinstance(pair, Pair)]
    clipped = [pair.first.outputs[0] for pair in chosen if pair.activation == "relu6" and relu6 == "keep"]
    check_flag("equalize", "check", check)
    judging = check and (data is not None or validation_data is not None)
    samples = Samples(Batches(data, batch_size, steps, verbose), validation_data, judging)
    maxima = pairs.channel_maxima(model, graph, clipped, samples.with_progress())
    if judging and chosen and validation_data is None and not clipped:
        samples.hold_back()
    limits = {pair: _limits(maxima.get(pair.first.outputs[0])) for pair in chosen}
    weights, factors = _equalized(limits, iterations)
    edits = _edits(weights, [pair.relu for pair in chosen if _is_replaced(pair, relu6)])
    changed = rewrite_model(model, edits, exact=all(pair.activation != "relu6" for pair in chosen))
    rows = {
        call.path: LayerReport.of(call, "left", pair.reason)
        if isinstance(pair, Refused)
        else LayerReport.of(call, "equalized", _detail(pair, factors[pair], limits[pair], relu6))
        for call, pair in found
    }
    verdict = Verdict()
    if chosen:
        changed, verdict = judged_rewrite("equalize", model, changed, samples, recipe)
    report = ConversionReport(model.name, "equalize", left_if(not verdict.kept, rows.values()), verdict)
    return (changed, report) if return_report else changed


def _usable(graph: CallGraph, pair: Pair | Refused, relu6: str, has_data: bool) -> Pair | Refused:
    """The pair, or why it stays as it is."""
    if isinstance(pair, Refused) or pair.activation != "relu6":
        return pair
    if relu6 == "keep":
        return pair if has_data else Refused(f"{pair.relu.path} is a ReLU6: give data, or relu6='relu'")
    if not pair.relu.is_layer or graph.uses(pair.relu.operation) > 1:
        return Refused(f"{pair.relu.path} is a ReLU6 that cannot be replaced: it is no layer of its own")
    return pair


def _is_replaced(pair: Pair, relu6: str) -> bool:
    return pair.activation == "relu6" and relu6 == "relu"


def _equalized(
    limits: Mapping[Pair, tuple[Any, Any]], iterations: int
) -> tuple[dict[int, Weights], dict[Pair, np.ndarray]]:
    """New weights by the id of their layer, and the factors s_k of each pair.

    limits: the smallest and largest factor of the channels of each pair.
    """
    weights = {id(layer): weights_of(layer) for pair in limits for layer in pair.layers}
    factors = dict.fromkeys(limits, np.ones(1))
    for _ in range(iterations):
        furthest = 0.0
        for pair, limit in limits.items():
            first, second = pair.layers
            old = weights[id(first)], weights[id(second)]
            best = equalizing_factors(pairs.output_maxima(first, old[0]), pairs.input_maxima(second, old[1]))
            factor = np.clip(factors[pair] * best, *limit)
            change = factor / factors[pair]
            weights[id(first)] = pairs.scale_outputs(first, old[0], 1.0 / change)
            weights[id(second)] = pairs.scale_inputs(second, old[1], change)
            factors[pair] = factor
            furthest = max(furthest, float(np.abs(np.log(change)).max()))
        if furthest < _CONVERGED:
            break
    return weights, factors


def _edits(weights: Mapping[int, Weights], replaced: Iterable[Call]) -> dict[int, LayerEdit]:
    """New weights for the layers, ReLU for the ReLU6 in `replaced`, which may be the activation of such a layer."""
    edits = {key: LayerEdit(weights=new) for key, new in weights.items()}
    for call in replaced:
        config = {"max_value": None} if stock_kind(call.operation) == "ReLU" else {"activation": "relu"}
        edits[id(call.operation)] = LayerEdit(config=config, weights=weights.get(id(call.operation), {}))
    return edits


def _detail(pair: Pair, factors: np.ndarray, limit: tuple[Any, Any], relu6: str) -> str:
    low, high = limit
    locked = f", {int(np.sum(low == high))} of {factors.size} locked" if np.ndim(low) else ""
    replaced = ", ReLU6 replaced by ReLU" if _is_replaced(pair, relu6) else ""
    return f"with {pair.second.path}: factors {factors.min():.3g} to {factors.max():.3g}{locked}{replaced}"


def _limits(largest: np.ndarray | None) -> tuple[Any, Any]:
    """The smallest and largest factor of a channel; 1 and 1 for those that a ReLU6 clips. largest: outputs on the data."""
    if largest is None:
        return 1.0 / _LARGEST_SCALE, _LARGEST_SCALE
    locked = largest > _LOCKED_ABOVE
    low = np.maximum(largest.astype(np.float64) / 6.0, 1.0 / _LARGEST_SCALE)
    return np.where(locked, 1.0, low), np.where(locked, 1.0, _LARGEST_SCALE)


def equalizing_factors(r1: np.ndarray, r2: np.ndarray) -> np.ndarray:
    """``s = sqrt(r1 r2) / r2``; 1 where a channel has no weights on one side."""
    used = (r1 > 0) & (r2 > 0)
    return np.sqrt(np.where(used, r1, 1.0) / np.where(used, r2, 1.0))
