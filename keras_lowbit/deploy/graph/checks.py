"""What an integer graph must satisfy, and the words when it does not.

`RULES` is the table of operations: how many inputs, which dtypes, and where the range of the output comes
from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_lowbit.deploy.graph.litert_limits import check_limits
from keras_lowbit.deploy.graph.shapes import infer_shape
from keras_lowbit.deploy.graph.tensors import DTYPES, Node, Range, Tensor

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)  # XNNPACK takes normal numbers only
INT32_MAX = 2**31 - 1


class Rule(NamedTuple):
    """inputs: how many (None: one or more).   grid: "free" output range, "keep" the input's, or the fixed
    Range."""

    inputs: int | None
    grid: str | Range = "keep"
    weighted: bool = False
    activation: bool = False


RULES: dict[str, Rule] = {
    "conv2d": Rule(3, "free", weighted=True, activation=True),
    "depthwise_conv2d": Rule(3, "free", weighted=True, activation=True),
    "transpose_conv": Rule(3, "free", weighted=True, activation=True),
    "fully_connected": Rule(3, "free", weighted=True, activation=True),
    "add": Rule(2, "free", activation=True),
    "sub": Rule(2, "free", activation=True),
    "mul": Rule(2, "free", activation=True),
    "concatenation": Rule(None),
    "max_pool2d": Rule(1, activation=True),
    "average_pool2d": Rule(1, activation=True),
    "mean": Rule(1, "free"),
    "pad": Rule(1),
    "reshape": Rule(1),
    "transpose": Rule(1),
    "strided_slice": Rule(1),
    "resize_nearest": Rule(1),
    "resize_bilinear": Rule(1),
    "softmax": Rule(1, Range(1 / 256, -128)),
    "logistic": Rule(1, Range(1 / 256, -128)),
    "tanh": Rule(1, Range(1 / 128, 0)),
    "relu": Rule(1, "free"),
    "relu6": Rule(1, "free"),
    "leaky_relu": Rule(1, "free"),
    "hard_swish": Rule(1, "free"),
    "quantize": Rule(1, "free"),
    "dequantize": Rule(1, "free"),
    "float_island": Rule(None, "free"),
}
ACTIVATIONS = (None, "relu", "relu6")


def weight_axis(op: str) -> tuple[int, ...]:
    """Axes of the kernel that number the output channels."""
    return {"conv2d": (3,), "depthwise_conv2d": (2, 3), "transpose_conv": (2,), "fully_connected": (1,)}[op]


def per_channel(op: str, codes: np.ndarray) -> np.ndarray:
    """Kernel codes as [output channels, everything else]."""
    axes = weight_axis(op)
    channels = int(np.prod([codes.shape[a] for a in axes]))
    return np.moveaxis(codes, axes, range(len(axes))).reshape(channels, codes.size // max(channels, 1))


def check_tensor(tensor: Tensor) -> None:
    """Shape, dtype, scale, zero point and codes of one tensor. ValueError with the offending values."""
    where = f"tensor {tensor.name!r}"
    if not tensor.name or not isinstance(tensor.name, str):
        raise ValueError(f"a tensor is named {tensor.name!r}: expected a non-empty string")
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{where} has dtype {tensor.dtype!r}: expected one of {', '.join(DTYPES)}")
    sizes = tensor.shape if tensor.is_constant else tensor.shape[1:]
    if any(d is None or d < 1 for d in sizes) or (not tensor.is_constant and tensor.shape[:1] != (None,)):
        raise ValueError(
            f"{where} has shape {tensor.shape}: expected sizes of at least 1, after a batch "
            "axis written None "
            "unless it is a constant"
        )
    if (tensor.scale is None) != (tensor.dtype == "float32"):
        raise ValueError(
            f"{where} is {tensor.dtype} with scale {tensor.scale}: integers need a scale, float32 has none"
        )
    if tensor.scale is not None:
        check_scale(tensor.scale, where)
    if not -128 <= tensor.zero_point <= 127 or (tensor.zero_point and tensor.dtype != "int8"):
        raise ValueError(
            f"{where} is {tensor.dtype} with zero point {tensor.zero_point}: expected -128 to 127 for int8, else 0"
        )
    if tensor.data is not None and (tensor.data.shape != tensor.shape or tensor.data.dtype != np.dtype(tensor.dtype)):
        raise ValueError(
            f"{where} holds {tensor.data.dtype} codes of shape {tensor.data.shape}: "
            f"expected {tensor.dtype} of shape {tensor.shape}"
        )
    if not tensor.is_constant and tensor.scale is not None and tensor.scale.ndim:
        raise ValueError(f"{where} is an activation with {tensor.scale.size} scales: activations have one scale")


def check_scale(scale: np.ndarray, where: str) -> None:
    """Every scale finite and a positive normal float32. ValueError names the first bad one."""
    flat = np.asarray(scale, np.float32).reshape(-1)
    bad = np.flatnonzero(~(np.isfinite(flat) & (flat >= SMALLEST_SCALE)))
    if bad.size:
        at = f" in channel {bad[0]}" if flat.size > 1 else ""
        raise ValueError(
            f"{where} has scale {flat[bad[0]]}{at} ({bad.size} bad of {flat.size}): expected a "
            "finite step size "
            f"of at least {SMALLEST_SCALE:.3g}. Calibrate again, or give an all-zero channel "
            "any positive scale"
        )


def check_node(node: Node, tensors: Mapping[str, Tensor]) -> None:
    """One node against the table of operations, its shapes, ranges and weights. ValueError names the node."""
    where = f"{node.op} {node.name!r}"
    if node.op not in RULES:
        raise ValueError(f"{where}: unknown operation; expected one of {', '.join(RULES)}")
    missing = [n for n in (*node.inputs, *node.outputs) if n not in tensors]
    if missing:
        raise ValueError(f"{where} names tensors that the graph lacks: {missing}")
    inputs, outputs = [tensors[n] for n in node.inputs], [tensors[n] for n in node.outputs]
    rule = RULES[node.op]
    if len(inputs) != (rule.inputs or max(len(inputs), 1)) or (len(outputs) != 1 and node.op != "float_island"):
        raise ValueError(
            f"{where} has {len(inputs)} inputs and {len(outputs)} outputs: "
            f"expected {rule.inputs or 'one or more'} and one"
        )
    _check_dtypes(node, inputs, outputs, where)
    _check_attributes(node, where)
    if node.op == "float_island":
        return
    try:
        expected = infer_shape(node.op, node.attributes, [t.shape for t in inputs])
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{where} has incomplete attributes {dict(node.attributes)}: {error!r}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if outputs[0].shape != expected:
        raise ValueError(f"{where} writes {outputs[0].name!r} of shape {outputs[0].shape}: expected {expected}")
    _check_grid(node, inputs, outputs[0], where)
    if rule.weighted:
        _check_weights(node, inputs[0], inputs[1], inputs[2], where)
    check_limits(node, tensors)


def _check_dtypes(node: Node, inputs: Sequence[Tensor], outputs: Sequence[Tensor], where: str) -> None:
    wanted_in = {"dequantize": ("int8",), "float_island": ("float32",), "quantize": ("int8", "float32")}
    wanted_out = "float32" if node.op in ("dequantize", "float_island") else "int8"
    for place, tensor in enumerate(inputs):
        fits = ("int32",) if RULES[node.op].weighted and place == 2 else wanted_in.get(node.op, ("int8",))
        if tensor.dtype not in fits:
            raise ValueError(
                f"{where} reads {tensor.name!r} of dtype {tensor.dtype}: expected "
                f"{' or '.join(fits)}; "
                "put quantize or dequantize between"
            )
    for tensor in outputs:
        if tensor.dtype != wanted_out or tensor.is_constant:
            raise ValueError(
                f"{where} writes {tensor.name!r} of dtype {tensor.dtype}: expected {wanted_out}, not constant"
            )


def _check_attributes(node: Node, where: str) -> None:
    activation = node.attributes.get("activation")
    if activation not in (ACTIVATIONS if RULES[node.op].activation else (None,)):
        raise ValueError(
            f"{where} has activation {activation!r}: expected "
            f"{' or '.join(map(repr, ACTIVATIONS)) if RULES[node.op].activation else 'none'}; "
            "add any other as its own node"
        )
    if node.attributes.get("padding", "same") not in ("same", "valid"):
        raise ValueError(
            f"{where} has padding {node.attributes['padding']!r}: expected 'same' or 'valid'; "
            "the builder turns explicit paddings into a pad node"
        )
    for key in ("strides", "dilation", "pool_size"):
        values = node.attributes.get(key)
        if values is not None and any(not isinstance(v, int) or v < 1 for v in values):
            raise ValueError(f"{where} has {key} {values}: expected whole numbers of at least 1")
    if node.op == "leaky_relu" and not np.isfinite(node.attributes.get("alpha", np.nan)):
        raise ValueError(f"{where} has alpha {node.attributes.get('alpha')}: expected a finite number")


def _check_grid(node: Node, inputs: Sequence[Tensor], output: Tensor, where: str) -> None:
    grid = RULES[node.op].grid
    if grid == "free":
        return
    for tensor in inputs if grid == "keep" else ():
        if _grid(tensor) != _grid(output):
            raise ValueError(
                f"{where} keeps the range, but {tensor.name!r} has {_words(tensor)} and "
                f"{output.name!r} has "
                f"{_words(output)}: requantize {tensor.name!r} to the same range first "
                "(quantize)"
            )
    if isinstance(grid, Range) and _grid(output) != (np.float32(grid.scale), grid.zero_point):
        raise ValueError(f"{where} writes {_words(output)}: expected scale {grid.scale} zero point {grid.zero_point}")


def _grid(tensor: Tensor) -> tuple[np.float32, int]:
    return np.float32(tensor.range.scale), tensor.zero_point


def _words(tensor: Tensor) -> str:
    return f"scale {tensor.range.scale:.9g} zero point {tensor.zero_point}"


def _check_weights(node: Node, real: Tensor, kernel: Tensor, bias: Tensor, where: str) -> None:
    if kernel.data is None or bias.data is None or kernel.scale is None or bias.scale is None:
        raise ValueError(f"{where} needs constant weights and bias; {kernel.name!r} or {bias.name!r} is computed")
    codes = per_channel(node.op, kernel.data)
    if kernel.zero_point or (codes.size and codes.min() < -127):
        raise ValueError(
            f"{where} has weight codes from {codes.min()} to {codes.max()} with zero point "
            f"{kernel.zero_point}: expected -127 to 127 with zero point 0"
        )
    if kernel.scale.shape != codes.shape[:1] or bias.shape != codes.shape[:1] or bias.scale.shape != codes.shape[:1]:
        raise ValueError(
            f"{where} has {codes.shape[0]} output channels, weight scales of shape "
            f"{kernel.scale.shape}, bias "
            f"of shape {bias.shape} with scales of shape {bias.scale.shape}: expected "
            f"({codes.shape[0]},) each"
        )
    expected = bias_scale(real, kernel.scale)
    if not np.array_equal(bias.scale, expected):
        c = int(np.flatnonzero(bias.scale != expected)[0])
        raise ValueError(
            f"{where} has bias scale {bias.scale[c]!r} in channel {c}: expected float32(input "
            "scale * weight "
            f"scale) = {expected[c]!r}"
        )
    check_accumulator(codes, bias.data, real.zero_point, where)


def bias_scale(real: Tensor, weight_scale: np.ndarray) -> np.ndarray:
    """`float32(s_in) * float32(s_w[c])`, [output channels]."""
    return np.float32(real.range.scale) * weight_scale.astype(np.float32)


def check_accumulator(codes: np.ndarray, bias: np.ndarray, zero_point: int, where: str) -> None:
    """The int32 sum must hold `bias + sum codes * (x - zero_point)` for every int8 x. codes [channels,
    ...]."""
    plus = np.where(codes > 0, codes, 0).sum(1, dtype=np.int64)
    minus = np.where(codes < 0, codes, 0).sum(1, dtype=np.int64)
    top, bottom = 127 - zero_point, -128 - zero_point
    reach = np.maximum(bias + plus * top + minus * bottom, -(bias + plus * bottom + minus * top))
    if reach.size and reach.max() > INT32_MAX:
        c = int(reach.argmax())
        raise ValueError(
            f"{where}: the int32 sum of channel {c} could reach {reach[c]:,} (bias code "
            f"{int(bias[c]):,}), beyond "
            f"{INT32_MAX:,}. The bias is too large for its step: give this channel a larger "
            "weight scale, "
            "or a larger input scale"
        )


def check_graph(
    tensors: Mapping[str, Tensor],
    nodes: Sequence[Node],
    inputs: Sequence[str],
    outputs: Sequence[str],
    metadata: Mapping[str, Any],
) -> None:
    """All of a graph: tensors, unique names, order, nodes, inputs, outputs, metadata. ValueError says what
    and where."""
    for key, tensor in tensors.items():
        if key != tensor.name:
            raise ValueError(f"tensor {tensor.name!r} is filed under {key!r}: names must agree")
        check_tensor(tensor)
    _check_ends(tensors, inputs, outputs)
    _check_order(tensors, nodes, inputs)
    for node in nodes:
        check_node(node, tensors)
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata is not plain JSON ({error}): {metadata!r}") from error


def _check_ends(tensors: Mapping[str, Tensor], inputs: Sequence[str], outputs: Sequence[str]) -> None:
    for kind, names in (("inputs", inputs), ("outputs", outputs)):
        if not names or len(set(names)) != len(names) or any(n not in tensors for n in names):
            raise ValueError(
                f"graph {kind} are {names}: expected at least one, all different, all tensors of the graph. A model that "
                "returns one value twice, or also its Dropout or Identity, must return it once"
            )
        if constant := sorted(n for n in names if tensors[n].is_constant):
            raise ValueError(f"graph {kind} {constant} are constants: expected tensors that a node computes, or inputs")


def _check_order(tensors: Mapping[str, Tensor], nodes: Sequence[Node], inputs: Sequence[str]) -> None:
    known = {n for n, t in tensors.items() if t.is_constant} | set(inputs)
    seen: set[str] = set()
    for node in nodes:
        if not node.name or node.name in seen:
            raise ValueError(f"the name {node.name!r} of a {node.op} node is empty or taken: expected unique names")
        seen.add(node.name)
        late = [n for n in node.inputs if n not in known]
        if late:
            raise ValueError(f"{node.op} {node.name!r} reads {late} before any node computes it")
        twice = [n for n in node.outputs if n in known]
        if twice:
            raise ValueError(f"{node.op} {node.name!r} writes {twice}, which already has a value")
        known |= set(node.outputs)
    orphans = [n for n in tensors if n not in known]
    if orphans:
        raise ValueError(f"no node computes the tensors {orphans}, and they are neither inputs nor constants")
