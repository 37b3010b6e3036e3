"""equalize: cross-layer equalization, the data-free way to give all channels similar ranges."""

from typing import Any, Literal, overload

import keras
import numpy as np

from keras_lowbit.convert.analysis.operations import stock_kind
from keras_lowbit.convert.post_training import layer_pairs as pairs
from keras_lowbit.convert.post_training.layer_pairs import Pair
from keras_lowbit.convert.reports.conversion import ConversionReport, LayerReport
from keras_lowbit.keras_graph.calls import Call, CallGraph, calls_of
from keras_lowbit.keras_graph.edits import Edit, edited, weights_of
from keras_lowbit.quantizers.base import require_choice

_CONVERGED = 1e-3  # of log(s), largest over all channels of all pairs
_LARGEST_SCALE = 1e3  # of a channel in all rounds together: filters of (almost) zeros are not blown up
_LOCKED_ABOVE = 5.9


@overload
def equalize(
    model: keras.Model,
    data: Any = None,
    *,
    relu6: str = "keep",
    iterations: int = 40,
    return_report: Literal[False] = False,
    batch_size: int = 32,
    steps: int | None = None,
    verbose: int | bool = 1,
) -> keras.Model: ...
@overload
def equalize(
    model: keras.Model,
    data: Any = None,
    *,
    relu6: str = "keep",
    iterations: int = 40,
    return_report: Literal[True],
    batch_size: int = 32,
    steps: int | None = None,
    verbose: int | bool = 1,
) -> tuple[keras.Model, ConversionReport]: ...
def equalize(
    model: keras.Model,
    data: Any = None,
    *,
    relu6: str = "keep",
    iterations: int = 40,
    return_report: bool = False,
    batch_size: int = 32,
    steps: int | None = None,
    verbose: int | bool = 1,
) -> Any:
    """A stock copy of a folded model in which the channels between two layers have equal ranges in both.

    For every pair of Conv1D, Conv2D, DepthwiseConv2D or Dense layers with nothing, a ReLU, pools or zero padding between:
    ``W1_k / s_k``, ``b1_k / s_k``, ``W2_k * s_k`` with ``s_k = sqrt(r1_k r2_k) / r2_k``, r1_k the ``max |w|`` of output channel
    k of the first, r2_k that of input channel k of the second layer. Repeated until nothing changes; no channel is scaled
    by more than 1000. The function is unchanged: a ReLU passes positive factors on. It needs no data.

    A ReLU6 does not pass them on. relu6: "keep" leaves pairs with one as they are; with `data` (as for `calibrate`, about
    100 images) it scales their channels that stay below 5.9 there, up to 6, and locks the others, as `rescale_depthwise`
    does: unchanged on inputs like the data. "relu" replaces the ReLU6 of a pair by ReLU, as the source does: outputs change
    where it clipped, and trained networks may need it (the published MobileNetV2 loses 8 points).
    model: Functional or Sequential Keras model; fold its batch norms first, since they end a pair.
    iterations: at most so many rounds over all pairs.   batch_size, steps, verbose: of the data.
    return_report: give (model, `ConversionReport`) instead: "equalized" with the factors, or "left" and why.
    After quantizing and calibrating, `correct_biases` is the second half of the method. Not here: bias absorption.
    Nagel et al. 2019, arXiv:1906.04721 (DFQ), section 4.1. Locked channels are Goncharenko et al.'s, arXiv:1812.07872.
    """
    require_choice("equalize", "relu6", relu6, ("relu", "keep"))
    graph = calls_of(model, inline=True)
    chosen: list[Pair] = []
    rows: dict[str, LayerReport] = {}
    for pair in pairs.find_pairs(graph):
        stays = _stays(graph, pair, relu6, data is not None) if isinstance(pair, Pair) else None
        call, reason = (pair.first, stays) if isinstance(pair, Pair) else pair
        if isinstance(pair, Pair) and reason is None:
            chosen.append(pair)
        rows[call.path] = LayerReport(call.path, call.kind, "left", reason or "")
    clipped = [pair.first.outputs[0] for pair in chosen if pair.activation == "relu6" and relu6 == "keep"]
    maxima = pairs.channel_maxima(model, graph, clipped, data, batch_size, steps, verbose) if clipped else {}
    weights = _equalized(chosen, maxima, iterations, rows)
    edits = {key: Edit(weights=new) for key, new in weights.items()}
    for pair in chosen:
        if pair.activation == "relu6" and relu6 == "relu":
            old = edits.get(id(pair.clip.operation), Edit())
            edits[id(pair.clip.operation)] = Edit(config=_plain_relu(pair.clip), weights=old.weights)
    changed = edited(model, edits)
    report = ConversionReport(model.name, "equalize", tuple(rows.values()))
    return (changed, report) if return_report else changed


def _stays(graph: CallGraph, pair: Pair, relu6: str, has_data: bool) -> str | None:
    if pair.activation != "relu6":
        return None
    if relu6 == "keep":
        return None if has_data else f"{pair.clip.path} is a ReLU6: give data, or relu6='relu'"
    if not pair.clip.is_layer or graph.uses(pair.clip.operation) > 1:
        return f"{pair.clip.path} is a ReLU6 that cannot be replaced: it is no layer of its own"
    return None


def _plain_relu(clip: Call) -> dict[str, Any]:
    return {"max_value": None} if stock_kind(clip.operation) == "ReLU" else {"activation": "relu"}


def _equalized(
    chosen: list[Pair], maxima: dict[int, np.ndarray], iterations: int, rows: dict[str, LayerReport]
) -> dict[int, dict[str, np.ndarray]]:
    """New weights by the id of their layer; writes the rows of the report."""
    layers = {id(call.operation): call.operation for pair in chosen for call in (pair.first, pair.second)}
    weights = {key: weights_of(layer) for key, layer in layers.items()}
    total = [np.ones(1)] * len(chosen)
    limits = [_limits(maxima.get(pair.first.outputs[0])) for pair in chosen]
    for _ in range(iterations):
        furthest = 0.0
        for index, pair in enumerate(chosen):
            first, second = pair.first.operation, pair.second.operation
            r1 = pairs.output_maxima(first, weights[id(first)])
            r2 = pairs.input_maxima(second, weights[id(second)])
            wanted = np.clip(total[index] * equalizing_factors(r1, r2), *limits[index])
            scale = wanted / total[index]
            weights[id(first)] = pairs.scale_outputs(first, weights[id(first)], 1.0 / scale)
            weights[id(second)] = pairs.scale_inputs(second, weights[id(second)], scale)
            total[index] = wanted
            furthest = max(furthest, float(np.abs(np.log(scale)).max()))
        if furthest < _CONVERGED:
            break
    for pair, scale, (low, high) in zip(chosen, total, limits, strict=True):
        locked = f", {int(np.sum(low == high))} of {scale.size} locked" if np.ndim(low) else ""
        replaced = ", ReLU6 replaced by ReLU" if pair.activation == "relu6" and not np.ndim(low) else ""
        detail = f"with {pair.second.path}: factors {scale.min():.3g} to {scale.max():.3g}{locked}{replaced}"
        rows[pair.first.path] = LayerReport(pair.first.path, pair.first.kind, "equalized", detail)
    return weights


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
