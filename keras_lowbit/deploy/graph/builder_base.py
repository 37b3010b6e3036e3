"""What every method of `GraphBuilder` stands on: names, constants, and the check of each node before it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_lowbit.deploy.graph.integer_graph import IntegerGraph
from keras_lowbit.deploy.graph.operations import OPERATIONS, check_node
from keras_lowbit.deploy.graph.operations.attributes import check_attributes
from keras_lowbit.deploy.graph.operations.checks import LARGEST_SUM, bias_scale, bias_types, largest_sums
from keras_lowbit.deploy.graph.tensors import PLAIN, Node, Range, Tensor, check_scale

Padding = str | Sequence[Sequence[int]]


class BaseBuilder:
    """Inputs, constants, the result; the operations are `GraphBuilder`'s."""

    def __init__(self, metadata: Mapping[str, Any] | None = None) -> None:
        self._metadata = dict(metadata or {})
        self._tensors: dict[str, Tensor] = {}
        self._nodes: list[Node] = []
        self._inputs: list[str] = []

    # inputs, constants, result

    def input(self, name: str, shape: Sequence[int], dtype: str = "int8", range: Range | None = None) -> str:
        """An input of the graph. shape: without the batch. range: its grid, for codes, whose type it says; None for values.

        dtype: of values, one of `PLAIN`.
        """
        if range is not None and dtype == "int8":
            dtype = range.dtype
        if (range is None) != (dtype in PLAIN) or (range is not None and range.dtype != dtype):
            raise ValueError(
                f"input {name!r} is {dtype} with range {range}: int8 needs a range and int16 one of its type, "
                f"{', '.join(PLAIN)} have none"
            )
        self._inputs.append(self._add(self._activation(name, (None, *shape), range, dtype)))
        return name

    def constant(self, name: str, codes: np.ndarray, scale: float, zero_point: int = 0, dtype: str = "int8") -> str:
        """A constant operand of add, sub or mul: `real = scale * (codes - zero_point)`. codes: full shape; one number
        gets the shape (1,). dtype: of the codes, that of the other operand."""
        codes = np.atleast_1d(codes)
        return self._add(
            Tensor(
                name,
                np.shape(codes),
                dtype,
                np.array(scale, np.float32),
                zero_point,
                integers(codes, dtype, np.iinfo(dtype).min, f"constant {name!r}"),
            )
        )

    def build(
        self,
        outputs: Sequence[str],
        inputs: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> IntegerGraph:
        """The finished, validated graph. ValueError if an output is unknown or the graph is not sound.

        inputs: their order, that in which they were added by default.   metadata: added to the builder's.
        """
        ends = tuple(self._inputs if inputs is None else inputs), tuple(outputs)
        graph = IntegerGraph(self._tensors, tuple(self._nodes), *ends, {**self._metadata, **(metadata or {})})
        graph.validate(nodes=False)  # each was checked when it was added
        return graph

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs added so far."""
        return tuple(self._inputs)

    def operation(
        self,
        op: str,
        inputs: Sequence[str],
        name: str,
        out: Range | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> str:
        """Any operation without weights, by its name in `graph.operations`.

        out: the output's range, for operations that have one of their own; others keep that of their first input.
        ValueError: an operation that is unknown or has weights or a model of its own, no inputs, incomplete attributes.
        """
        if op not in OPERATIONS:
            raise ValueError(f"{op} {name!r}: unknown operation; expected one of {', '.join(OPERATIONS)}")
        if OPERATIONS[op].has_parameters or OPERATIONS[op].builtin is None:
            raise ValueError(f"{op} {name!r} has weights or a model: call its own method of GraphBuilder")
        if not inputs:
            raise ValueError(f"{op} {name!r} has no inputs: expected {OPERATIONS[op].inputs or 'one or more'}")
        record = OPERATIONS[op]
        found: Range | str | None = out
        if out is None and not isinstance(record.range, str):
            found = record.fixed_range(self.tensor(inputs[0]).dtype)
        elif out is None and "int8" in record.writes:
            found = "keep"
        plain: dict[str, Any] = {"activation": None} if OPERATIONS[op].fuses_activation else {}
        return self._node(op, name, tuple(inputs), {**plain, **(attributes or {})}, found)

    def tensor(self, name: str) -> Tensor:
        """A tensor added so far. ValueError lists the known names if there is none of this name."""
        if name not in self._tensors:
            raise ValueError(f"no tensor is named {name!r}; known: {', '.join(self._tensors) or 'none yet'}")
        return self._tensors[name]

    # for the operations

    def _weighted(
        self,
        op: str,
        x: str,
        codes: np.ndarray,
        scales: np.ndarray,
        bias: np.ndarray | None,
        out: Range,
        name: str,
        attributes: dict[str, Any],
    ) -> str:
        where = f"{op} {name!r}"
        if self.tensor(x).scale is None:
            raise ValueError(f"{where} reads {x!r}, which is float32: quantize it first")
        codes = integers(codes, "int8", -127, f"{where} kernel")
        scale = np.asarray(scales, np.float32)
        check_scale(scale, f"{where} kernel")
        with np.errstate(over="ignore", under="ignore"):
            step = bias_scale(self.tensor(x), scale)
        check_scale(step, f"{where} bias (input scale * weight scale)")
        bias = np.zeros(scale.shape, np.int32) if bias is None else np.asarray(bias)
        kind = self._bias_type(op, x, codes, bias)
        bias = integers(bias, kind, -LARGEST_SUM[kind], f"{where} bias", LARGEST_SUM[kind])
        kernel = Tensor(f"{name}/kernel", codes.shape, "int8", scale, 0, codes)
        added = Tensor(f"{name}/bias", bias.shape, kind, step, 0, bias)
        return self._node(op, name, (x, kernel.name, added.name), attributes, out, (kernel, added))

    def _bias_type(self, op: str, x: str, codes: np.ndarray, bias: np.ndarray) -> str:
        """The first type of bias that holds every sum, of those that LiteRT's kernel takes; the last one if none does."""
        record, real = OPERATIONS[op], self.tensor(x)
        *faster, last = bias_types(record, real)
        if not faster or record.kernel is None or not np.issubdtype(bias.dtype, np.number):
            return last
        sums = largest_sums(record.kernel.by_output(codes), bias.astype(np.float64), real.range)
        return next((kind for kind in faster if not (sums > LARGEST_SUM[kind]).any()), last)

    def _explicit_padding(self, x: str, padding: Padding, name: str) -> tuple[str, str]:
        if isinstance(padding, str):
            return x, padding
        if len(padding) != 2 or any(len(p) != 2 for p in padding):
            raise ValueError(
                f"{name!r} has padding {padding!r}: expected 'same', 'valid' or ((top, bottom), (left, right))"
            )
        if not np.any(padding):
            return x, "valid"
        return self._node(
            "pad", f"{name}/pad", (x,), {"paddings": [[int(v) for v in p] for p in (*padding, (0, 0))]}
        ), "valid"

    def _node(
        self,
        op: str,
        name: str,
        inputs: tuple[str, ...],
        attributes: dict[str, Any],
        out: Range | str | None = "keep",
        constants: Sequence[Tensor] = (),
    ) -> str:
        tensors = [*map(self.tensor, inputs[: len(inputs) - len(constants)]), *constants]
        dtype = OPERATIONS[op].writes[0]
        if isinstance(out, str):
            kept = tensors[-1] if op == "where" else tensors[0]
            out, dtype = (None, kept.dtype) if kept.scale is None else (kept.range, dtype)
        check_attributes(OPERATIONS[op].attributes, attributes, f"{op} {name!r}")
        try:
            shape = OPERATIONS[op].infer_shape(attributes, [t.shape for t in tensors])
        except ValueError as error:
            raise ValueError(f"{op} {name!r}: {error}") from error
        made = [self._activation(name, shape, Range(*out) if out is not None else None, dtype)]
        for dtype in OPERATIONS[op].also_writes:
            made.append(self._activation(f"{name}/output_{len(made)}", shape, None, dtype))
        self._insert(Node(op, name, inputs, tuple(t.name for t in made), attributes), [*constants, *made])
        return name

    def _insert(self, node: Node, made: Sequence[Tensor]) -> None:
        """Check the node with its new tensors, and only then keep them: a refused node leaves no trace."""
        if any(n.name == node.name for n in self._nodes):
            raise ValueError(f"two nodes are named {node.name!r}: names are unique")
        self._refuse_taken(made)
        for tensor in made:
            tensor.check()
        check_node(node, {**self._tensors, **{t.name: t for t in made}})
        self._tensors.update((t.name, t) for t in made)
        self._nodes.append(node)

    def _add(self, tensor: Tensor) -> str:
        self._refuse_taken([tensor])
        tensor.check()
        self._tensors[tensor.name] = tensor
        return tensor.name

    def _refuse_taken(self, made: Sequence[Tensor]) -> None:
        taken = [t.name for t in made if t.name in self._tensors]
        if taken:
            raise ValueError(f"a tensor is already named {taken[0]!r}: names are unique")

    @staticmethod
    def _activation(name: str, shape: Sequence[int | None], out: Range | None, dtype: str = "float32") -> Tensor:
        if out is None:
            return Tensor(name, tuple(shape), dtype)
        if out.zero_point != int(out.zero_point):
            raise ValueError(f"tensor {name!r} has zero point {out.zero_point}: expected a whole number")
        return Tensor(name, tuple(shape), out.dtype, np.array(out.scale, np.float32), int(out.zero_point))


def integers(codes: Any, dtype: str, low: int, where: str, most: int | None = None) -> np.ndarray:
    """`codes` as `dtype`. ValueError if any is not a whole number in [low, most], by default the largest of dtype."""
    array, high = np.asarray(codes), np.iinfo(dtype).max if most is None else most
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{where} has dtype {array.dtype}: expected integers")
    bad = ~((array >= low) & (array <= high)) | (array != np.round(array))
    if bad.any():
        raise ValueError(
            f"{where} has the code {array[bad][0]} ({int(bad.sum())} bad of {array.size}): expected whole numbers from {low} "
            f"to {high}. A weight needs a larger scale; a bias beyond {dtype} needs a larger weight scale in its channel"
        )
    return np.ascontiguousarray(array.astype(dtype))
