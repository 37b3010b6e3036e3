"""GraphBuilder: makes an integer graph node by node and refuses at once what cannot be run exactly.

Conventions of every method: shapes, paddings and slices leave the batch axis out; axis numbers count it as
axis 0. Each method returns the name of its output tensor, which is the node's name; of several outputs, all names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_lowbit.deploy.graph.builder_base import BaseBuilder, Padding, integers
from keras_lowbit.deploy.graph.float_subgraph import describe
from keras_lowbit.deploy.graph.operations.checks import LARGEST_SUM
from keras_lowbit.deploy.graph.operations.weighted import deconvolved
from keras_lowbit.deploy.graph.tensors import Node, Range, Tensor

__all__ = ["GraphBuilder", "Range"]

Pair = Sequence[int]


class GraphBuilder(BaseBuilder):
    """Builds an IntegerGraph: every method adds an input or an operation, and returns the name of its result.

    metadata: plain JSON that the graph carries (recipe, versions); None for none.
    Raises ValueError in the methods for what does not fit, naming the operation.

    >>> codes, scales, bias = np.ones((3, 3, 3, 4), "int8"), np.full(4, 0.01, "float32"), np.zeros(4, "int32")
    >>> b = klb.deploy.GraphBuilder(metadata={"recipe": "ternary"})
    >>> x = b.input("images", (32, 32, 3), range=klb.deploy.Range(1 / 255, -128))
    >>> y = b.conv2d(x, codes, scales, bias, klb.deploy.Range(0.1, -128), "conv", activation="relu")
    >>> graph = b.build(outputs=[y])
    """

    # operations with weights

    def conv2d(
        self,
        x: str,
        codes: np.ndarray,
        scales: np.ndarray,
        bias: np.ndarray | None,
        out: Range,
        name: str,
        strides: Pair = (1, 1),
        padding: Padding = "valid",
        dilation: Pair = (1, 1),
        groups: int = 1,
        activation: str | None = None,
    ) -> str:
        """2-D convolution. codes: int8 [KH,KW,IC/groups,OC]; scales: [OC]; bias: whole numbers [OC] or None (zeros).

        padding: "same", "valid" or ((top, bottom), (left, right)); the last adds a pad node `name/pad`.
        """
        x, padding = self._explicit_padding(x, padding, name)
        attributes = {
            "strides": [*strides],
            "padding": padding,
            "dilation": [*dilation],
            "groups": groups,
            "activation": activation,
        }
        return self._weighted("conv2d", x, codes, scales, bias, out, name, attributes)

    def depthwise_conv2d(
        self,
        x: str,
        codes: np.ndarray,
        scales: np.ndarray,
        bias: np.ndarray | None,
        out: Range,
        name: str,
        strides: Pair = (1, 1),
        padding: Padding = "valid",
        dilation: Pair = (1, 1),
        activation: str | None = None,
    ) -> str:
        """Depthwise convolution. codes: int8 [KH,KW,C,M]; output channel c * M + m; scales, bias: [C * M]."""
        x, padding = self._explicit_padding(x, padding, name)
        attributes = {"strides": [*strides], "padding": padding, "dilation": [*dilation], "activation": activation}
        return self._weighted("depthwise_conv2d", x, codes, scales, bias, out, name, attributes)

    def transpose_conv(
        self,
        x: str,
        codes: np.ndarray,
        scales: np.ndarray,
        bias: np.ndarray | None,
        out: Range,
        name: str,
        strides: Pair = (1, 1),
        padding: str = "valid",
        output_shape: Pair | None = None,
        activation: str | None = None,
    ) -> str:
        """Transposed convolution. codes: int8 [KH,KW,OC,IC]; scales, bias: [OC].

        output_shape: (height, width); None: `in * stride` for "same", `in * stride + max(kernel - stride, 0)`
        for "valid".
        """
        shape, kernel = self.tensor(x).shape, np.shape(codes)
        if output_shape is None and len(shape) == len(kernel) == 4:
            output_shape = [deconvolved(shape[i + 1] or 0, kernel[i], strides[i], padding) for i in (0, 1)]
        attributes = {
            "strides": [*strides],
            "padding": padding,
            "output_shape": [*(output_shape or ())],
            "activation": activation,
        }
        return self._weighted("transpose_conv", x, codes, scales, bias, out, name, attributes)

    def fully_connected(
        self,
        x: str,
        codes: np.ndarray,
        scales: np.ndarray,
        bias: np.ndarray | None,
        out: Range,
        name: str,
        activation: str | None = None,
    ) -> str:
        """Dense on the last axis, the other axes kept. codes: int8 [IC,OC]; scales, bias: [OC]."""
        return self._weighted("fully_connected", x, codes, scales, bias, out, name, {"activation": activation})

    def lstm(
        self,
        x: str,
        kernel: np.ndarray,
        kernel_scales: np.ndarray,
        recurrent: np.ndarray,
        recurrent_scales: np.ndarray,
        bias: np.ndarray | None,
        out: Range,
        name: str,
        cell_bits: int,
    ) -> str:
        """LSTM of [batch, steps, features] from a state of zeros: the results of all steps. Gates: in, forget, candidate, out.

        kernel: int8 [4,units,features]; recurrent: int8 [4,units,units]; scales: [4]; bias: whole numbers [4,units] in the
        steps of the input's sums, or None (zeros).   cell_bits: the cell reaches from -2**cell_bits to 2**cell_bits, 0 to 6.
        """
        where = f"lstm {name!r}"
        kernel, recurrent = (
            integers(codes, "int8", -127, f"{where} {part}")
            for part, codes in (("kernel", kernel), ("recurrent kernel", recurrent))
        )
        scales = np.asarray(kernel_scales, np.float32)
        added = np.zeros(kernel.shape[:2], np.int32) if bias is None else bias
        added = integers(added, "int32", -LARGEST_SUM["int32"], f"{where} bias")
        constants = (
            Tensor(f"{name}/kernel", kernel.shape, "int8", scales, 0, kernel),
            Tensor(
                f"{name}/recurrent", recurrent.shape, "int8", np.asarray(recurrent_scales, np.float32), 0, recurrent
            ),
            Tensor(f"{name}/bias", added.shape, "int32", np.float32(self.tensor(x).range.scale) * scales, 0, added),
        )
        inputs = (x, *(tensor.name for tensor in constants))
        return self._node("lstm", name, inputs, {"cell_bits": cell_bits}, out, constants)

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

    def table(self, x: str, codes: Any, out: Range, name: str) -> str:
        """Any function of one code: output code codes[code + 128], of int16 codes[code + 32768]. codes: [256] or [65536]."""
        return self._node("table", name, (x, self.constant(f"{name}/table", codes, *out)), {}, out)

    def softmax(self, x: str, name: str) -> str:
        """Softmax of the last axis; the output grid is always (1/256, -128), of int16 codes (2**-15, 0)."""
        return self.operation("softmax", (x,), name)

    def logistic(self, x: str, name: str) -> str:
        """1 / (1 + exp(-x)); the output grid is that of softmax."""
        return self.operation("logistic", (x,), name)

    def tanh(self, x: str, name: str) -> str:
        """tanh(x); the output grid is always (1/128, 0), of int16 codes (2**-15, 0)."""
        return self.operation("tanh", (x,), name)

    # masks and whole numbers: values, without a range

    def compare(self, x: str, name: str, kind: str, number: int) -> str:
        """A mask: which int32 values are `kind` ("equal", "not_equal", "greater", "less_equal", ...) to a number."""
        return self._node("compare", name, (x,), {"kind": kind, "number": int(number)}, None)

    def logical(self, kind: str, inputs: Sequence[str], name: str) -> str:
        """Masks as one: "and", "or" of two, broadcasting, "not" of one."""
        return self._node(f"logical_{kind}", name, tuple(inputs), {}, None)

    def where(self, mask: str, a: str, b: str, name: str) -> str:
        """Codes of a where the mask is true, of b elsewhere, broadcasting; one of both may be a constant."""
        return self._node("where", name, (mask, a, b), {})

    # shapes, windows, means: these keep the range, but for mean

    def concatenation(self, parts: Sequence[str], name: str, axis: int = -1) -> str:
        """Joins tensors of one range along `axis`. ValueError names both tensors if their ranges differ."""
        if not parts:
            raise ValueError(f"concatenation {name!r} has no inputs: expected at least one")
        rank = len(self.tensor(parts[0]).shape)
        return self._node("concatenation", name, tuple(parts), {"axis": axis % rank if axis < 0 else axis})

    def max_pool2d(
        self,
        x: str,
        name: str,
        pool_size: Pair = (2, 2),
        strides: Pair | None = None,
        padding: str = "valid",
        activation: str | None = None,
    ) -> str:
        """Largest code of each window. strides: None means pool_size."""
        return self._node("max_pool2d", name, (x,), _pool(pool_size, strides, padding, activation))

    def average_pool2d(
        self,
        x: str,
        name: str,
        pool_size: Pair = (2, 2),
        strides: Pair | None = None,
        padding: str = "valid",
        activation: str | None = None,
    ) -> str:
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

    def strided_slice(
        self, x: str, name: str, begin: Sequence[int], end: Sequence[int | None], strides: Sequence[int] | None = None
    ) -> str:
        """x[:, begin:end:strides, ...], an entry for each axis after the batch; negative and None ends as in
        Python.

        The node holds them with 0 <= begin < end <= size; strides must be positive.
        """
        sizes = [d or 0 for d in self.tensor(x).shape[1:]]
        strides = [1] * len(sizes) if strides is None else [*strides]
        if not len(begin) == len(end) == len(strides) == len(sizes) or min(strides, default=1) < 1:
            raise ValueError(
                f"strided_slice {name!r}: begin {begin}, end {end}, strides {strides} do not fit sizes {sizes}: expected one "
                "entry for each axis after the batch, strides of at least 1"
            )
        cut = [slice(b, e).indices(d) for b, e, d in zip(begin, end, sizes, strict=True)]
        return self._node(
            "strided_slice", name, (x,), {"begin": [c[0] for c in cut], "end": [c[1] for c in cut], "strides": strides}
        )

    def gather(self, x: str, name: str, axis: int, indices: Sequence[int]) -> str:
        """The places `indices` of an axis, in that order; a negative axis counts from the end."""
        axis = axis % len(self.tensor(x).shape) if axis < 0 else axis
        return self._node("gather", name, (x,), {"axis": axis, "indices": [int(i) for i in indices]})

    def embedding(self, ids: str, codes: np.ndarray, out: Range, name: str) -> str:
        """Rows of a table by int32 ids. codes: [number of ids, size of a row], on the grid `out`."""
        return self._node("embedding", name, (ids, self.constant(f"{name}/table", codes, *out)), {}, out)

    def argmax(self, x: str, name: str, axis: int = -1) -> str:
        """Place (int32) of the largest code along an axis, the first of several; a negative axis counts from the end."""
        axis = axis % len(self.tensor(x).shape) if axis < 0 else axis
        return self._node("argmax", name, (x,), {"axis": axis}, None)

    def argmin(self, x: str, name: str, axis: int = -1) -> str:
        """Place (int32) of the smallest code along an axis, the first of several; a negative axis counts from the end."""
        axis = axis % len(self.tensor(x).shape) if axis < 0 else axis
        return self._node("argmin", name, (x,), {"axis": axis}, None)

    def top_k(self, x: str, name: str, k: int) -> tuple[str, str]:
        """The k largest codes of the last axis, the largest first, and their places (int32); of equal codes the first ones.

        Returns the names of both, `name` and `name/output_1`.
        """
        return self._node("top_k", name, (x,), {"k": int(k)}), f"{name}/output_1"

    def resize_nearest(
        self, x: str, name: str, size: Pair, half_pixel_centers: bool = True, align_corners: bool = False
    ) -> str:
        """Nearest neighbour to (height, width)."""
        return self._node("resize_nearest", name, (x,), _resize(size, half_pixel_centers, align_corners))

    def resize_bilinear(
        self, x: str, name: str, size: Pair, half_pixel_centers: bool = True, align_corners: bool = False
    ) -> str:
        """Bilinear to (height, width)."""
        return self._node("resize_bilinear", name, (x,), _resize(size, half_pixel_centers, align_corners))

    # between integers and floats

    def quantize(self, x: str, out: Range, name: str) -> str:
        """float32 to codes, or codes to those of another range, of another type too."""
        return self._node("quantize", name, (x,), {}, out)

    def dequantize(self, x: str, name: str) -> str:
        """Codes to float32."""
        return self._node("dequantize", name, (x,), {}, None)

    def float_subgraph(self, inputs: Sequence[str], tflite_bytes: bytes, name: str) -> list[str]:
        """Operations kept in float: the one subgraph of a .tflite of values, its inputs and outputs in order.

        Returns the output names `name/output_0`, .... The batch size is the one it was converted for, kept in the attribute
        `batch_size`. Only this method needs `ai_edge_litert`.
        """
        subgraph = describe(bytes(tflite_bytes), name)
        given = [self.tensor(n) for n in inputs]
        takes, types = [end.shape for end in subgraph.inputs], [end.dtype for end in subgraph.inputs]
        if [t.shape[1:] for t in given] != [shape[1:] for shape in takes] or [t.dtype for t in given] != types:
            raise ValueError(
                f"float_subgraph {name!r} takes inputs of shapes {takes} (batch first) and types {types}, got "
                f"{[t.shape[1:] for t in given]} without batch and {[t.dtype for t in given]}"
            )
        outputs = tuple(f"{name}/output_{i}" for i in range(len(subgraph.outputs)))
        made = [
            self._activation(n, (None, *end.shape[1:]), None, end.dtype)
            for n, end in zip(outputs, subgraph.outputs, strict=True)
        ]
        attributes = {"model": bytes(tflite_bytes), "batch_size": subgraph.batch_size}
        self._insert(Node("float_subgraph", name, tuple(inputs), outputs, attributes), made)
        return list(outputs)


def _pool(pool_size: Pair, strides: Pair | None, padding: str, activation: str | None) -> dict[str, Any]:
    return {
        "pool_size": [*pool_size],
        "strides": [*(pool_size if strides is None else strides)],
        "padding": padding,
        "activation": activation,
    }


def _resize(size: Pair, half_pixel_centers: bool, align_corners: bool) -> dict[str, Any]:
    return {"size": [*size], "half_pixel_centers": bool(half_pixel_centers), "align_corners": bool(align_corners)}
