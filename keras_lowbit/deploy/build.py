"""GraphBuilder: makes an integer graph node by node and refuses at once what cannot be run exactly.

Conventions of every method: shapes, paddings and slices leave the batch axis out; axis numbers count it as
axis 0. Each method returns the name of its output tensor, which is the node's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_lowbit.deploy import checks
from keras_lowbit.deploy.graph import IntegerGraph, Node, Range, Tensor
from keras_lowbit.deploy.shapes import deconvolved, infer_shape

__all__ = ["GraphBuilder", "Range"]

Pair = Sequence[int]
Padding = str | Sequence[Sequence[int]]


class GraphBuilder:
    """Builds an IntegerGraph.

    >>> b = GraphBuilder(metadata={"recipe": "ternary"})
    >>> x = b.input("images", (32, 32, 3), range=Range(1 / 255, -128))
    >>> y = b.conv2d(x, codes, scales, bias, Range(0.1, -128), "conv", padding="same", activation="relu")
    >>> graph = b.build(outputs=[y])
    """

    def __init__(self, metadata: Mapping[str, Any] | None = None) -> None:
        self._metadata = dict(metadata or {})
        self._tensors: dict[str, Tensor] = {}
        self._nodes: list[Node] = []
        self._inputs: list[str] = []

    # inputs, constants, result

    def input(self, name: str, shape: Sequence[int], dtype: str = "int8", range: Range | None = None) -> str:
        """An input of the graph. shape: without the batch. range: its grid, for int8; None for float32."""
        if (range is None) != (dtype == "float32"):
            raise ValueError(f"input {name!r} is {dtype} with range {range}: int8 needs a range, float32 has none")
        self._inputs.append(self._add(self._activation(name, (None, *shape), range)))
        return name

    def constant(self, name: str, codes: np.ndarray, scale: float, zero_point: int = 0) -> str:
        """A constant int8 operand of add, sub or mul: `real = scale * (codes - zero_point)`. codes: full
        shape."""
        return self._add(Tensor(name, np.shape(codes), "int8", np.array(scale, np.float32), zero_point,
                                _integers(codes, "int8", -128, f"constant {name!r}")))

    def build(self, outputs: Sequence[str]) -> IntegerGraph:
        """The finished, validated graph. ValueError if an output is unknown or the graph is not sound."""
        graph = IntegerGraph(self._tensors, tuple(self._nodes), tuple(self._inputs), tuple(outputs), self._metadata)
        graph.validate()
        return graph

    def tensor(self, name: str) -> Tensor:
        """A tensor added so far. ValueError lists the known names if there is none of this name."""
        if name not in self._tensors:
            raise ValueError(f"no tensor is named {name!r}; known: {', '.join(self._tensors) or 'none yet'}")
        return self._tensors[name]

    # operations with weights

    def conv2d(self, x: str, codes: np.ndarray, scales: np.ndarray, bias: np.ndarray | None, out: Range, name: str,
               strides: Pair = (1, 1), padding: Padding = "valid", dilation: Pair = (1, 1), groups: int = 1,
               activation: str | None = None) -> str:
        """2-D convolution. codes: int8 [KH,KW,IC/groups,OC]; scales: [OC]; bias: int32 [OC] or None (zeros).

        padding: "same", "valid" or ((top, bottom), (left, right)); the last adds a pad node `name/pad`.
        """
        x, padding = self._explicit_padding(x, padding, name)
        attributes = {"strides": [*strides], "padding": padding, "dilation": [*dilation], "groups": groups,
                      "activation": activation}
        return self._weighted("conv2d", x, codes, scales, bias, out, name, attributes)

    def depthwise_conv2d(self, x: str, codes: np.ndarray, scales: np.ndarray, bias: np.ndarray | None, out: Range,
                         name: str, strides: Pair = (1, 1), padding: Padding = "valid", dilation: Pair = (1, 1),
                         activation: str | None = None) -> str:
        """Depthwise convolution. codes: int8 [KH,KW,C,M]; output channel c * M + m; scales, bias: [C * M]."""
        x, padding = self._explicit_padding(x, padding, name)
        attributes = {"strides": [*strides], "padding": padding, "dilation": [*dilation], "activation": activation}
        return self._weighted("depthwise_conv2d", x, codes, scales, bias, out, name, attributes)

    def transpose_conv(self, x: str, codes: np.ndarray, scales: np.ndarray, bias: np.ndarray | None, out: Range,
                       name: str, strides: Pair = (1, 1), padding: str = "valid",
                       output_shape: Pair | None = None, activation: str | None = None) -> str:
        """Transposed convolution. codes: int8 [KH,KW,OC,IC]; scales, bias: [OC].

        output_shape: (height, width); None: `in * stride` for "same", `in * stride + max(kernel - stride, 0)`
        for "valid".
        """
        shape, kernel = self.tensor(x).shape, np.shape(codes)
        if output_shape is None and len(shape) == len(kernel) == 4:
            output_shape = [deconvolved(shape[i + 1] or 0, kernel[i], strides[i], padding) for i in (0, 1)]
        attributes = {"strides": [*strides], "padding": padding, "output_shape": [*(output_shape or ())],
                      "activation": activation}
        return self._weighted("transpose_conv", x, codes, scales, bias, out, name, attributes)

    def fully_connected(self, x: str, codes: np.ndarray, scales: np.ndarray, bias: np.ndarray | None, out: Range,
                        name: str, activation: str | None = None) -> str:
        """Dense on the last axis, the other axes kept. codes: int8 [IC,OC]; scales, bias: [OC]."""
        return self._weighted("fully_connected", x, codes, scales, bias, out, name, {"activation": activation})

    # elementwise

    def add(self, a: str, b: str, out: Range, name: str, activation: str | None = None) -> str:
        """a + b, broadcasting; b may be a constant."""
        return self._node("add", name, (a, b), {"activation": activation}, out)

    def sub(self, a: str, b: str, out: Range, name: str, activation: str | None = None) -> str:
        """a - b, broadcasting; either may be a constant."""
        return self._node("sub", name, (a, b), {"activation": activation}, out)

    def mul(self, a: str, b: str, out: Range, name: str, activation: str | None = None) -> str:
        """a * b, broadcasting; b may be a constant."""
        return self._node("mul", name, (a, b), {"activation": activation}, out)

    def relu(self, x: str, out: Range, name: str) -> str:
        """max(x, 0)."""
        return self._node("relu", name, (x,), {}, out)

    def relu6(self, x: str, out: Range, name: str) -> str:
        """min(max(x, 0), 6)."""
        return self._node("relu6", name, (x,), {}, out)

    def leaky_relu(self, x: str, out: Range, name: str, alpha: float) -> str:
        """x if x > 0, else alpha * x. alpha is kept as float32, as the file has it."""
        return self._node("leaky_relu", name, (x,), {"alpha": float(np.float32(alpha))}, out)

    def hard_swish(self, x: str, out: Range, name: str) -> str:
        """x * relu6(x + 3) / 6."""
        return self._node("hard_swish", name, (x,), {}, out)

    def softmax(self, x: str, name: str) -> str:
        """Softmax of the last axis; the output grid is always (1/256, -128)."""
        return self._node("softmax", name, (x,), {}, _fixed("softmax"))

    def logistic(self, x: str, name: str) -> str:
        """1 / (1 + exp(-x)); the output grid is always (1/256, -128)."""
        return self._node("logistic", name, (x,), {}, _fixed("logistic"))

    def tanh(self, x: str, name: str) -> str:
        """tanh(x); the output grid is always (1/128, 0)."""
        return self._node("tanh", name, (x,), {}, _fixed("tanh"))

    # shapes, windows, means: these keep the range, but for mean

    def concatenation(self, parts: Sequence[str], name: str, axis: int = -1) -> str:
        """Joins tensors of one range along `axis`. ValueError names both tensors if their ranges differ."""
        if not parts:
            raise ValueError(f"concatenation {name!r} has no inputs: expected at least one")
        rank = len(self.tensor(parts[0]).shape)
        return self._node("concatenation", name, tuple(parts), {"axis": axis % rank if axis < 0 else axis})

    def max_pool2d(self, x: str, name: str, pool_size: Pair = (2, 2), strides: Pair | None = None,
                   padding: str = "valid", activation: str | None = None) -> str:
        """Largest code of each window. strides: None means pool_size."""
        return self._node("max_pool2d", name, (x,), _pool(pool_size, strides, padding, activation))

    def average_pool2d(self, x: str, name: str, pool_size: Pair = (2, 2), strides: Pair | None = None,
                       padding: str = "valid", activation: str | None = None) -> str:
        """Mean of each window, over the pixels inside the image, rounded half away from zero."""
        return self._node("average_pool2d", name, (x,), _pool(pool_size, strides, padding, activation))

    def mean(self, x: str, out: Range, name: str, axes: Sequence[int] = (1, 2), keepdims: bool = False) -> str:
        """Mean over `axes`; global average pooling is axes (1, 2)."""
        rank = len(self.tensor(x).shape)
        axes = sorted(a % rank if a < 0 else a for a in axes)
        return self._node("mean", name, (x,), {"axes": axes, "keepdims": bool(keepdims)}, out)

    def pad(self, x: str, name: str, paddings: Sequence[Sequence[int]]) -> str:
        """Pads with real 0 (the zero point). paddings: (before, after) for each axis after the batch."""
        return self._node("pad", name, (x,), {"paddings": [[int(v) for v in p] for p in paddings]})

    def reshape(self, x: str, name: str, shape: Sequence[int]) -> str:
        """Reshape; shape without the batch, one size may be -1."""
        sizes = [int(d) for d in shape]
        if sizes.count(-1) == 1:
            have = int(np.prod([d or 0 for d in self.tensor(x).shape[1:]]))
            rest = -int(np.prod(sizes))
            sizes[sizes.index(-1)] = have // rest if rest > 0 else 0
        return self._node("reshape", name, (x,), {"shape": sizes})

    def transpose(self, x: str, name: str, perm: Sequence[int]) -> str:
        """Output axis i is input axis perm[i]; perm[0] is 0, the batch."""
        return self._node("transpose", name, (x,), {"perm": [int(p) for p in perm]})

    def strided_slice(self, x: str, name: str, begin: Sequence[int], end: Sequence[int | None],
                      strides: Sequence[int] | None = None) -> str:
        """x[:, begin:end:strides, ...], an entry for each axis after the batch; negative and None ends as in
        Python.

        The node holds them with 0 <= begin < end <= size; strides must be positive.
        """
        sizes = [d or 0 for d in self.tensor(x).shape[1:]]
        strides = [1] * len(sizes) if strides is None else [*strides]
        if not len(begin) == len(end) == len(strides) == len(sizes) or min(strides, default=1) < 1:
            raise ValueError(f"strided_slice {name!r}: begin {begin}, end {end}, strides {strides} do not "
                             f"fit sizes {sizes}: "
                             "expected one entry for each axis after the batch, strides of at least 1")
        cut = [slice(b, e).indices(d) for b, e, d in zip(begin, end, sizes, strict=True)]
        return self._node("strided_slice", name, (x,), {"begin": [c[0] for c in cut], "end": [c[1] for c in cut],
                                                        "strides": strides})

    def resize_nearest(self, x: str, name: str, size: Pair, half_pixel_centers: bool = True,
                       align_corners: bool = False) -> str:
        """Nearest neighbour to (height, width)."""
        return self._node("resize_nearest", name, (x,), _resize(size, half_pixel_centers, align_corners))

    def resize_bilinear(self, x: str, name: str, size: Pair, half_pixel_centers: bool = True,
                        align_corners: bool = False) -> str:
        """Bilinear to (height, width)."""
        return self._node("resize_bilinear", name, (x,), _resize(size, half_pixel_centers, align_corners))

    # between integers and floats

    def quantize(self, x: str, out: Range, name: str) -> str:
        """float32 to int8, or int8 to another int8 range."""
        return self._node("quantize", name, (x,), {}, out)

    def dequantize(self, x: str, name: str) -> str:
        """int8 to float32."""
        return self._node("dequantize", name, (x,), {}, None)

    def float_island(self, inputs: Sequence[str], tflite_bytes: bytes, name: str) -> list[str]:
        """Operations kept in float: the one subgraph of a float .tflite, its inputs and outputs in order.

        Returns the output names `name/output_0`, .... The batch size is the one the island was converted for;
        it is kept in the attribute `batch_size`. Only this method needs `ai_edge_litert`.
        """
        from keras_lowbit.deploy.islands import describe

        island = describe(bytes(tflite_bytes), name)
        given = [self.tensor(n).shape[1:] for n in inputs]
        if given != [s[1:] for s in island.input_shapes]:
            raise ValueError(f"float_island {name!r} takes inputs of shapes {list(island.input_shapes)} "
                             f"(batch first), got {given} "
                             "without batch")
        outputs = tuple(f"{name}/output_{i}" for i in range(len(island.output_shapes)))
        made = [self._activation(n, (None, *s[1:]), None) for n, s in zip(outputs, island.output_shapes, strict=True)]
        self._insert(Node("float_island", name, tuple(inputs), outputs,
                          {"model": bytes(tflite_bytes), "batch_size": island.batch_size}), made)
        return list(outputs)

    # helpers

    def _weighted(self, op: str, x: str, codes: np.ndarray, scales: np.ndarray, bias: np.ndarray | None, out: Range,
                  name: str, attributes: dict[str, Any]) -> str:
        where = f"{op} {name!r}"
        if self.tensor(x).scale is None:
            raise ValueError(f"{where} reads {x!r}, which is float32: quantize it first")
        codes = _integers(codes, "int8", -127, f"{where} kernel")
        scale = np.asarray(scales, np.float32)
        checks.check_scale(scale, f"{where} kernel")
        with np.errstate(over="ignore", under="ignore"):
            bias_scale = checks.bias_scale(self.tensor(x), scale)
        checks.check_scale(bias_scale, f"{where} bias (input scale * weight scale)")
        bias = _integers(np.zeros(scale.shape, np.int32) if bias is None else bias, "int32", -checks.INT32_MAX,
                         f"{where} bias")
        kernel = Tensor(f"{name}/kernel", codes.shape, "int8", scale, 0, codes)
        added = Tensor(f"{name}/bias", bias.shape, "int32", bias_scale, 0, bias)
        return self._node(op, name, (x, kernel.name, added.name), attributes, out, (kernel, added))

    def _explicit_padding(self, x: str, padding: Padding, name: str) -> tuple[str, str]:
        if isinstance(padding, str):
            return x, padding
        if len(padding) != 2 or any(len(p) != 2 for p in padding):
            raise ValueError(f"{name!r} has padding {padding!r}: expected 'same', 'valid' or ((top, bottom), "
                             "(left, right))")
        if not np.any(padding):
            return x, "valid"
        return self.pad(x, f"{name}/pad", (*padding, (0, 0))), "valid"

    def _node(self, op: str, name: str, inputs: tuple[str, ...], attributes: dict[str, Any],
              out: Range | str | None = "keep", constants: Sequence[Tensor] = ()) -> str:
        tensors = [*map(self.tensor, inputs[:len(inputs) - len(constants)]), *constants]
        if isinstance(out, str):
            out = tensors[0].range
        try:
            shape = infer_shape(op, attributes, [t.shape for t in tensors])
        except ValueError as error:
            raise ValueError(f"{op} {name!r}: {error}") from error
        made = self._activation(name, shape, Range(*out) if out is not None else None)
        self._insert(Node(op, name, inputs, (name,), attributes), [*constants, made])
        return name

    def _insert(self, node: Node, made: Sequence[Tensor]) -> None:
        """Check the node with its new tensors, and only then keep them: a refused node leaves no trace."""
        if any(n.name == node.name for n in self._nodes):
            raise ValueError(f"two nodes are named {node.name!r}: names are unique")
        self._refuse_taken(made)
        for tensor in made:
            checks.check_tensor(tensor)
        checks.check_node(node, {**self._tensors, **{t.name: t for t in made}})
        self._tensors.update((t.name, t) for t in made)
        self._nodes.append(node)

    def _add(self, tensor: Tensor) -> str:
        self._refuse_taken([tensor])
        checks.check_tensor(tensor)
        self._tensors[tensor.name] = tensor
        return tensor.name

    def _refuse_taken(self, made: Sequence[Tensor]) -> None:
        taken = [t.name for t in made if t.name in self._tensors]
        if taken:
            raise ValueError(f"a tensor is already named {taken[0]!r}: names are unique")

    @staticmethod
    def _activation(name: str, shape: Sequence[int | None], out: Range | None) -> Tensor:
        if out is None:
            return Tensor(name, tuple(shape), "float32")
        if out.zero_point != int(out.zero_point):
            raise ValueError(f"tensor {name!r} has zero point {out.zero_point}: expected a whole number")
        return Tensor(name, tuple(shape), "int8", np.array(out.scale, np.float32), int(out.zero_point))


def _fixed(op: str) -> Range:
    grid = checks.RULES[op].grid
    if not isinstance(grid, Range):
        raise TypeError(f"{op} has no fixed range, its rule is {grid!r}")
    return grid


def _pool(pool_size: Pair, strides: Pair | None, padding: str, activation: str | None) -> dict[str, Any]:
    return {"pool_size": [*pool_size], "strides": [*(pool_size if strides is None else strides)], "padding": padding,
            "activation": activation}


def _resize(size: Pair, half_pixel_centers: bool, align_corners: bool) -> dict[str, Any]:
    return {"size": [*size], "half_pixel_centers": bool(half_pixel_centers), "align_corners": bool(align_corners)}


def _integers(codes: np.ndarray, dtype: str, low: int, where: str) -> np.ndarray:
    """`codes` as `dtype`. ValueError if any is not a whole number in [low, largest of dtype]."""
    array, high = np.asarray(codes), np.iinfo(dtype).max
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{where} has dtype {array.dtype}: expected integers")
    bad = ~((array >= low) & (array <= high)) | (array != np.round(array))
    if bad.any():
        raise ValueError(f"{where} has the code {array[bad][0]} ({int(bad.sum())} bad of {array.size}): "
                         "expected whole numbers "
                         f"from {low} to {high}. A weight needs a larger scale; a bias beyond int32 needs a "
                         "larger weight scale "
                         "in its channel")
    return np.ascontiguousarray(array.astype(dtype))
