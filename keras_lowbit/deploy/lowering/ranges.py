"""Which int8 range each tensor of a model has, found from its quantizers without lowering it."""

from typing import Any

from keras_lowbit.convert.analysis.operations import Category, activation_name, category_of, stock_kind
from keras_lowbit.deploy.graph import Range
from keras_lowbit.deploy.graph.operations import OPERATIONS
from keras_lowbit.keras_graph.calls import Call, CallGraph
from keras_lowbit.layers import QuantActivation, QuantizedLayer
from keras_lowbit.layers.host import QuantizerHost
from keras_lowbit.quantizers import ActivationQuantizer, is_activation_quantizer

# Activation function -> the integer operation whose result always has the same range.
FIXED = {"sigmoid": "logistic", "tanh": "tanh", "softmax": "softmax"}


def range_of(host: QuantizerHost, path: str) -> Range:
    """Scale and zero point of a range. ValueError unless it is an 8-bit range that has seen data."""
    quantizer = _checked(host, path)
    if not is_known(host, path):
        raise ValueError(
            f"The range of {path!r} has seen no data. Run keras_lowbit.calibrate(model, images), or fit the model, "
            "before lowering or exporting it."
        )
    scale, zero_point = quantizer.grid(host.values())
    return Range(float(scale), int(zero_point))


def is_known(host: QuantizerHost, path: str) -> bool:
    """Whether a range is fixed by its arguments or has seen data. ValueError if it has another number of bits than 8."""
    return _checked(host, path).has_static_range or float(host.values()["count"]) != 0


def _checked(host: QuantizerHost, path: str) -> ActivationQuantizer:
    quantizer = host.quantizer
    if not is_activation_quantizer(quantizer) or quantizer.bits != 8:
        raise ValueError(
            f"The range of {path!r} is {quantizer!r}; the integer graph stores activations as 8-bit ranges. "
            "Train with 8-bit activations to export, or leave that model in Keras."
        )
    return quantizer


def _is_range(call: Call) -> bool:
    """Whether a call is a range alone, without an activation."""
    return isinstance(call.operation, QuantActivation) and activation_name(call.operation) == "linear"


def stored_inputs(graph: CallGraph) -> set[int]:
    """The model's inputs that are int8 in the graph: those that one range reads and nothing else."""
    found = ((key, graph.only_consumer(key)) for key in graph.inputs)
    return {key for key, reader in found if reader is not None and _is_range(reader)}


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
        return self._made.setdefault(id(host), Range((1 + count / 1024) / 16, count % 100 - 50))


def infer_ranges(graph: CallGraph) -> dict[int, Range]:
    """Key of a tensor -> the range in which it is stored as int8; tensors without one of their own are left out.

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
    if isinstance(operation, QuantActivation):
        return range_of(operation.output_host, call.path)
    if isinstance(operation, QuantizedLayer):
        if operation.activation_fuses:
            return None if operation.output_host is None else range_of(operation.output_host, call.path)
        return _fixed_range(operation)
    if category is Category.KEEPS_RANGE:
        return known.get(call.inputs[0])
    return (
        _fixed_range(operation) if call.inputs and call.inputs[0] in known and category is not Category.FLOAT else None
    )


def _fixed_range(operation: Any) -> Range | None:
    name = "softmax" if stock_kind(operation) == "Softmax" else activation_name(operation)
    if name == "hard_sigmoid":
        name = "sigmoid"
    return OPERATIONS[FIXED[name]].fixed_range if name in FIXED else None
