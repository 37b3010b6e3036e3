"""One function for each integer operation: which LiteRT builtin it is, in which version, with which options.

Versions are the lowest that have the int8 (or packed) kernel, as LiteRT's own version table gives them, so
that an older runtime refuses a file that it would compute wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from keras_lowbit.deploy.graph.float_subgraph import splice
from keras_lowbit.deploy.graph.integer_graph import IntegerGraph
from keras_lowbit.deploy.graph.tensors import Node
from keras_lowbit.deploy.litert.flatbuffer import FileBuilder, schema
from keras_lowbit.deploy.litert.weight_formats import BITS, Container, pack_codes

DENSE_VERSION = {"int8": 5, "int4": 10, "int2": 14}
_PADDING = {"same": schema.Padding.SAME, "valid": schema.Padding.VALID}
_ACTIVATION = {
    None: schema.ActivationFunctionType.NONE,
    "relu": schema.ActivationFunctionType.RELU,
    "relu6": schema.ActivationFunctionType.RELU6,
}


class Row(NamedTuple):
    """One layer as written.

    name: the node.   op: the LiteRT builtin.   weight_type: "int8", "int4" or "int2".   weight_bytes: of the
    kernel alone.
    why: why this container.
    """

    name: str
    op: str
    weight_type: str
    weight_bytes: int
    why: str


class Emitter:
    """Turns nodes of `graph` into operators of `file`. containers: of each node with weights, by its name."""

    def __init__(
        self, graph: IntegerGraph, file: FileBuilder, containers: Mapping[str, Container], batch_size: int
    ) -> None:
        self.graph, self.file, self.containers, self.batch_size = graph, file, containers, batch_size
        self.index: dict[str, int] = {}
        self.rows: list[Row] = []

    def place(self, name: str) -> int:
        """Index in the file of a tensor of the graph, added when first asked for, under the same name."""
        if name not in self.index:
            t = self.graph.tensors[name]
            content = b"" if t.data is None else t.data.astype(t.data.dtype.newbyteorder("<")).tobytes()
            self.index[name] = self.file.tensor(
                name, t.static_shape(self.batch_size), t.dtype.upper(), t.scale, t.zero_point, content=content
            )
        return self.index[name]

    def emit(self, node: Node) -> None:
        """Append the operators of one node."""
        _EMITTERS[node.op](self, node)

    def operator(
        self, node: Node, kind: str, version: int, options: str = "", extra: tuple[int, ...] = (), **fields: Any
    ) -> None:
        """Append one operator that reads the node's inputs, then `extra`, and writes the node's outputs."""
        inputs = [*map(self.place, node.inputs), *extra]
        if "activation" in node.attributes:
            fields["fusedActivationFunction"] = _ACTIVATION[node.attributes["activation"]]
        self.file.operator(kind, version, inputs, [self.place(n) for n in node.outputs], options, **fields)

    def kernel_shape(self, node: Node) -> tuple[int, ...]:
        """Shape of the node's kernel in the graph's layout."""
        return self.graph.tensors[node.inputs[1]].static_shape(0)

    def kernel(self, node: Node, kind: str, order: tuple[int, ...], shape: tuple[int, ...], axis: int = 0) -> int:
        """Add the kernel in LiteRT's layout, and its report row.

        order: the axes transposed.   shape: then this shape.   axis: of the output channels in it.
        """
        tensor, container = self.graph.tensors[node.inputs[1]], self.containers[node.name]
        if tensor.data is None:
            raise ValueError(f"kernel {tensor.name!r} has no codes: expected a constant")
        content = pack_codes(np.ascontiguousarray(tensor.data.transpose(order)), BITS[container.weight_type])
        self.rows.append(Row(node.name, kind, container.weight_type, len(content), container.why))
        index = self.file.tensor(tensor.name, shape, container.weight_type.upper(), tensor.scale, 0, axis, content)
        self.index[tensor.name] = index
        return index


def _windows(node: Node) -> dict[str, Any]:
    names = {"strides": "stride{}", "dilation": "dilation{}Factor", "pool_size": "filter{}"}
    found = {
        name.format(side): node.attributes[key][i]
        for key, name in names.items()
        if key in node.attributes
        for i, side in enumerate("HW")
    }
    return found | {"padding": _PADDING[node.attributes["padding"]]}


def _fully_connected(emitter: Emitter, node: Node) -> None:
    inputs, outputs = emitter.kernel_shape(node)
    emitter.kernel(node, "FULLY_CONNECTED", (1, 0), (outputs, inputs))
    version = DENSE_VERSION[emitter.containers[node.name].weight_type]
    emitter.operator(node, "FULLY_CONNECTED", version, "FullyConnectedOptions", keepNumDims=True)


def _conv2d(emitter: Emitter, node: Node) -> None:
    height, width, inputs, outputs = emitter.kernel_shape(node)
    emitter.kernel(node, "CONV_2D", (3, 0, 1, 2), (outputs, height, width, inputs))
    emitter.operator(node, "CONV_2D", 6 if node.attributes["groups"] > 1 else 3, "Conv2DOptions", **_windows(node))


def _depthwise(emitter: Emitter, node: Node) -> None:
    height, width, channels, multiplier = emitter.kernel_shape(node)
    emitter.kernel(node, "DEPTHWISE_CONV_2D", (0, 1, 2, 3), (1, height, width, channels * multiplier), axis=3)
    emitter.operator(
        node, "DEPTHWISE_CONV_2D", 3, "DepthwiseConv2DOptions", depthMultiplier=multiplier, **_windows(node)
    )


def _transpose_conv(emitter: Emitter, node: Node) -> None:
    height, width, outputs, inputs = emitter.kernel_shape(node)
    weights = emitter.kernel(node, "TRANSPOSE_CONV", (2, 0, 1, 3), (outputs, height, width, inputs))
    size = emitter.graph.tensors[node.outputs[0]].static_shape(emitter.batch_size)
    shape = emitter.file.integers(f"{node.name}/output_shape", size)
    activation = node.attributes["activation"]
    emitter.file.operator(
        "TRANSPOSE_CONV",
        4 if activation else 3,
        [shape, weights, emitter.place(node.inputs[0]), emitter.place(node.inputs[2])],
        [emitter.place(node.outputs[0])],
        "TransposeConvOptions",
        fusedActivationFunction=_ACTIVATION[activation],
        **_windows(node),
    )


def _mul(emitter: Emitter, node: Node) -> None:
    first, second, out = (emitter.graph.tensors[n].range.scale for n in (*node.inputs, *node.outputs))
    emitter.operator(node, "MUL", 3 if first * second / out >= 1 else 2, "MulOptions")


def _mean(emitter: Emitter, node: Node) -> None:
    axes = emitter.file.integers(f"{node.name}/axes", node.attributes["axes"])
    emitter.operator(node, "MEAN", 2, "ReducerOptions", (axes,), keepDims=node.attributes["keepdims"])


def _pad(emitter: Emitter, node: Node) -> None:
    paddings = emitter.file.integers(f"{node.name}/paddings", [[0, 0], *node.attributes["paddings"]])
    rank = len(emitter.graph.tensors[node.inputs[0]].shape)
    emitter.operator(node, "PAD", 4 if rank > 4 else 2, "PadOptions", (paddings,))


def _reshape(emitter: Emitter, node: Node) -> None:
    size = emitter.graph.tensors[node.outputs[0]].static_shape(emitter.batch_size)
    shape = emitter.file.integers(f"{node.name}/shape", size)
    emitter.operator(node, "RESHAPE", 1, "ReshapeOptions", (shape,), newShape=np.array(size, np.int32))


def _transpose(emitter: Emitter, node: Node) -> None:
    perm = emitter.file.integers(f"{node.name}/perm", node.attributes["perm"])
    rank = len(node.attributes["perm"])
    emitter.operator(node, "TRANSPOSE", 6 if rank > 5 else 4 if rank > 4 else 2, "TransposeOptions", (perm,))


def _strided_slice(emitter: Emitter, node: Node) -> None:
    a = node.attributes
    rows = {"begin": [0, *a["begin"]], "end": [emitter.batch_size, *a["end"]], "strides": [1, *a["strides"]]}
    extra = tuple(emitter.file.integers(f"{node.name}/{key}", row) for key, row in rows.items())
    emitter.operator(node, "STRIDED_SLICE", 4 if len(rows["begin"]) > 4 else 2, "StridedSliceOptions", extra)


def _resize(kind: str, options: str) -> Callable[[Emitter, Node], None]:
    def emit(emitter: Emitter, node: Node) -> None:
        a = node.attributes
        size = emitter.file.integers(f"{node.name}/size", a["size"])
        new = a["half_pixel_centers"] or (a["align_corners"] and kind == "RESIZE_NEAREST_NEIGHBOR")
        emitter.operator(
            node,
            kind,
            3 if new else 2,
            options,
            (size,),
            alignCorners=a["align_corners"],
            halfPixelCenters=a["half_pixel_centers"],
        )

    return emit


def _concatenation(emitter: Emitter, node: Node) -> None:
    emitter.operator(node, "CONCATENATION", 2, "ConcatenationOptions", axis=node.attributes["axis"])


def _leaky_relu(emitter: Emitter, node: Node) -> None:
    emitter.operator(node, "LEAKY_RELU", 1, "LeakyReluOptions", alpha=node.attributes["alpha"])


def _pool(kind: str) -> Callable[[Emitter, Node], None]:
    def emit(emitter: Emitter, node: Node) -> None:
        windows = {
            k.replace("filterH", "filterHeight").replace("filterW", "filterWidth"): v for k, v in _windows(node).items()
        }
        emitter.operator(node, kind, 2, "Pool2DOptions", **windows)

    return emit


def _plain(kind: str, version: int, options: str = "", **fields: Any) -> Callable[[Emitter, Node], None]:
    return lambda emitter, node: emitter.operator(node, kind, version, options, **fields)


def _island(emitter: Emitter, node: Node) -> None:
    made_for = node.attributes["batch_size"]
    if made_for != emitter.batch_size:
        raise ValueError(
            f"float_island {node.name!r} was converted for batch size {made_for}, the file is "
            "written for "
            f"{emitter.batch_size}: lower the model again with that batch size"
        )
    splice(
        emitter.file,
        node.attributes["model"],
        node.name,
        [emitter.place(n) for n in node.inputs],
        [emitter.place(n) for n in node.outputs],
    )


_EMITTERS: dict[str, Callable[[Emitter, Node], None]] = {
    "conv2d": _conv2d,
    "depthwise_conv2d": _depthwise,
    "transpose_conv": _transpose_conv,
    "fully_connected": _fully_connected,
    "add": _plain("ADD", 2, "AddOptions"),
    "sub": _plain("SUB", 2, "SubOptions"),
    "mul": _mul,
    "concatenation": _concatenation,
    "max_pool2d": _pool("MAX_POOL_2D"),
    "average_pool2d": _pool("AVERAGE_POOL_2D"),
    "mean": _mean,
    "pad": _pad,
    "reshape": _reshape,
    "transpose": _transpose,
    "strided_slice": _strided_slice,
    "resize_nearest": _resize("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions"),
    "resize_bilinear": _resize("RESIZE_BILINEAR", "ResizeBilinearOptions"),
    "softmax": _plain("SOFTMAX", 2, "SoftmaxOptions", beta=1.0),
    "logistic": _plain("LOGISTIC", 2),
    "tanh": _plain("TANH", 2),
    "relu": _plain("RELU", 2),
    "relu6": _plain("RELU6", 2),
    "leaky_relu": _leaky_relu,
    "hard_swish": _plain("HARD_SWISH", 1, "HardSwishOptions"),
    "quantize": _plain("QUANTIZE", 1, "QuantizeOptions"),
    "dequantize": _plain("DEQUANTIZE", 2, "DequantizeOptions"),
    "float_island": _island,
}
