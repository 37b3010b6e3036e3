"""What a node must satisfy beside its operation's own rules, and the words when it does not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras_lowbit.deploy.graph.operations.attributes import check_attributes
from keras_lowbit.deploy.graph.operations.elementwise import SIX_STEPS
from keras_lowbit.deploy.graph.operations.operation import FREE, KEEP, Limit, Operation, Use
from keras_lowbit.deploy.graph.tensors import BIASES, CODES, PLAIN, Node, Range, Tensor
from keras_lowbit.numerics.requantization import INT32_MAX

#: The largest sum of each type of bias. LiteRT's factor for int64 sums takes those below 2**47.
LARGEST_SUM = {"int32": INT32_MAX, "int64": 2**47 - 1}


def check_use(operation: Operation, node: Node, tensors: Mapping[str, Tensor]) -> None:
    """One node against its operation: operands, attributes, shapes, ranges, weights, limits. ValueError names the node."""
    where = f"{node.op} {node.name!r}"
    missing = [n for n in (*node.inputs, *node.outputs) if n not in tensors]
    if missing:
        raise ValueError(f"{where} names tensors that the graph lacks: {missing}")
    use = Use(node, tuple(tensors[n] for n in node.inputs), tuple(tensors[n] for n in node.outputs))
    _check_operands(operation, use)
    check_attributes(operation.attributes, node.attributes, use.where)
    operation.check(use)
    if operation.builtin is None:  # a float subgraph: its own model says the shapes
        return
    _check_shape(operation, use)
    _check_range(operation, use)
    if operation.weighted:
        _check_weights(operation, use)
    for limit in (*operation.limits, *((SIX_STEPS,) if node.attributes.get("activation") == "relu6" else ())):
        _check_limit(limit, use)


def _check_operands(operation: Operation, use: Use) -> None:
    inputs, outputs = use.inputs, use.outputs
    wrong_count = len(inputs) != (operation.inputs or max(len(inputs), 1))
    writes = 1 + len(operation.also_writes)
    if wrong_count or (len(outputs) != writes and operation.builtin is not None):
        raise ValueError(
            f"{use.where} has {len(inputs)} inputs and {len(outputs)} outputs: "
            f"expected {operation.inputs or 'one or more'} and {writes}"
        )
    for place, tensor in enumerate(inputs):
        fits = operation.types_of(place)
        if tensor.dtype not in fits:
            raise ValueError(
                f"{use.where} reads {tensor.name!r} of dtype {tensor.dtype}: expected {' or '.join(fits)}; put quantize or "
                "dequantize between"
            )
        _check_constant(operation, use, place, tensor)
    for place, tensor in enumerate(outputs):
        types = operation.also_writes[place - 1 : place] if place and operation.also_writes else operation.writes
        if tensor.dtype not in types or tensor.is_constant:
            expected = " or ".join(types)
            raise ValueError(
                f"{use.where} writes {tensor.name!r} of dtype {tensor.dtype}: expected {expected}, not constant"
            )
    _check_one_type(operation, use)


def _check_one_type(operation: Operation, use: Use) -> None:
    """All codes of a node have one type, but for weights."""
    reads = use.inputs[:1] if operation.has_parameters else use.inputs
    types = {t.name: t.dtype for t in (*reads, *use.outputs) if t.dtype in CODES}
    if len(set(types.values())) > 1 and not operation.converts:
        words = ", ".join(f"{name!r} is {dtype}" for name, dtype in types.items())
        raise ValueError(
            f"{use.where} has codes of two types ({words}): expected one; put quantize between (in Keras a QuantActivation "
            "of the other type)"
        )


def _check_constant(operation: Operation, use: Use, place: int, tensor: Tensor) -> None:
    """Constants are weights, or one of the two operands that broadcast; but for weights they have one scale."""
    takes = bool(place) if operation.has_parameters else operation.inputs in (2, 3)
    if tensor.is_constant and not takes:
        raise ValueError(f"{use.where} reads the constant {tensor.name!r}: expected a computed tensor or an input")
    if tensor.scale is not None and tensor.scale.ndim and not (operation.has_parameters and place):
        raise ValueError(f"{use.where} reads {tensor.name!r} of {tensor.scale.size} scales: expected one")


def _check_shape(operation: Operation, use: Use) -> None:
    try:
        expected = operation.infer_shape(use.attributes, [t.shape for t in use.inputs])
    except ValueError as error:
        raise ValueError(f"{use.where}: {error}") from error
    for output in use.outputs:
        if output.shape != expected:
            raise ValueError(f"{use.where} writes {output.name!r} of shape {output.shape}: expected {expected}")


def _check_range(operation: Operation, use: Use) -> None:
    if operation.range == FREE:
        return
    output = use.outputs[0]
    for tensor in use.inputs if operation.range == KEEP else ():
        if tensor.dtype in PLAIN:
            _check_plain(operation, use, tensor)
        elif _grid(tensor) != _grid(output):
            raise ValueError(
                f"{use.where} keeps the range, but {tensor.name!r} has {_words(tensor)} and {output.name!r} has "
                f"{_words(output)}: requantize {tensor.name!r} to the same range first (quantize)"
            )
    fixed = None if operation.range == KEEP else operation.fixed_range(use.codes)
    if fixed is not None and _grid(output) != (np.float32(fixed.scale), fixed.zero_point):
        raise ValueError(
            f"{use.where} writes {_words(output)}: expected scale {fixed.scale} zero point {fixed.zero_point}"
        )


def _check_plain(operation: Operation, use: Use, tensor: Tensor) -> None:
    """Values that are moved stay values of their type; a mask that chooses between codes is none of them."""
    if operation.inputs == 1 and tensor.dtype != use.outputs[0].dtype:
        raise ValueError(
            f"{use.where} moves {tensor.dtype} values of {tensor.name!r} to {use.outputs[0].dtype}: expected one type"
        )


def _grid(tensor: Tensor) -> tuple[np.float32, int]:
    return np.float32(tensor.range.scale), tensor.zero_point


def _words(tensor: Tensor) -> str:
    return f"scale {tensor.range.scale:.9g} zero point {tensor.zero_point}"


def _check_limit(limit: Limit, use: Use) -> None:
    factor, output = limit.factor(use), use.outputs[0]
    if not factor < limit.below:
        raise ValueError(
            f"{use.where}: {limit.what} is {factor:.6g}: LiteRT takes values below {limit.below:.6g}. Give {output.name!r} a "
            f"wider range (its scale is {output.range.scale:.3g}), or calibrate again"
        )


def _check_weights(operation: Operation, use: Use) -> None:
    real, kernel, bias = use.inputs
    if kernel.data is None or bias.data is None or kernel.scale is None or bias.scale is None:
        raise ValueError(f"{use.where} needs constant weights and bias; {kernel.name!r} or {bias.name!r} is computed")
    codes = operation.kernel.by_output(kernel.data)  # type: ignore[union-attr]
    if kernel.zero_point or (codes.size and codes.min() < -127):
        raise ValueError(
            f"{use.where} has weight codes from {codes.min()} to {codes.max()} with zero point "
            f"{kernel.zero_point}: expected -127 to 127 with zero point 0"
        )
    channels = codes.shape[:1]
    if kernel.scale.shape != channels or bias.shape != channels or bias.scale.shape != channels:
        raise ValueError(
            f"{use.where} has {channels[0]} output channels, weight scales of shape {kernel.scale.shape}, bias of shape "
            f"{bias.shape} with scales of shape {bias.scale.shape}: expected ({channels[0]},) each"
        )
    if bias.dtype not in (types := bias_types(operation, real)):
        raise ValueError(
            f"{use.where} has a bias of {bias.dtype} on {real.dtype} inputs: expected {' or '.join(types)}"
        )
    expected = bias_scale(real, kernel.scale)
    if not np.array_equal(bias.scale, expected):
        c = int(np.flatnonzero(bias.scale != expected)[0])
        raise ValueError(
            f"{use.where} has bias scale {bias.scale[c]!r} in channel {c}: expected float32(input scale * weight scale) = "
            f"{expected[c]!r}"
        )
    check_accumulator(codes, bias, real.range, use.where)


def bias_scale(real: Tensor, weight_scale: np.ndarray) -> np.ndarray:
    """`float32(s_in) * float32(s_w[c])`, [output channels]."""
    return np.float32(real.range.scale) * weight_scale.astype(np.float32)


def bias_types(operation: Operation, real: Tensor) -> tuple[str, ...]:
    """The types that LiteRT takes for the bias of an operation on such an input, the faster one first."""
    if real.dtype == "int8":
        return BIASES[:1]
    return operation.int16_biases


def largest_sums(codes: np.ndarray, bias: np.ndarray, grid: Range) -> np.ndarray:
    """The largest magnitude of `bias + sum codes * (x - zero_point)` for any x of a grid; int64 [channels].

    codes: [channels, ...].
    """
    plus, minus = (part(codes, 0).sum(1, dtype=np.int64) for part in (np.maximum, np.minimum))
    bottom, top = (code - grid.zero_point for code in grid.limits)
    return np.maximum(bias + plus * top + minus * bottom, -(bias + plus * bottom + minus * top))


def check_accumulator(codes: np.ndarray, bias: Tensor, grid: Range, where: str) -> None:
    """ValueError unless the type of the bias holds every sum that can occur. codes: [channels, ...]."""
    biases, most = np.asarray(bias.data, np.int64), LARGEST_SUM[bias.dtype]
    reach = largest_sums(codes, biases, grid)
    if reach.size and reach.max() > most:
        c = int(reach.argmax())
        raise ValueError(
            f"{where}: the {bias.dtype} sum of channel {c} could reach {reach[c]:,} (bias code {int(biases[c]):,}), beyond "
            f"{most:,}. The bias is too large for its step: "
            "give this channel a larger weight scale, or a larger input scale"
        )
