"""`einsum` of two tensors as a product of stacks of matrices."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from keras import ops

from keras_lowbit.convert.analysis.functions import starts_with_tensor
from keras_lowbit.convert.expansion.products import with_constant
from keras_lowbit.convert.expansion.registry import Compose, Parts, Values, expands, sizes_of, turned
from keras_lowbit.keras_graph.calls import Call


@expands("Einsum")
def einsum(call: Call) -> Compose | None:
    """A product of two tensors over some axes, ``"bqhd,bkhd->bhqk"``: of stacks of matrices, and moved back.

    With a constant: a dense layer.
    """
    if len(call.inputs) == 1:
        left, _, result = call.operation.subscripts.replace(" ", "").partition("->")
        terms = left.split(",")
        ordered = terms if starts_with_tensor(call) else terms[::-1]
        return with_constant(call, f"{','.join(ordered)}->{result}") if len(terms) == 2 and "." not in left else None
    form = _einsum_form(call)
    if form is None:
        return None

    def compose(parts: Parts, values: Values) -> Any:
        first, second = (values[key] for key in call.inputs)
        rows, columns = form.sizes(form.rows), form.sizes(form.columns)
        summed, outer = math.prod(form.sizes(form.summed)), form.sizes(form.stacks[1:])
        left = _matrices(parts, first, form.order(0), (*outer, math.prod(rows), summed), "first")
        right = _matrices(parts, second, form.order(1), (*outer, math.prod(columns), summed), "second")
        made = parts.named(ops.matmul(left, turned(parts, right, "second_columns")), "product")
        made = parts.named(ops.reshape(made, (-1, *outer, *rows, *columns)), "apart")
        order = form.stacks + form.rows + form.columns
        return parts.named(ops.transpose(made, [order.index(label) for label in form.result]))

    return compose


class _EinsumForm(NamedTuple):
    """terms: labels of both tensors.   stacks: labels of both and the result, the batch first.   summed: of both alone.
    rows, columns: of the first or the second, and the result.   known: size by label, the batch aside."""

    terms: tuple[str, str]
    result: str
    stacks: str
    summed: str
    rows: str
    columns: str
    known: dict[str, int]

    def sizes(self, labels: str) -> tuple[int, ...]:
        """Sizes of axes."""
        return tuple(self.known[label] for label in labels)

    def order(self, place: int) -> list[int]:
        """The axes of a tensor as those of stacks of matrices, what is summed last."""
        inner = (self.rows if place == 0 else self.columns) + self.summed
        return [self.terms[place].index(label) for label in self.stacks + inner]


def _einsum_form(call: Call) -> _EinsumForm | None:
    """The form of an einsum of two tensors whose samples stay apart; None for any other."""
    left, arrow, result = call.operation.subscripts.replace(" ", "").partition("->")
    first, _, second = left.partition(",")
    known = [sizes_of(tensor) for tensor in call.tensors]
    if len(call.inputs) != 2 or not arrow or not result or "." in left or "," in second or None in known:
        return None
    stacks = "".join(label for label in result if label in first and label in second)
    summed = "".join(label for label in first if label in second and label not in result)
    rows, columns = (
        "".join(label for label in own if label not in other and label in result)
        for own, other in ((first, second), (second, first))
    )
    once = all(len(set(term)) == len(term) for term in (first, second, result))
    complete = {*first, *second} == {*stacks, *summed, *rows, *columns} and set(result) == {*stacks, *rows, *columns}
    if not (once and complete and first[0] == second[0] == result[0] and summed and rows and columns):
        return None
    sizes = dict(zip(first[1:] + second[1:], (known[0] or ()) + (known[1] or ()), strict=True))
    return _EinsumForm((first, second), result, stacks, summed, rows, columns, sizes) if len(stacks) <= 3 else None


def _matrices(parts: Parts, value: Any, order: list[int], shape: tuple[int, ...], name: str) -> Any:
    """A tensor with its axes in another order, as stacks of matrices."""
    if order != sorted(order):
        value = parts.named(ops.transpose(value, order), f"{name}_turn")
    return value if tuple(value.shape[1:]) == shape else parts.named(ops.reshape(value, (-1, *shape)), name)
