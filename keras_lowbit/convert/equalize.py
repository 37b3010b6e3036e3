"""equalize: cross-layer equalization, the data-free way to give all channels similar ranges."""

from collections import Counter
from typing import Any, Literal, overload

import keras
import numpy as np

from keras_lowbit.convert import pairs
from keras_lowbit.convert.graph import Call, calls_of
from keras_lowbit.convert.pairs import Pair
from keras_lowbit.convert.report import ConversionReport, LayerReport
from keras_lowbit.convert.roles import stock_kind
from keras_lowbit.convert.surgery import Edit, edited, weights_of
from keras_lowbit.quantizers.base import require_choice

_CONVERGED = 1e-3  # of log(s), largest over all channels of all pairs
_LARGEST_SCALE = 1e6


@overload
def equalize(
    model: keras.Model, *, relu6: str = "relu", iterations: int = 40, return_report: Literal[False] = False
) -> keras.Model: ...
@overload
def equalize(
    model: keras.Model, *, relu6: str = "relu", iterations: int = 40, return_report: Literal[True]
) -> tuple[keras.Model, ConversionReport]: ...
def equalize(model: keras.Model, *, relu6: str = "relu", iterations: int = 40, return_report: bool = False) -> Any:
    """A stock copy of a folded model in which the channels between two layers have equal ranges in both; needs no data.

    For every pair of Conv1D, Conv2D, DepthwiseConv2D or Dense layers with nothing, a ReLU, pools or zero padding between:
    ``W1_k / s_k``, ``b1_k / s_k``, ``W2_k * s_k`` with ``s_k = sqrt(r1_k r2_k) / r2_k``, r1_k the ``max |w|`` of output channel
    k of the first, r2_k that of input channel k of the second layer. Repeated until nothing changes. The function is
    unchanged: a ReLU passes positive factors on.

    A ReLU6 does not. relu6: "relu" replaces it by ReLU where it stands in a pair, as the source does: outputs change where
    it clipped, little in trained networks, and activation ranges grow; "keep" leaves such pairs as they are.
    model: Functional or Sequential Keras model; fold its batch norms first, since they end a pair.
    iterations: at most so many rounds over all pairs.
    return_report: give (model, `ConversionReport`) instead: "equalized" with the largest factor, or "left" and why.
    After quantizing and calibrating, `correct_biases` is the second half of the method. Not here: bias absorption.
    Nagel et al. 2019, arXiv:1906.04721 (DFQ), section 4.1.
    """
    require_choice("equalize", "relu6", relu6, ("relu", "keep"))
    graph = calls_of(model, inline=True)
    runs = Counter(id(call.operation) for call in graph.calls)
    chosen: list[Pair] = []
    rows: dict[str, LayerReport] = {}
    for pair in pairs.find_pairs(graph):
        call, reason = (pair.first, _stays(pair, relu6, runs)) if isinstance(pair, Pair) else pair
        if isinstance(pair, Pair) and reason is None:
            chosen.append(pair)
        rows[call.path] = LayerReport(call.path, call.kind, "left", reason or "")
    weights = _equalized(chosen, iterations, rows)
    edits = {key: Edit(weights=new) for key, new in weights.items()}
    for pair in chosen:
        if pair.activation == "relu6":
            old = edits.get(id(pair.clip.operation), Edit())
            edits[id(pair.clip.operation)] = Edit(config=_plain_relu(pair.clip), weights=old.weights)
    changed = edited(model, edits)
    report = ConversionReport(model.name, "equalize", tuple(rows.values()))
    return (changed, report) if return_report else changed


def _stays(pair: Pair, relu6: str, runs: Counter[int]) -> str | None:
    if pair.activation != "relu6":
        return None
    if relu6 == "keep":
        return f"{pair.clip.path} is a ReLU6, kept"
    if not pair.clip.is_layer or runs[id(pair.clip.operation)] > 1:
        return f"{pair.clip.path} is a ReLU6 that cannot be replaced: it is no layer of its own"
    return None


def _plain_relu(clip: Call) -> dict[str, Any]:
    return {"max_value": None} if stock_kind(clip.operation) == "ReLU" else {"activation": "relu"}


def _equalized(chosen: list[Pair], iterations: int, rows: dict[str, LayerReport]) -> dict[int, dict[str, np.ndarray]]:
    """New weights by the id of their layer; writes the rows of the report."""
    layers = {id(call.operation): call.operation for pair in chosen for call in (pair.first, pair.second)}
    weights = {key: weights_of(layer) for key, layer in layers.items()}
    total = [np.ones(1)] * len(chosen)
    for _ in range(iterations):
        furthest = 0.0
        for index, pair in enumerate(chosen):
            first, second = pair.first.operation, pair.second.operation
            r1 = pairs.filter_ranges(first, weights[id(first)]["kernel"])
            r2 = pairs.input_ranges(second, weights[id(second)]["kernel"])
            scale = equalizing_factors(r1, r2)
            weights[id(first)] = pairs.scale_filters(first, weights[id(first)], 1.0 / scale)
            weights[id(second)] = pairs.scale_inputs(weights[id(second)], scale)
            total[index] = total[index] * scale
            furthest = max(furthest, float(np.abs(np.log(scale)).max()))
        if furthest < _CONVERGED:
            break
    for pair, scale in zip(chosen, total, strict=True):
        detail = f"with {pair.second.path}: factors {scale.min():.3g} to {scale.max():.3g}"
        detail += ", ReLU6 replaced by ReLU" if pair.activation == "relu6" else ""
        rows[pair.first.path] = LayerReport(pair.first.path, pair.first.kind, "equalized", detail)
    return weights


def equalizing_factors(r1: np.ndarray, r2: np.ndarray) -> np.ndarray:
    """``s = sqrt(r1 r2) / r2``; 1 where a channel has no weights on one side."""
    used = (r1 > 0) & (r2 > 0)
    ratio = np.where(used, r1, 1.0) / np.where(used, r2, 1.0)
    return np.clip(np.sqrt(ratio), 1.0 / _LARGEST_SCALE, _LARGEST_SCALE)
