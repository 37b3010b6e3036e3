"""Products with constants as dense layers, over whatever axes, and products of two tensors."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_lowbit.convert.analysis.functions import starts_with_tensor
from keras_lowbit.convert.expansion.normalizations import unit_length
from keras_lowbit.convert.expansion.registry import Compose, Parts, Values, array, expands, sizes_of, turned
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.keras_graph.copies import function_name

_LETTERS = "abcdefgh"
_OF_ALL = ("softmax", "log_softmax")  # functions of all values of the last axis


class DenseForm(NamedTuple):
    """kernel: [inputs, outputs].   outer, outputs: sizes of what a dense layer makes, the batch aside.   bias: of its outputs.
    turn: order of axes of what it reads, where it is another.   back: that of the result."""

    kernel: np.ndarray
    outer: tuple[int, ...]
    outputs: tuple[int, ...]
    bias: np.ndarray | None = None
    turn: tuple[int, ...] | None = None
    back: tuple[int, ...] | None = None


@expands("EinsumDense")
def einsum_dense(call: Call) -> Compose | None:
    """A dense layer over some axes: ``"abc,cde->abde"``, ``"abc,bd->adc"``."""
    layer = call.operation
    form = form_of_layer(layer, call.tensors[0])
    if form is None:
        return None
    apart = len(form.outputs) > 1 or form.back is not None
    if apart and function_name(layer.activation) in _OF_ALL:
        return None
    return lambda parts, values: dense(parts, values[call.inputs[0]], layer, form, "")


def form_of_layer(layer: Any, tensor: Any) -> DenseForm | None:
    """The form of an EinsumDense; None where it has none, or its bias is of positions."""
    equation, sizes = layer.equation.replace(" ", ""), sizes_of(tensor)
    if sizes is None or getattr(layer, "lora_enabled", False):
        return None
    if "..." in equation:
        missing = len(sizes) + 1 - len(equation.partition(",")[0].replace("...", ""))
        letters = [letter for letter in "ABCDEFGH" if letter not in equation][:missing]
        equation = equation.replace("...", "".join(letters))
    return dense_form(equation, array(layer.kernel), sizes, bias_of(layer))


def bias_of(layer: Any) -> np.ndarray | None:
    """The bias of a layer, if it has one."""
    return None if layer.bias is None else array(layer.bias)


def dense_form(
    equation: str, kernel: np.ndarray, sizes: tuple[int, ...], bias: np.ndarray | None = None
) -> DenseForm | None:
    """An einsum that sums axes of its input with those of a kernel, whose others the result has; None for any other."""
    left, _, result = equation.partition("->")
    source, _, weights = left.partition(",")
    inputs = [letter for letter in source if letter in weights]
    outputs = [letter for letter in weights if letter not in source]
    kept = [letter for letter in source if letter not in inputs]
    once = all(len(set(term)) == len(term) for term in (source, weights, result))
    fits = len(source) == len(sizes) + 1 and len(weights) == kernel.ndim and sorted(result) == sorted(kept + outputs)
    if not (once and fits and inputs and kept and kept[0] == source[0] == result[0]):
        return None
    known = dict(zip(source[1:], sizes, strict=True)) | dict(zip(weights, kernel.shape, strict=True))
    matrix = kernel.transpose([weights.index(letter) for letter in (*inputs, *outputs)])
    made = [*kept, *outputs]
    if bias is not None:
        bias = bias.reshape((1,) * (len(result) - bias.ndim) + bias.shape)
        bias = bias.transpose([result.index(letter) for letter in made])
        if any(size != 1 for size in bias.shape[: len(kept)]):
            return None
    shape = tuple(int(known[letter]) for letter in outputs)
    return DenseForm(
        matrix.reshape(math.prod(known[letter] for letter in inputs), -1),
        tuple(int(known[letter]) for letter in kept[1:]),
        shape,
        None if bias is None else np.broadcast_to(bias.reshape(bias.shape[len(kept) :]), shape).reshape(-1),
        _order([source.index(letter) for letter in (*kept, *inputs)]),
        _order([made.index(letter) for letter in result]),
    )


def _order(places: list[int]) -> tuple[int, ...] | None:
    """Places of axes, None where each stays."""
    return None if places == sorted(places) else tuple(places)


def dense(parts: Parts, x: Any, layer: Any, form: DenseForm, part: str, factor: float = 1.0) -> Any:
    """The layer as reshape, Dense, reshape; several axes of outputs stay one where a part is named. factor: of its result.

    layer: whose activation, regularizer and constraint there are; None for a constant.
    """
    inputs, units = form.kernel.shape
    if form.turn is not None:
        x = parts.named(ops.transpose(x, form.turn), f"{part}_turn".lstrip("_"))
    if tuple(x.shape[1:]) != (*form.outer, inputs):
        x = parts.named(ops.reshape(x, (-1, *form.outer, inputs)), f"{part}_rows".lstrip("_"))
    weights = {"kernel": form.kernel * factor} | ({} if form.bias is None else {"bias": form.bias * factor})
    kept = {} if layer is None else {name: getattr(layer, name) for name in _KEPT}
    several, moved = len(form.outputs) != 1, form.back is not None
    made = parts.layer(
        f"{part}_units".lstrip("_") if (several or moved) and not part else part,
        lambda **options: keras.layers.Dense(units, use_bias=form.bias is not None, **kept, **options),
        weights,
    )(x)
    if part or not (several or moved):
        return made
    if several:
        made = parts.named(ops.reshape(made, (-1, *form.outer, *form.outputs)), "apart" if moved else "")
    return parts.named(ops.transpose(made, form.back)) if moved else made


_KEPT = ("activation", "kernel_regularizer", "kernel_constraint")


def with_constant(call: Call, equation: str) -> Compose | None:
    """A product of a tensor and a constant. equation: of the tensor and the constant, in this order."""
    sizes, constants = sizes_of(call.tensors[0]), [value for value in call.constants() if np.ndim(value)]
    if len(call.inputs) != 1 or len(constants) != 1 or sizes is None:
        return None
    form = dense_form(equation, np.asarray(constants[0], np.float32), sizes)
    return None if form is None else lambda parts, values: dense(parts, values[call.inputs[0]], None, form, "")


@expands("Matmul")
def matmul(call: Call) -> Compose | None:
    """A tensor times a constant matrix, or one times a tensor: a dense layer without a bias."""
    rank = len(call.tensors[0].shape)
    if any(np.ndim(value) != 2 for value in call.constants() if value is not None) or not 2 <= rank <= len(_LETTERS):
        return None
    source, other = _LETTERS[:rank], "z"
    if starts_with_tensor(call):
        return with_constant(call, f"{source},{source[-1]}{other}->{source[:-1]}{other}")
    return with_constant(call, f"{source},{other}{source[-2]}->{source[:-2]}{other}{source[-1]}") if rank > 2 else None


@expands("Dot")
def dot(call: Call) -> Compose | None:
    """The product of two tensors over one axis of each, as a product of matrices; of their directions if it normalizes."""
    layer, ranks = call.operation, [len(tensor.shape) for tensor in call.tensors]
    if ranks not in ([2, 2], [3, 3]) or any(sizes_of(tensor) is None for tensor in call.tensors):
        return None
    axes = [layer.axes] * 2 if isinstance(layer.axes, int) else list(layer.axes)
    first, second = (axis % rank for axis, rank in zip(axes, ranks, strict=True))

    def compose(parts: Parts, values: Values) -> Any:
        left, right = (values[key] for key in (call.inputs[0], call.inputs[-1]))
        if layer.normalize:
            left = unit_length(parts.within("first"), left, (first,))
            right = unit_length(parts.within("second"), right, (second,))
        if ranks == [2, 2]:
            left = parts.named(ops.expand_dims(left, 1), "row")
            right = parts.named(ops.expand_dims(right, 2), "column")
            return parts.named(ops.reshape(parts.named(ops.matmul(left, right), "product"), (-1, 1)))
        left = left if first == 2 else turned(parts, left, "turn_first")
        right = right if second == 1 else turned(parts, right, "turn_second")
        return parts.named(ops.matmul(left, right))

    return compose if 0 not in (first, second) else None
