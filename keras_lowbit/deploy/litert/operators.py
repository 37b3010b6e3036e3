"""Nodes as operators of a LiteRT file: whatever the operation's record says, put into the file's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_lowbit.deploy.graph import IntegerGraph, Node, Tensor
from keras_lowbit.deploy.graph.operations import operation_of
from keras_lowbit.deploy.graph.operations.operation import Builtin, Placed, Use
from keras_lowbit.deploy.litert.flatbuffer import FileBuilder, schema
from keras_lowbit.deploy.litert.float_subgraph import splice
from keras_lowbit.deploy.litert.weight_formats import BITS, Formats, pack_codes
from keras_lowbit.numerics.kernel_layouts import KernelLayout

_PADDING = {"same": schema.Padding.SAME, "valid": schema.Padding.VALID}
_ACTIVATION = {
    None: schema.ActivationFunctionType.NONE,
    "relu": schema.ActivationFunctionType.RELU,
    "relu6": schema.ActivationFunctionType.RELU6,
}
ABSENT = -1  # an operand that is left out


class Row(NamedTuple):
    """One layer as written.

    name: the node.   op: the LiteRT builtin.   weight_type: "int8", "int4" or "int2".   weight_bytes: of the
    kernel alone, or of the table of a function that is written as one.
    why: why this format.
    """

    name: str
    op: str
    weight_type: str
    weight_bytes: int
    why: str


class Emitter:
    """Turns nodes of `graph` into operators of `file`. formats: of each node with weights, by its name.

    batch_size: None for any.
    """

    def __init__(self, graph: IntegerGraph, file: FileBuilder, formats: Formats, batch_size: int | None) -> None:
        self.graph, self.file, self.formats, self.batch_size = graph, file, formats, batch_size
        self.index: dict[str, int] = {}
        self.rows: list[Row] = []

    def place(self, name: str) -> int:
        """Index in the file of a tensor of the graph, added when first asked for, under the same name."""
        if name not in self.index:
            t = self.graph.tensors[name]
            content = b"" if t.data is None else t.data.astype(t.data.dtype.newbyteorder("<")).tobytes()
            self.index[name] = self.add(name, t, t.dtype.upper(), t.scale, t.zero_point, content)
        return self.index[name]

    def add(
        self, name: str, like: Tensor, dtype: str, scale: Any = None, zero_point: int = 0, content: bytes = b""
    ) -> int:
        """Index of a new tensor of the file, of the shape of one of the graph. dtype: LiteRT's name of it."""
        any_batch = self.batch_size is None and not like.is_constant
        shape = like.static_shape(self.batch_size or 1)
        return self.file.tensor(name, shape, dtype, scale, zero_point, content=content, any_batch=any_batch)

    def emit(self, node: Node) -> None:
        """Append the operators of one node."""
        operation = operation_of(node)
        if operation.builtin is None:
            return self._splice(node)
        inputs, outputs = (tuple(self.graph.tensors[n] for n in names) for names in (node.inputs, node.outputs))
        weight_type = self.formats[node.name].weight_type if operation.weighted else "int8"
        steps = operation.operators(Use(node, inputs, outputs, self.batch_size, weight_type))
        if operation.kernel is not None:
            self._place_kernel(node, steps[-1].kind, operation.kernel)
        elif operation.parameters:
            codes = [tensor.data.nbytes for tensor in inputs if tensor.data is not None and tensor.dtype == "int8"]
            self.rows.append(Row(node.name, steps[-1].kind, "int8", sum(codes), "the operator's only format"))
        elif node.name in self.formats:  # written as a table of its codes
            table = self.graph.tensors[node.inputs[1]]
            self.rows.append(Row(node.name, steps[-1].kind, "int8", table.shape[0] or 0, self.formats[node.name].why))
        made: dict[str, int] = {}
        for step in steps:
            self._operator(node, step, made)
        return None

    def _operator(self, node: Node, builtin: Builtin, made: dict[str, int]) -> None:
        """Append one operator of a node. made: what those before it made, by name; added to."""
        constants = {key: self.file.integers(f"{node.name}/{key}", value) for key, value in builtin.constants.items()}
        made |= {key: self._placed(f"{node.name}/{key}", value) for key, value in builtin.placed.items()}
        named = made | constants
        operands = builtin.operands or (*range(len(node.inputs)), *constants)
        reads = [
            ABSENT if o is None else named[o] if isinstance(o, str) else self.place(node.inputs[o]) for o in operands
        ]
        if builtin.result and builtin.result not in made:
            made[builtin.result] = self._temporary(node, builtin)
        writes = [made[builtin.result]] if builtin.result else [self.place(name) for name in node.outputs]
        fields = _as_enums({**builtin.fields, **({} if builtin.result else _activation(node))})
        inner = [named[name] for name in builtin.intermediates]
        self.file.operator(builtin.kind, builtin.version, reads, writes, builtin.options, inner, **fields)

    def _placed(self, name: str, found: Placed) -> int:
        shape = tuple(1 if size is None else size for size in found.shape)
        content = (
            b"" if found.content is None else found.content.astype(found.content.dtype.newbyteorder("<")).tobytes()
        )
        scale = None if found.scale is None else np.array(found.scale, np.float32)
        return self.file.tensor(
            name,
            shape,
            found.dtype.upper(),
            scale,
            found.zero_point,
            content=content,
            any_batch=None in found.shape,
            is_variable=found.is_variable,
        )

    def _temporary(self, node: Node, builtin: Builtin) -> int:
        name = f"{node.name}/{builtin.result}"
        if builtin.result_shape is None:
            return self.add(name, self.graph.tensors[node.outputs[0]], "INT32")
        return self.file.tensor(name, builtin.result_shape, "INT32")

    def _place_kernel(self, node: Node, kind: str, layout: KernelLayout) -> None:
        """Add the kernel in LiteRT's layout, and its report row."""
        tensor, found = self.graph.tensors[node.inputs[1]], self.formats[node.name]
        if tensor.data is None:
            raise ValueError(f"kernel {tensor.name!r} has no codes: expected a constant")
        codes = np.ascontiguousarray(tensor.data.transpose(layout.litert_axes))
        content = pack_codes(codes, BITS[found.weight_type])
        self.rows.append(Row(node.name, kind, found.weight_type, len(content), found.why))
        shape, axis = _litert_shape(codes.shape, layout)
        self.index[tensor.name] = self.file.tensor(
            tensor.name, shape, found.weight_type.upper(), tensor.scale, 0, axis, content
        )

    def _splice(self, node: Node) -> None:
        made_for = node.attributes["batch_size"]
        if self.batch_size is None:
            raise ValueError(
                f"{node.op} {node.name!r} runs in float, for a batch of {made_for} alone: batch_size=None needs a model all of "
                "whose operations are integers. Give a number, or leave out what runs in float (see the report)"
            )
        if made_for != self.batch_size:
            raise ValueError(
                f"{node.op} {node.name!r} was converted for batch size {made_for}, the file is written for {self.batch_size}: "
                "lower the model again with that batch size"
            )
        ends = ([self.place(name) for name in names] for names in (node.inputs, node.outputs))
        splice(self.file, node.attributes["model"], node.name, *ends)


def _litert_shape(shape: Sequence[int], layout: KernelLayout) -> tuple[tuple[int, ...], int]:
    """Shape of a kernel in the file and the axis of its output channels; depthwise: [1, KH, KW, C * multiplier]."""
    if layout.is_depthwise:
        return (1, *shape[:-2], shape[-2] * shape[-1]), 3
    return tuple(shape), 0


def _activation(node: Node) -> dict[str, Any]:
    if "activation" not in node.attributes:
        return {}
    return {"fusedActivationFunction": _ACTIVATION[node.attributes["activation"]]}


def _as_enums(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | ({"padding": _PADDING[fields["padding"]]} if "padding" in fields else {})
