"""Products of two computed tensors, matrix by matrix."""

from __future__ import annotations

from collections.abc import Sequence

from keras_lowbit.deploy.graph.operations.attributes import FLAG
from keras_lowbit.deploy.graph.operations.operation import (
    FREE,
    Attributes,
    Builtin,
    Limit,
    Operation,
    Shape,
    Use,
    only_int16,
    output_scale,
    scales,
)

MOST_AXES = 5  # that LiteRT's kernel takes


def _batch_matmul_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    first, second = shapes
    if not 3 <= len(first) == len(second) <= MOST_AXES or first[:-2] != second[:-2]:
        raise ValueError(
            f"shapes {first} and {second} are no stacks of matrices: expected 3 to {MOST_AXES} axes, all but the last two equal"
        )
    rows, inner = first[:-3:-1] if attributes["transpose_a"] else first[-2:]
    depth, columns = second[:-3:-1] if attributes["transpose_b"] else second[-2:]
    if inner != depth:
        raise ValueError(
            f"matrices of {rows} x {inner} and {depth} x {columns} have no product: {inner} is not {depth}"
        )
    return (*first[:-2], rows, columns)


def _batch_matmul_builtin(use: Use) -> Builtin:
    fields = {"adjX": use.attributes["transpose_a"], "adjY": use.attributes["transpose_b"]}
    return Builtin("BATCH_MATMUL", 2, "BatchMatMulOptions", fields)


def _check_computed(use: Use) -> None:
    if constants := [tensor.name for tensor in use.inputs if tensor.is_constant]:
        raise ValueError(
            f"{use.where} multiplies by the constant {constants[0]!r}: expected a fully_connected node for it"
        )


def _depth(use: Use) -> float:
    return use.inputs[0].shape[-2 if use.attributes["transpose_a"] else -1] or 0


_PRODUCT = Limit(
    "input scales / output scale", lambda use: scales(use)[0] * scales(use)[1] / output_scale(use), 2.0**31 - 1
)
# Of int16 codes LiteRT multiplies int64 sums below 2**47 by a factor below 128.
_FACTOR_16 = only_int16(_PRODUCT._replace(below=128.0))
_SUMMED_16 = only_int16(Limit("number of products in a sum", lambda use: _depth(use), 2.0**17))

BATCH_MATMUL = Operation(
    "batch_matmul",
    _batch_matmul_shape,
    _batch_matmul_builtin,
    inputs=2,
    range=FREE,
    takes={"transpose_a": FLAG, "transpose_b": FLAG},
    int16=3,
    limits=(_PRODUCT, _FACTOR_16, _SUMMED_16),
    check=_check_computed,
)
