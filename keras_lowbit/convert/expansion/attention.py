"""Attention: softmaxes of products of queries and keys, times values."""

from __future__ import annotations

import inspect
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lowbit.convert.expansion.products import DenseForm, bias_of, dense, form_of_layer
from keras_lowbit.convert.expansion.registry import Compose, Parts, Values, array, expands, sizes_of, turned
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.layers import MaskScores


def _arguments(call: Call, values: Values) -> dict[str, Any]:
    """The arguments of a call by the names of the layer's `call`, the tensors among them from `values`."""
    args, kwargs = call.fill(values)
    bound = inspect.signature(type(call.operation).call).bind(call.operation, *args, **kwargs)
    return {name: value for name, value in bound.arguments.items() if name != "self"}


def _is_plain(arguments: dict[str, Any], takes: tuple[str, ...]) -> bool:
    """Whether nothing is asked for beside the tensors `takes`: no mask, no scores, no causality."""
    return not any(value is not None and value is not False for name, value in arguments.items() if name not in takes)


class _Heads:
    """The dense layers of an attention of several heads. repeats: how many heads of queries share one of keys and values."""

    def __init__(self, layer: Any) -> None:
        grouped = isinstance(layer, keras.layers.GroupQueryAttention)
        names = [("_" if grouped else "") + f"{name}_dense" for name in ("query", "key", "value", "output")]
        query, key, value, self.output = (getattr(layer, name) for name in names)
        self.projections = {"query": query, "key": key, "value": value}
        self.count = layer.num_query_heads if grouped else layer.num_heads
        self.depth = layer.head_dim if grouped else layer.key_dim
        self.repeats = layer.num_repeats if grouped else 1

    def apart(self, parts: Parts, units: Any, name: str) -> Any:
        """What was projected, [heads, positions, depth]."""
        repeats = 1 if name == "query" else self.repeats
        found = _by_heads(parts, units, self.count // repeats, name)
        return found if repeats == 1 else parts.named(ops.repeat(found, repeats, axis=1), f"{name}_repeated")


@expands("MultiHeadAttention", "GroupedQueryAttention")
def multi_head_attention(call: Call) -> Compose | None:
    """Heads of ``softmax(q k^T / sqrt(d)) v``; the factor goes into the weights of q. Masks that are constants stay masks."""
    layer = call.operation
    given = _arguments(call, dict(zip(call.inputs, call.tensors, strict=True)))
    takes = ("query", "value", "key", "training", "use_causal_mask", "attention_mask")
    if not _is_plain(given, takes) or not _are_sequences(call) or layer.get_config().get("use_gate"):
        return None
    sliding = layer.get_config().get("sliding_window")
    allowed = _allowed(given, given["query"].shape[1], given["value"].shape[1], sliding)
    if allowed is None:
        return None
    heads = _Heads(layer)
    projections = heads.projections
    forms = {name: form_of_layer(projections[name], source) for name, source in _sources(given).items()}
    known = {name: form for name, form in forms.items() if form is not None}
    if len(known) < 3 or len(heads.output.kernel.shape) != 3:
        return None
    factors = {"query": 1 / math.sqrt(heads.depth), "key": 1.0, "value": 1.0}

    def compose(parts: Parts, values: Values) -> Any:
        projected = {}
        for name, source in _sources(_arguments(call, values)).items():
            units = dense(parts, source, projections[name], known[name], name, factors[name])
            projected[name] = heads.apart(parts, units, name)
        mask = _mask_of_inputs(parts, call, values)
        mixed = _mixed(parts, projected["query"], projected["key"], projected["value"], "mixed", allowed, mask)
        apart = parts.named(ops.transpose(mixed, (0, 2, 1, 3)), "turn_back")
        _, positions, *units = apart.shape
        rows = parts.named(ops.reshape(apart, (-1, positions, math.prod(units))), "joined")
        kernel = array(heads.output.kernel)
        form = DenseForm(kernel.reshape(-1, kernel.shape[-1]), (positions,), kernel.shape[-1:], bias_of(heads.output))
        return dense(parts, rows, heads.output, form, "")

    return compose


def _mask_of_inputs(parts: Parts, call: Call, values: Values) -> Any:
    """Which key each query of a sample sees, [1, queries or 1, keys] or with the heads; None where no input decides it.

    A mask is given, or Keras hands it on beside query, value or key.
    """
    given, keys = _arguments(call, values), _arguments(call, {key: key for key in call.inputs})
    joined = None
    if isinstance(keys.get("attention_mask"), int):
        joined = _as_bool(parts, given["attention_mask"])
        joined = parts.named(ops.expand_dims(joined, 1), "mask_of_heads") if len(joined.shape) == 3 else joined
    for name in ("query", "value", "key"):
        mask = parts.masks.get(keys.get(name, -1))
        if mask is None:
            continue
        sizes = (mask.shape[1], 1) if name == "query" else (1, mask.shape[1])
        mask = parts.named(ops.reshape(mask, (-1, 1, *sizes)), f"mask_of_{name}")
        joined = mask if joined is None else parts.named(ops.logical_and(joined, mask), f"mask_and_{name}")
    return joined


def _as_bool(parts: Parts, mask: Any) -> Any:
    return mask if str(mask.dtype) == "bool" else parts.named(ops.cast(mask, "bool"), "mask_as_bool")


def _sources(arguments: dict[str, Any]) -> dict[str, Any]:
    """What is projected to queries, keys and values."""
    key = arguments.get("key")
    return {
        "query": arguments["query"],
        "key": arguments["value"] if key is None else key,
        "value": arguments["value"],
    }


def _are_sequences(call: Call) -> bool:
    """Whether every tensor of a call but masks is [batch, positions, channels] of known sizes."""
    reals = [tensor for tensor in call.tensors if "float" in str(tensor.dtype)]
    return all(len(tensor.shape) == 3 and sizes_of(tensor) is not None for tensor in reals)


def _allowed(arguments: dict[str, Any], queries: int, keys: int, window: int | None = None) -> np.ndarray | None:
    """Which key each query sees, bool [1, queries, keys] or with an axis of heads before it; None where inputs decide it, or
    where some query sees none, which gets the mean of all values.

    window: of a sliding one, how many keys before a query it sees, its own among them, and behind it without causality."""
    mask = arguments.get("attention_mask")
    if isinstance(mask, keras.KerasTensor):
        if "float" in str(mask.dtype) or len(mask.shape) not in (3, 4):
            return None
        mask = None  # it is one of the inputs
    found = np.ones((1, queries, keys), bool)
    places = np.arange(queries)[:, None] - np.arange(keys)
    if arguments.get("use_causal_mask"):
        found &= places >= 0
    if window is not None:
        found &= np.abs(places) < window
    if mask is not None:
        mask = np.asarray(mask) != 0
        if mask.ndim not in (3, 4) or mask.shape[0] != 1:
            return None
        found = found & mask[0] if mask.ndim == 4 else (found & mask)
    return found if found.any(-1).all() else None


def _mixed(parts: Parts, query: Any, key: Any, value: Any, part: str, allowed: np.ndarray, mask: Any = None) -> Any:
    """``softmax(q k^T) v``. part: name of the last operation.   allowed: as in `_allowed`.   mask: of the inputs."""
    scores = parts.named(ops.matmul(query, turned(parts, key, "key_columns")), "scores")
    return _weighted(parts, scores, value, part, allowed, mask)


def _weighted(parts: Parts, scores: Any, value: Any, part: str, allowed: np.ndarray, mask: Any) -> Any:
    """Values by the softmax of scores, as `_mixed`."""
    if not allowed.all():
        shape = allowed.shape[len(allowed.shape) - len(scores.shape) + 1 :]
        weights = {"allowed": allowed.reshape(shape)}
        scores = parts.layer("mask", lambda **options: MaskScores(shape, **options), weights)(scores)
    if mask is not None:
        scores = masked_scores(parts, scores, mask)
    weights = parts.named(ops.softmax(scores, axis=-1), "weights")
    if rate := getattr(parts.operation, "dropout", 0):
        weights = parts.layer("dropout", lambda **options: keras.layers.Dropout(rate, **options))(weights)
    return parts.named(ops.matmul(weights, value), part)


def masked_scores(parts: Parts, scores: Any, mask: Any) -> Any:
    """The scores where a mask is true, elsewhere a number so low that a softmax makes nothing of it."""
    lowest = -3e4 if str(scores.dtype) == "float16" else -1e9
    return parts.named(ops.where(mask, scores, lowest), "masked")


def masked_softmax(call: Call) -> Compose | None:
    """A softmax of the last axis that leaves out what its mask, a tensor or a constant, says."""
    mask, rank = call.arguments.kwargs["mask"], len(call.tensors[0].shape)
    constant = not isinstance(mask, keras.KerasTensor)
    shape = np.shape(mask) if constant else tuple(mask.shape)
    if constant:
        shape = (1,) * (rank - len(shape)) + shape
    if len(shape) != rank or (constant and shape[0] != 1) or (not constant and str(mask.dtype) != "bool"):
        return None

    def compose(parts: Parts, values: Values) -> Any:
        x = values[call.inputs[0]]
        if constant:
            weights = {"allowed": np.reshape(np.asarray(mask) != 0, shape[1:])}
            x = parts.layer("mask", lambda **options: MaskScores(shape[1:], **options), weights)(x)
        else:
            x = masked_scores(parts, x, values[call.inputs[-1]])
        return parts.named(ops.softmax(x, axis=-1))

    return compose


def _by_heads(parts: Parts, x: Any, heads: int, name: str) -> Any:
    """[positions, heads * d] as [heads, positions, d]."""
    positions, units = int(x.shape[1]), int(x.shape[2])
    split = parts.named(ops.reshape(x, (-1, positions, heads, units // heads)), f"{name}_heads")
    return parts.named(ops.transpose(split, (0, 2, 1, 3)), f"{name}_turn")


@expands("Attention", "AdditiveAttention")
def attention(call: Call) -> Compose | None:
    """``softmax(scores) v``: the scores are dot products, times a scale, or sums of ``tanh(q + k)`` with scales."""
    layer = call.operation
    additive = isinstance(layer, keras.layers.AdditiveAttention) or layer.score_mode == "concat"
    given = _arguments(call, dict(zip(call.inputs, call.tensors, strict=True)))
    if not _is_plain(given, ("inputs", "training", "use_causal_mask", "mask")) or not _are_sequences(call):
        return None
    allowed = _allowed(given, *(tensor.shape[1] for tensor in given["inputs"][:2]))
    masks = given.get("mask") or []
    if allowed is None or any(mask is not None and len(mask.shape) != 2 for mask in masks):
        return None

    def compose(parts: Parts, values: Values) -> Any:
        arguments = _arguments(call, values)
        query, value, *rest = arguments["inputs"]
        given_masks: list[Any] = [*(arguments.get("mask") or []), None, None]
        of_query, of_value = given_masks[:2]
        if of_value is not None:
            of_value = parts.named(ops.expand_dims(_as_bool(parts, of_value), 1), "mask_of_value")
        part, key = "" if of_query is None else "mixed", rest[0] if rest else value
        if additive:
            made = _weighted(parts, _additive_scores(parts, query, key), value, part, allowed, of_value)
        else:
            if layer.use_scale:
                query = parts.named(ops.multiply(query, float(array(layer.scale))), "scaled")
            made = _mixed(parts, query, key, value, part, allowed, of_value)
        if of_query is None:
            return made
        return parts.named(ops.where(parts.named(ops.expand_dims(of_query, -1), "mask_of_query"), made, 0.0))

    return compose


def _additive_scores(parts: Parts, query: Any, key: Any) -> Any:
    """``sum(scale * tanh(q + k))`` of each query and each key, a dense layer of one unit where the scale is trained.

    Of an `Attention` in the mode "concat" ``weight * sum(tanh(scale * (q + k)))``, both numbers.
    """
    layer, (positions, depth) = parts.operation, query.shape[1:]
    factor, by_channel = 1.0, isinstance(layer, keras.layers.AdditiveAttention)
    of_query = parts.named(ops.expand_dims(query, 2), "query_rows")
    of_key = parts.named(ops.expand_dims(key, 1), "key_columns")
    sums = parts.named(ops.add(of_query, of_key), "sums")
    if not by_channel:
        factor = float(array(layer.concat_score_weight))
        if layer.use_scale:
            sums = parts.named(ops.multiply(sums, float(array(layer.scale))), "scaled")
    bounded = parts.named(ops.tanh(sums), "bounded")
    if by_channel and layer.use_scale:
        kernel = {"kernel": array(layer.scale)[:, None]}
        dense = parts.layer("scale", lambda **options: keras.layers.Dense(1, use_bias=False, **options), kernel)
        return parts.named(ops.reshape(dense(bounded), (-1, positions, key.shape[1])), "scores")
    mean = parts.named(ops.mean(bounded, axis=-1), "mean")
    return parts.named(ops.multiply(mean, depth * factor), "scores")


@expands("DotProductAttention")
def dot_product_attention(call: Call) -> Compose | None:
    """``softmax(scale * q k^T) v`` of [positions, heads, depth], as many heads of each."""
    given = _arguments(call, dict(zip(call.inputs, call.tensors, strict=True)))
    operation, shapes = call.operation, [sizes_of(tensor) for tensor in call.tensors]
    if given.get("bias") is not None or given.get("mask") is not None or operation.attn_logits_soft_cap:
        return None
    if len(shapes) != 3 or None in shapes or len({shape[1] for shape in shapes if shape is not None}) > 1:
        return None
    causal = {"use_causal_mask": operation.is_causal}
    allowed = _allowed(causal, given["query"].shape[1], given["key"].shape[1])
    if allowed is None:
        return None
    scale = given.get("scale") or 1 / math.sqrt(given["query"].shape[-1])

    def compose(parts: Parts, values: Values) -> Any:
        known = _arguments(call, values)
        query, key, value = (
            parts.named(ops.transpose(known[name], (0, 2, 1, 3)), f"{name}_turn") for name in ("query", "key", "value")
        )
        mixed = _mixed(parts, parts.named(ops.multiply(query, scale), "scaled"), key, value, "mixed", allowed)
        return parts.named(ops.transpose(mixed, (0, 2, 1, 3)))

    return compose
