"""Which range each tensor of a model has, found from its quantizers without lowering it."""

from typing import Any

from keras_lowbit.convert.analysis.operations import Category, activation_name, category_of, is_wide, stock_kind
from keras_lowbit.deploy.graph import Range
from keras_lowbit.deploy.graph.operations import OPERATIONS
from keras_lowbit.keras_graph.calls import Call, CallGraph
from keras_lowbit.layers import QuantActivation, QuantizedLayer
from keras_lowbit.layers.host import QuantizerHost
from keras_lowbit.quantizers import ActivationQuantizer, is_activation_quantizer
from keras_lowbit.quantizers.base import WIDE

_CONTAINER = 8  # bits of an int8 code

# Activation function -> the integer operation whose result always has the same range.
FIXED = {"sigmoid": "logistic", "tanh": "tanh", "softmax": "softmax"}


def range_of(host: QuantizerHost, path: str) -> Range:
    """Scale, zero point and type of a range. ValueError unless it has seen data, and for one of few bits below 0.

    Fewer than 8 bits are the top codes of int8: its saturation ends the range above, and the relu in front, which is all that
    may stand there, below.
    """
    quantizer = _checked(host, path)
    if not is_known(host, path):
        raise ValueError(
            f"The range of {path!r} has seen no data. Run keras_lowbit.calibrate(model, images), or fit the model, "
            "before lowering or exporting it."
        )
    scale, zero_point = quantizer.grid(host.values())
    bits = int(quantizer.bits)
    if bits < _CONTAINER and int(zero_point) != -(2 ** (bits - 1)):
        raise ValueError(
            f"The range of {path!r} has {bits} bits and codes for values below 0, which int8 codes do not end where it does. "
            "Put ranges of fewer than 8 bits behind a relu, as quantize_model does, and give others 8 bits."
        )
    shift = 2 ** (_CONTAINER - 1) - 2 ** (bits - 1) if bits < _CONTAINER else 0
    return Range(float(scale), int(zero_point) + shift, codes_of(quantizer))


def is_known(host: QuantizerHost, path: str) -> bool:
    """Whether a range is fixed by its arguments or has seen data. ValueError unless it has 2 to 8 or 16 bits."""
    return _checked(host, path).has_static_range or float(host.values()["count"]) != 0


def _checked(host: QuantizerHost, path: str) -> ActivationQuantizer:
    quantizer = host.quantizer
    if not is_activation_quantizer(quantizer) or not (2 <= quantizer.bits <= _CONTAINER or quantizer.bits == WIDE):
        raise ValueError(
            f"The range of {path!r} is {quantizer!r}; the integer graph stores activations in 2 to 8 or 16 bits. "
            "Train with such activations to export, or leave that model in Keras."
        )
    return quantizer


def codes_of(quantizer: Any) -> str:
    """The type of codes that a range has in the integer graph."""
    return "int16" if is_wide(quantizer) else "int8"


def uses_int16(graph: CallGraph) -> bool:
    """Whether a model stores activations in 16 bits."""
    hosts = (getattr(call.operation, "output_host", None) for call in graph.calls)
    return any(host is not None and is_wide(host.quantizer) for host in hosts)


def _is_range(call: Call) -> bool:
    """Whether a call is a range alone, without an activation."""
    return isinstance(call.operation, QuantActivation) and activation_name(call.operation) == "linear"


def stored_inputs(graph: CallGraph) -> set[int]:
    """The model's inputs that are int8 in the graph: those that one range reads and nothing else."""
    found = ((key, graph.only_consumer(key)) for key in graph.inputs)
    return {key for key, reader in found if reader is not None and _is_range(reader)}


def reads_bytes(graph: CallGraph, call: Call) -> bool:
    """Whether a call makes reals of an input of bytes, which it alone reads, for a range of 0 to 255 alone."""
    reader = graph.only_consumer(call.outputs[0])
    alone = category_of(call) is Category.PIXELS and graph.only_consumer(call.inputs[0]) is call
    if not alone or call.inputs[0] not in graph.inputs or reader is None or not _is_range(reader):
        return False
    host = reader.operation.output_host
    return host.quantizer.has_static_range and range_of(host, reader.path).is_of_bytes


class StandInRanges:
    """`range_of` for a model that was not calibrated: made-up ranges where data have not been seen.

    The size of a file does not depend on them, but equal ones would be stored once and make it too small: each differs.
    """

    def __init__(self) -> None:
        self._made: dict[int, Range] = {}

    @property
    def made_up(self) -> bool:
        """Whether any range was."""
        return bool(self._made)

    def __call__(self, host: QuantizerHost, path: str) -> Range:
        """The known range, or a range of its own for each host."""
        if is_known(host, path):
            return range_of(host, path)
        count = len(self._made)
        wide = is_wide(host.quantizer)
        scale, zero_point = (1 + count / 1024) / (4096 if wide else 16), 0 if wide else count % 100 - 50
        return self._made.setdefault(id(host), Range(scale, zero_point, "int16" if wide else "int8"))


def infer_ranges(graph: CallGraph) -> dict[int, Range]:
    """Key of a tensor -> the range in which it is stored as codes; tensors without one of their own are left out.

    Raises what `range_of` raises.
    """
    found: dict[int, Range] = {}
    for call in graph.calls:
        given = _range_behind(call, found)
        if given is not None:
            found |= dict.fromkeys(call.outputs, given)
    return found


def _range_behind(call: Call, known: dict[int, Range]) -> Range | None:
    operation, category = call.operation, category_of(call)
    if isinstance(operation, QuantActivation) or category is Category.FUSED_LOOP:
        return range_of(operation.output_host, call.path)
    if isinstance(operation, QuantizedLayer):
        if operation.activation_fuses:
            return None if operation.output_host is None else range_of(operation.output_host, call.path)
        host = operation.output_host
        return _fixed_range(operation, "int8" if host is None else codes_of(_checked(host, call.path)))
    if category is Category.KEEPS_RANGE:
        return known.get(call.inputs[0])
    source = known.get(call.inputs[0]) if call.inputs else None
    return None if source is None or category is Category.FLOAT else _fixed_range(operation, source.dtype)


def _fixed_range(operation: Any, codes: str) -> Range | None:
    name = "softmax" if stock_kind(operation) == "Softmax" else activation_name(operation)
    if name == "hard_sigmoid":
        name = "sigmoid"
    return OPERATIONS[FIXED[name]].fixed_range(codes) if name in FIXED else None
