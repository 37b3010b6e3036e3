"""How the runtime makes the operations without weights.

What works code by code on one tensor is a table of 256 codes, on two tensors one of 65,536: the tables are made by the
reference itself, so there is nothing in which the two could differ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_lowbit.deploy.graph import IntegerGraph, Node
from keras_lowbit.deploy.graph.operations.windows import same_padding
from keras_lowbit.deploy.reference import float_subgraph as reference_subgraph
from keras_lowbit.deploy.reference.call import KERNELS, NodeCall, scale_of
from keras_lowbit.deploy.reference.convolution import mean_factor, product_scale
from keras_lowbit.deploy.reference.data_movement import linear_pixels, nearest_pixels
from keras_lowbit.deploy.runtime.node_kernels import Keep, Run, runs, static_call
from keras_lowbit.deploy.runtime.softmax import softmax_of
from keras_lowbit.numerics import requantization as fp
from keras_lowbit.ops import functions, tf_fallback
from keras_lowbit.ops.epilogue import Requantize

CODES = np.arange(-128, 128).astype(np.int8)
SMALL_IMAGE = 256  # pixels that a depthwise window may have in the fallback, which adds them one by one


@runs("relu", "relu6", "leaky_relu", "hard_swish", "logistic", "tanh", "quantize")
def unary(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """relu, relu6, leaky_relu, hard_swish, logistic, tanh and int8 quantize: a table of 256 codes."""
    call = static_call(graph, node, (CODES,))
    if call.inputs[0].dtype == "float32":
        return _quantize(call)
    table = KERNELS[node.op](call)
    return lambda values: functions.look_up(values[0], table)


@runs("table")
def table(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """The entry of each code."""
    codes = graph.tensors[node.inputs[1]].data
    return lambda values: functions.look_up(values[0], codes)


@runs("add", "sub", "mul")
def binary(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """add, sub and mul: a table of 65,536 codes, row by the first input's code; a constant may stand on either side."""
    call = static_call(graph, node, (CODES[:, None], CODES[None, :]))
    table = keep(KERNELS[node.op](call), f"{node.name}/table")
    constants = [t.data for t in call.inputs]

    def run(values: list[Any]) -> Any:
        given = iter(values)
        first, second = (next(given) if data is None else tf.constant(data) for data in constants)
        return functions.look_up_pair(first, second, table)

    return run


@runs("maximum", "minimum")
def extremum(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """The larger or smaller code; a constant may stand on either side."""
    larger_or_smaller = {"maximum": tf.maximum, "minimum": tf.minimum}[node.op]
    constants = [graph.tensors[name].data for name in node.inputs]

    def run(values: list[Any]) -> Any:
        given = iter(values)
        return larger_or_smaller(*(next(given) if data is None else tf.constant(data) for data in constants))

    return run


def _quantize(call: NodeCall) -> Run:
    scale, zero_point = scale_of(call.output), call.output.zero_point
    return lambda values: tf_fallback.quantize(values[0], scale, zero_point)


@runs("dequantize")
def dequantize(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """`scale * (code - zero_point)` in float32."""
    source = graph.tensors[node.inputs[0]]
    scale = scale_of(source)
    return lambda values: tf.cast(tf.cast(values[0], tf.int32) - source.zero_point, tf.float32) * scale


@runs("softmax")
def softmax(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """On the last axis, in fixed point."""
    return softmax_of(scale_of(graph.tensors[node.inputs[0]]))


@runs("max_pool2d")
def max_pool2d(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """Largest code of each window; padding never wins."""
    (low, high), attributes = static_call(graph, node).limits(), node.attributes
    size, arguments = attributes["pool_size"], {"strides": attributes["strides"], "low": low, "high": high}
    if isinstance(attributes["padding"], str):
        arguments["padding"] = attributes["padding"].upper()
    else:  # of a pad node that was folded in: its zero points count
        arguments |= {"padding": attributes["padding"], "padding_code": graph.tensors[node.inputs[0]].zero_point}
    return lambda values: functions.max_pool2d(values[0], size, **arguments)


@runs("average_pool2d")
def average_pool2d(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """Mean of the codes inside the image, halves away from zero."""
    call, (strides, window) = static_call(graph, node), (node.attributes["strides"], node.attributes["pool_size"])
    (low, high), shape = call.limits(), call.inputs[0].static_shape(1)
    edges = [(0, 0), (0, 0)]
    if node.attributes["padding"] == "same":
        edges = [same_padding(shape[k + 1], window[k], strides[k]) for k in (0, 1)]
    counts = [_inside(shape[k + 1], window[k], strides[k], edges[k]) for k in (0, 1)]
    count = np.multiply.outer(*counts)[None, :, :, None].astype(np.int32)
    area = int(np.prod(window))
    dtype = tf.float32 if area < 2**12 else tf.float64  # mean * area is within 1/2 of the sum, so rounding finds it

    def run(values: list[Any]) -> Any:
        padded = tf.pad(tf.cast(values[0], dtype), [[0, 0], *edges, [0, 0]])
        mean = tf.nn.avg_pool2d(padded, window, strides, "VALID")
        total = tf.cast(tf.round(mean * area), tf.int32)
        half = tf.where(total > 0, count // 2, -(count // 2))
        return tf_fallback.to_int8(tf.truncatediv(total + half, count), low, high)

    return run


@runs("mean")
def mean(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """Mean over axes, one requantisation."""
    call, attributes = static_call(graph, node), node.attributes
    axes, source = tuple(attributes["axes"]), call.inputs[0]
    shape = source.static_shape(1)
    factor = mean_factor(call, int(np.prod([shape[axis] for axis in axes])))
    if len(shape) == 4 and axes == (1, 2) and np.prod(shape[1:3]) <= SMALL_IMAGE:
        return _image_mean(call, factor, shape, bool(attributes["keepdims"]))

    def run(values: list[Any]) -> Any:
        centered = tf.cast(values[0], tf.int32) - source.zero_point
        total = tf.reduce_sum(centered, axes, bool(attributes["keepdims"]))
        return tf_fallback.requantize(total, *factor, call.output.zero_point)

    return run


def _image_mean(call: NodeCall, factor: Any, shape: tuple[int, ...], keepdims: bool) -> Run:
    """A depthwise layer of ones over the whole image."""
    ones = np.ones((*shape[1:3], shape[3], 1), np.int8)
    output = Requantize(np.asarray([factor.multiplier]), np.asarray([factor.shift]), None, call.output.zero_point)
    zero_point, keep = call.inputs[0].zero_point, [1, 1] if keepdims else []

    def run(values: list[Any]) -> Any:
        codes = functions.int8_depthwise_conv2d(values[0], ones, input_zero_point=zero_point, output=output)
        return tf.reshape(codes, [-1, *keep, shape[3]])

    return run


@runs("reduce_max", "reduce_min")
def extremum_over_axes(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """The largest or smallest code over axes."""
    reduce = {"reduce_max": tf.reduce_max, "reduce_min": tf.reduce_min}[node.op]
    axes, keepdims = tuple(node.attributes["axes"]), bool(node.attributes["keepdims"])
    return lambda values: reduce(values[0], axes, keepdims)


@runs("batch_matmul")
def batch_matmul(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """The product of two stacks of matrices, summed in a type that holds every partial sum."""
    call, attributes = static_call(graph, node), node.attributes
    turned = attributes["transpose_a"], attributes["transpose_b"]
    depth = call.inputs[0].static_shape(1)[-2 if turned[0] else -1]
    dtype = tf.float32 if depth * 255**2 < 2**24 else tf.float64
    factor = fp.quantize_multiplier(product_scale(call))
    zeros = [source.zero_point for source in call.inputs]

    def run(values: list[Any]) -> Any:
        first, second = (tf.cast(value, dtype) - zero for value, zero in zip(values, zeros, strict=True))
        total = tf.cast(tf.matmul(first, second, *turned), tf.int32)
        return tf_fallback.requantize(total, factor.multiplier, factor.shift, call.output.zero_point)

    return run


@runs("concatenation")
def concatenation(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """The inputs one after the other."""
    return lambda values: tf.concat(values, node.attributes["axis"])


@runs("pad")
def pad(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """Zero points around the image."""
    edges = [[0, 0], *(list(pair) for pair in node.attributes["paddings"])]
    zero = tf.constant(graph.tensors[node.inputs[0]].zero_point, tf.int8)
    return lambda values: tf.pad(values[0], edges, constant_values=zero)


@runs("reshape")
def reshape(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """The same codes in another shape; the batch axis stays, even with no image in it."""
    shape = graph.tensors[node.outputs[0]].static_shape(1)[1:]
    return lambda values: tf.reshape(values[0], [tf.shape(values[0])[0], *shape])


@runs("transpose")
def transpose(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """Axes in another order."""
    return lambda values: tf.transpose(values[0], node.attributes["perm"])


@runs("strided_slice")
def strided_slice(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """`x[:, begin:end:stride, ...]`."""
    triples = zip(*(node.attributes[key] for key in ("begin", "end", "strides")), strict=True)
    slices = (slice(None), *(slice(*triple) for triple in triples))
    return lambda values: values[0][slices]


@runs("gather")
def gather(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """Some places of an axis."""
    return lambda values: tf.gather(values[0], node.attributes["indices"], axis=node.attributes["axis"])


@runs("embedding")
def embedding(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """Row by row of the table."""
    table = keep(np.asarray(graph.tensors[node.inputs[1]].data), f"{node.name}/table")
    return lambda values: tf.gather(table, values[0])


@runs("argmax")
def argmax(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """Place of the largest code."""
    return lambda values: tf.argmax(values[0], node.attributes["axis"], tf.int32)


@runs("argmin")
def argmin(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """Place of the smallest code."""
    return lambda values: tf.argmin(values[0], node.attributes["axis"], tf.int32)


@runs("top_k")
def top_k(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """The largest codes and their places."""
    return lambda values: list(tf.math.top_k(values[0], node.attributes["k"]))


@runs("resize_nearest")
def resize_nearest(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """Copies the nearest pixel."""
    call = static_call(graph, node)
    shape, sizes = call.inputs[0].static_shape(1), node.attributes["size"]
    rows, columns = (nearest_pixels(shape[k + 1], sizes[k], call) for k in (0, 1))
    return lambda values: tf.gather(tf.gather(values[0], rows, axis=1), columns, axis=2)


@runs("resize_bilinear")
def resize_bilinear(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """Weighs four pixels in steps of 1/1024; halves are rounded away from zero."""
    call = static_call(graph, node)
    shape, sizes = call.inputs[0].static_shape(1), node.attributes["size"]
    rows, columns = (linear_pixels(shape[k + 1], sizes[k], call) for k in (0, 1))

    def run(values: list[Any]) -> Any:
        image = tf.cast(values[0], tf.int32)
        total: Any = 0
        for row, row_weight in rows:
            for column, column_weight in columns:
                weight = (row_weight[:, None, None] * column_weight[:, None]).astype(np.int32)
                total += tf.gather(tf.gather(image, row, axis=1), column, axis=2) * weight
        return tf_fallback.to_int8(tf.truncatediv(total + tf.where(total > 0, 1 << 19, -(1 << 19)), 1 << 20))

    return run


@runs("float_subgraph")
def float_subgraph(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """LiteRT's own kernels, called through Python: such a graph runs in this process only."""
    call = static_call(graph, node)
    kinds = [graph.tensors[name].dtype for name in node.outputs]

    def subgraph(*arrays: np.ndarray) -> list[np.ndarray]:
        parts = reference_subgraph.float_subgraph(call._replace(arrays=arrays))
        return [part.astype(kind) for part, kind in zip(parts, kinds, strict=True)]

    def run(values: list[Any]) -> Any:
        return list(tf.numpy_function(subgraph, values, kinds))

    return run


def _inside(size: int, window: int, stride: int, edges: tuple[int, int]) -> np.ndarray:
    """How many of each window's pixels along one axis lie inside the image."""
    starts = np.arange((size + sum(edges) - window) // stride + 1) * stride - edges[0]
    return np.minimum(starts + window, size) - np.maximum(starts, 0)
