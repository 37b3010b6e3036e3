"""Attention and other products of tensors, and dense layers over several axes."""

from __future__ import annotations

import inspect
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lowbit.convert.expansion.registry import Compose, Parts, Values, array, expands, sizes_of, turned
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.keras_graph.copies import function_name
from keras_lowbit.layers import MaskScores


@expands("EinsumDense")
def einsum_dense(call: Call) -> Compose | None:
    """A dense layer over the last axes: ``"abc,cde->abde"``."""
    layer = call.operation
    form = _dense_form(layer, call.tensors[0])
    mixes = form is not None and len(form.outputs) > 1 and function_name(layer.activation) == "softmax"
    if form is None or mixes or not _bias_is_of_units(layer, form):
        return None
    return lambda parts, values: _dense(parts, values[call.inputs[0]], call.operation, form, "")


class _Form:
    """kernel: [inputs, outputs].   outer, outputs: sizes of the result.   outer, inputs: those of what it reads."""

    def __init__(self, kernel: np.ndarray, outer: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        self.kernel, self.outer, self.outputs = kernel, outer, outputs


def _dense_form(layer: Any, tensor: Any) -> _Form | None:
    """An einsum that contracts the last axes of its input and puts the others of the kernel last; None for any other."""
    sizes = sizes_of(tensor)
    left, _, result = layer.equation.replace(" ", "").partition("->")
    source, _, weights = left.partition(",")
    if sizes is None or getattr(layer, "lora_enabled", False):
        return None
    if "..." in source:
        missing = len(sizes) + 1 - len(source.replace("...", ""))
        letters = [letter for letter in "ABCDEFGH" if letter not in layer.equation][:missing]
        source, result = (side.replace("...", "".join(letters)) for side in (source, result))
    inputs = [letter for letter in source if letter in weights]
    outputs = [letter for letter in weights if letter not in source]
    kept = source[: len(source) - len(inputs)]
    fits = len(source) == len(sizes) + 1 and source == kept + "".join(inputs) and result == kept + "".join(outputs)
    if not fits or not kept or not inputs:
        return None
    shape = dict(zip(weights, array(layer.kernel).shape, strict=True))
    kernel = array(layer.kernel).transpose([weights.index(letter) for letter in (*inputs, *outputs)])
    found = tuple(shape[letter] for letter in outputs)
    return _Form(kernel.reshape(math.prod(shape[letter] for letter in inputs), -1), sizes[: len(kept) - 1], found)


def _dense(parts: Parts, x: Any, layer: Any, form: _Form, part: str, factor: float = 1.0) -> Any:
    """The layer as reshape, Dense, reshape; several axes of outputs stay one. factor: of its result."""
    inputs, units = form.kernel.shape
    if tuple(x.shape[1:]) != (*form.outer, inputs):
        x = parts.named(ops.reshape(x, (-1, *form.outer, inputs)), f"{part}_rows".lstrip("_"))
    bias = None if layer.bias is None else np.broadcast_to(array(layer.bias), (*form.outer, *form.outputs))
    if bias is not None:
        bias = bias.reshape(-1, units)[0]
    weights = {"kernel": form.kernel * factor} | ({} if bias is None else {"bias": bias * factor})
    several = len(form.outputs) != 1
    made = parts.layer(
        f"{part}_units".lstrip("_") if several and not part else part,
        lambda **options: keras.layers.Dense(
            units,
            use_bias=bias is not None,
            activation=layer.activation,
            kernel_regularizer=layer.kernel_regularizer,
            kernel_constraint=layer.kernel_constraint,
            **options,
        ),
        weights,
    )(x)
    if not several or part:
        return made
    return parts.named(ops.reshape(made, (-1, *form.outer, *form.outputs)), part)


def _bias_is_of_units(layer: Any, form: _Form) -> bool:
    """Whether every position has the same bias."""
    if layer.bias is None:
        return True
    shape = tuple(layer.bias.shape)
    return all(size == 1 for size in shape[: len(shape) - len(form.outputs)])


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
    forms = {name: _dense_form(projections[name], source) for name, source in _sources(given).items()}
    known = {name: form for name, form in forms.items() if form is not None}
    fits = len(known) == 3 and all(_bias_is_of_units(projections[name], form) for name, form in known.items())
    if not fits or len(heads.output.kernel.shape) != 3:
        return None
    factors = {"query": 1 / math.sqrt(heads.depth), "key": 1.0, "value": 1.0}

    def compose(parts: Parts, values: Values) -> Any:
        projected = {}
        for name, source in _sources(_arguments(call, values)).items():
            units = _dense(parts, source, projections[name], known[name], name, factors[name])
            projected[name] = heads.apart(parts, units, name)
        mask = _mask_of_inputs(parts, call, values)
        mixed = _mixed(parts, projected["query"], projected["key"], projected["value"], "mixed", allowed, mask)
        apart = parts.named(ops.transpose(mixed, (0, 2, 1, 3)), "turn_back")
        _, positions, *units = apart.shape
        rows = parts.named(ops.reshape(apart, (-1, positions, math.prod(units))), "joined")
        kernel = array(heads.output.kernel)
        form = _Form(kernel.reshape(-1, kernel.shape[-1]), (positions,), kernel.shape[-1:])
        return _dense(parts, rows, heads.output, form, "")

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
    if rate := parts.operation.dropout:
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
    """``softmax(scores) v``: the scores are dot products without a trained scale, or ``sum(scale * tanh(q + k))``."""
    layer = call.operation
    additive = isinstance(layer, keras.layers.AdditiveAttention)
    given = _arguments(call, dict(zip(call.inputs, call.tensors, strict=True)))
    plain = (additive or (layer.score_mode == "dot" and not layer.use_scale)) and _is_plain(
        given, ("inputs", "training", "use_causal_mask", "mask")
    )
    if not plain or not _are_sequences(call):
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
            made = _mixed(parts, query, key, value, part, allowed, of_value)
        if of_query is None:
            return made
        return parts.named(ops.where(parts.named(ops.expand_dims(of_query, -1), "mask_of_query"), made, 0.0))

    return compose


def _additive_scores(parts: Parts, query: Any, key: Any) -> Any:
    """``sum(scale * tanh(q + k))`` of each query and each key, a dense layer of one unit where the scale is trained."""
    layer, (positions, depth) = parts.operation, query.shape[1:]
    of_query = parts.named(ops.expand_dims(query, 2), "query_rows")
    of_key = parts.named(ops.expand_dims(key, 1), "key_columns")
    bounded = parts.named(ops.tanh(parts.named(ops.add(of_query, of_key), "sums")), "bounded")
    if layer.use_scale:
        kernel = {"kernel": array(layer.scale)[:, None]}
        dense = parts.layer("scale", lambda **options: keras.layers.Dense(1, use_bias=False, **options), kernel)
        return parts.named(ops.reshape(dense(bounded), (-1, positions, key.shape[1])), "scores")
    mean = parts.named(ops.mean(bounded, axis=-1), "mean")
    return parts.named(ops.multiply(mean, float(depth)), "scores")


@expands("Dot")
def dot(call: Call) -> Compose | None:
    """The product of two tensors over one axis of each, as a product of matrices."""
    layer, ranks = call.operation, [len(tensor.shape) for tensor in call.tensors]
    if layer.normalize or ranks not in ([2, 2], [3, 3]) or any(sizes_of(tensor) is None for tensor in call.tensors):
        return None
    axes = [layer.axes] * 2 if isinstance(layer.axes, int) else list(layer.axes)
    first, second = (axis % rank for axis, rank in zip(axes, ranks, strict=True))

    def compose(parts: Parts, values: Values) -> Any:
        left, right = (values[key] for key in (call.inputs[0], call.inputs[-1]))
        if ranks == [2, 2]:
            left = parts.named(ops.expand_dims(left, 1), "row")
            right = parts.named(ops.expand_dims(right, 2), "column")
            return parts.named(ops.reshape(parts.named(ops.matmul(left, right), "product"), (-1, 1)))
        left = left if first == 2 else turned(parts, left, "turn_first")
        right = right if second == 1 else turned(parts, right, "turn_second")
        return parts.named(ops.matmul(left, right))

    return compose if 0 not in (first, second) else None


@expands("Matmul")
def matmul(call: Call) -> Compose | None:
    """A tensor times a constant matrix: a dense layer without a bias."""
    constants = [value for value in call.constants() if value is not None]
    if len(call.inputs) != 1 or len(constants) != 1 or np.ndim(constants[0]) != 2:
        return None
    rank, kernel = len(call.tensors[0].shape), np.asarray(constants[0], np.float32)
    fits = rank >= 2 and call.tensors[0].shape[-1] == kernel.shape[0] and call.results[0].shape[-1] == kernel.shape[1]
    if not fits or len(call.results[0].shape) != rank:
        return None
    return lambda parts, values: parts.layer(
        "", lambda **options: keras.layers.Dense(kernel.shape[1], use_bias=False, **options), {"kernel": kernel}
    )(values[call.inputs[0]])
