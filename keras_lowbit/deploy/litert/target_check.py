"""What in a file a target does not take: each operator against the target's data, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_lowbit.deploy.graph import IntegerGraph, Range
from keras_lowbit.deploy.graph.tensors import CODES
from keras_lowbit.deploy.litert.fixed_point import tables
from keras_lowbit.deploy.litert.reader import FileOperator, FileTensor, LiteRTFile
from keras_lowbit.deploy.litert.target import Target

_OTHER = "Use a layer that runs in integers there, or leave it out of the model"
_RANGE = "Put keras_lowbit.layers.QuantActivation where the range is missing, if its 8 bits are enough, or leave it out"
_FLOATS = ("FLOAT16", "FLOAT32", "FLOAT64", "BFLOAT16")
_AT_ENDS = ("QUANTIZE", "DEQUANTIZE")


class Misfit(NamedTuple):
    """layer: or an end of the file.   operation: a LiteRT operator, or a Keras class in float.   remedy: what to do."""

    layer: str
    operation: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.operation} {self.problem}. {self.remedy}"


class InFloat(NamedTuple):
    """A Keras call that runs in float."""

    path: str
    operation: str
    reason: str


def misfits(
    content: bytes, graph: IntegerGraph, target: Target, in_float: Sequence[InFloat] = ()
) -> tuple[Misfit, ...]:
    """All that a target does not take of a file, each once, in running order.

    content: the file.   graph: what it was written from, for the names of layers.   in_float: the calls that run in float.
    """
    file = LiteRTFile.of_bytes(content)
    found = [*_of_floats(in_float, target), *_of_file(file, target), *_of_ends(file, target)]
    if wrong := _of_activations(graph, target):
        return tuple(dict.fromkeys([*wrong, *found]))  # of other codes the operators' limits say nothing
    owners = _Owners(graph)
    for operator in file.operators:
        found += _of_operator(_Seen(file, operator, owners.of(operator)), target, explained=bool(in_float))
    return tuple(dict.fromkeys(found))


def refusal(found: Sequence[Misfit], target: Target) -> str:
    """All of them in one message."""
    count = f"{len(found)} thing{'s' if len(found) > 1 else ''}"
    lines = "\n".join(f"- {misfit}" for misfit in found)
    return f"The model has {count} that target {target.name!r} does not take:\n{lines}\nstrict=False writes the file anyway."


class _Owners:
    """Which layer an operator of the file belongs to: the node that writes its output, or whose name it begins with."""

    def __init__(self, graph: IntegerGraph) -> None:
        self.by_tensor = {name: node.name for node in graph.nodes for name in node.outputs}

    def of(self, operator: FileOperator) -> str:
        """Name of the node, or of the tensor where none is found."""
        name = operator.outputs[0]
        while name not in self.by_tensor and "/" in name:
            name = name.rpartition("/")[0]
        return self.by_tensor.get(name, operator.outputs[0])


class _Seen(NamedTuple):
    """An operator with its tensors."""

    file: LiteRTFile
    operator: FileOperator
    layer: str

    @property
    def kernel(self) -> FileTensor | None:
        """The weights of an operator that has any."""
        names = self.operator.inputs[1:2]
        weighted = self.operator.builtin in ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
        return self.file.tensors[names[0]] if weighted and names else None

    def tensors(self) -> list[FileTensor]:
        """Inputs and outputs that are computed."""
        names = (*self.operator.inputs, *self.operator.outputs)
        return [tensor for name in names if name and (tensor := self.file.tensors[name]).data is None]

    def option(self, name: str, default: Any = None) -> Any:
        """A field of the operator's options."""
        return self.operator.options.get(name, default)

    def misfit(self, problem: str, remedy: str) -> Misfit:
        """What is wrong with it."""
        return Misfit(self.layer, self.operator.builtin, problem, remedy)


def _of_floats(in_float: Sequence[InFloat], target: Target) -> Iterator[Misfit]:
    for call in () if target.floats else in_float:
        remedy = _RANGE if "one is missing" in call.reason else _OTHER
        yield Misfit(call.path, call.operation, f"runs in float: {call.reason}", remedy)


def _of_file(file: LiteRTFile, target: Target) -> Iterator[Misfit]:
    if target.size_bytes is not None and file.size > target.size_bytes:
        problem = f"has {file.size:,} bytes, {target.name} takes {target.size_bytes:,}"
        yield Misfit("the model", "the file", problem, "Fewer or narrower layers, or weights='int4'")
    batch = max((file.tensors[name].shape[0] for name in file.inputs if file.tensors[name].shape), default=1)
    if file.has_any_batch and not target.any_batch:
        yield Misfit(
            "the model", "the file", f"has an open batch, {target.name} takes fixed shapes", "Give batch_size=1"
        )
    if target.batch_size is not None and batch > target.batch_size:
        problem = f"has a batch of {batch}, {target.name} takes {target.batch_size}"
        yield Misfit("the model", "the file", problem, f"Give batch_size={target.batch_size}")


def _of_activations(graph: IntegerGraph, target: Target) -> list[Misfit]:
    types = {tensor.dtype for tensor in graph.tensors.values() if tensor.dtype in CODES and not tensor.is_constant}
    takes, remedy = (
        ", ".join(target.activations),
        "Quantize with 8-bit activations: the recipe 'int8', or activations=8",
    )
    return [
        Misfit("the model", "activations", f"are {kind}, {target.name} takes {takes}", remedy)
        for kind in sorted(types.difference(target.activations))
    ]


def _of_ends(file: LiteRTFile, target: Target) -> Iterator[Misfit]:
    for side, names in (("input", file.inputs), ("output", file.outputs)):
        for name in names:
            kind = file.tensors[name].type.lower()
            if kind not in target.ends:
                takes = ", ".join(target.ends)
                yield Misfit(
                    f"{side} {name!r}",
                    kind,
                    f"is no type of an end, {target.name} takes {takes}",
                    f"Give io={target.ends[0]!r}",
                )


def _of_operator(seen: _Seen, target: Target, explained: bool) -> Iterator[Misfit]:
    builtin = seen.operator.builtin
    if any(tensor.type in _FLOATS for tensor in seen.tensors()):
        if not target.floats and not explained and builtin not in _AT_ENDS:
            yield seen.misfit("runs in float", "Leave it out of the model")
        if not target.floats:
            return
    if not target.takes(builtin):
        why = target.left_out.get(builtin)
        problem = f"is left out of {target.name}: {why}" if why else f"is no operator of {target.name}"
        yield seen.misfit(
            problem, "Use another layer there, or a target= of your own that lists it, if your device has it"
        )
        return
    kernel = seen.kernel
    if kernel is not None and kernel.scale.size > 1 and "channel" not in target.granularity:
        remedy = "Fold batch norms (fold_batch_norms) and quantize with granularity='tensor'"
        yield seen.misfit(f"has {kernel.scale.size} scales of its weights, {target.name} takes one", remedy)
    for limit, value in _limits_of(seen, target):
        problem = CONDITIONS[limit](seen, value)
        if problem:
            yield seen.misfit(problem, _REMEDIES[limit])


def _limits_of(seen: _Seen, target: Target) -> Iterator[tuple[str, Any]]:
    yield from target.operators.get(seen.operator.builtin, {}).items()
    if seen.kernel is not None and "weights" not in target.operators.get(seen.operator.builtin, {}):
        yield "weights", target.weights_of(seen.operator.builtin)
    if target.axes is not None:
        yield "axes", target.axes


def _weights(seen: _Seen, kinds: Sequence[str]) -> str:
    kind = seen.kernel.type.lower() if seen.kernel is not None else ""
    return f"has {kind} weights, taken are {', '.join(kinds)}" if kind and kind not in kinds else ""


def _activations(seen: _Seen, kinds: Sequence[str]) -> str:
    found = {tensor.type.lower() for tensor in seen.tensors()}.intersection(CODES).difference(kinds)
    return f"has {', '.join(sorted(found))} activations, taken are {', '.join(kinds)}" if found else ""


def _values(seen: _Seen, taken: bool) -> str:
    kind = seen.file.tensors[seen.operator.outputs[0]].type.lower()
    return f"moves {kind} values, taken are codes" if not taken and kind in ("bool", "int32") else ""


def _fused_activation(seen: _Seen, taken: bool) -> str:
    return "has a fused activation" if not taken and seen.option("fusedActivationFunction", 0) else ""


def _equal_dilation(seen: _Seen, needed: bool) -> str:
    pair = seen.option("dilationHFactor", 1), seen.option("dilationWFactor", 1)
    return f"has dilations {pair}, taken are equal ones" if needed and pair[0] != pair[1] else ""


def _equal_ranges(seen: _Seen, needed: bool) -> str:
    ends = [seen.file.tensors[names[0]] for names in (seen.operator.inputs, seen.operator.outputs)]
    grids = [(tensor.scale.tolist(), tensor.zero_point.tolist()) for tensor in ends]
    return "has an output of another range than its input" if needed and grids[0] != grids[1] else ""


def _fixed_point(seen: _Seen, needed: bool) -> str:
    given = seen.file.tensors[seen.operator.inputs[0]]
    if given.type != "INT8":
        return ""
    litert, own = tables(seen.operator.builtin.lower(), Range(float(given.scale[0]), int(given.zero_point[0])))
    other = int((litert != own).sum()) if needed else 0
    return f"gives {other} of the 256 codes otherwise than LiteRT" if other else ""


def _constant(seen: _Seen, place: int) -> np.ndarray:
    names = seen.operator.inputs[place : place + 1]
    codes = seen.file.tensors[names[0]].codes if names else None
    return np.zeros(0, np.int64) if codes is None else codes


def _unit_strides(seen: _Seen, needed: bool) -> str:
    strides = _constant(seen, 3)
    return f"has strides {strides.tolist()}, taken is 1" if needed and (strides != 1).any() else ""


def _strides(seen: _Seen, most: int) -> str:
    pair = seen.option("strideH", 1), seen.option("strideW", 1)
    return f"has strides {pair}, taken are up to {most}" if max(pair) > most else ""


def _filter_widths(seen: _Seen, widths: Sequence[int]) -> str:
    width = seen.kernel.shape[2] if seen.kernel is not None else None
    return f"has a window of width {width}, taken are {', '.join(map(str, widths))}" if width not in widths else ""


def _multiplier(seen: _Seen, most: int) -> str:
    found = seen.option("depthMultiplier", 1)
    return f"has a depth multiplier of {found}, taken is {most}" if found > most else ""


def _axes(seen: _Seen, most: int) -> str:
    wide = [tensor.shape for tensor in seen.tensors() if any(size > 1 for size in tensor.shape[1:-most])]
    return f"has a tensor of shape {wide[0]}, only the {most} innermost axes may be longer than 1" if wide else ""


def _elements(seen: _Seen, most: int) -> str:
    count = max(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in seen.tensors())
    return f"has {count:,} elements, taken are up to {most:,}" if count > most else ""


def _side(seen: _Seen, most: int) -> str:
    side = max(seen.file.tensors[seen.operator.outputs[0]].shape[1:3], default=0)
    return f"makes an image of side {side}, taken are up to {most}" if side > most else ""


def _channel_multiple(seen: _Seen, multiple: int) -> str:
    shape = seen.file.tensors[seen.operator.inputs[0]].shape
    reduced = {int(axis) % len(shape) for axis in _constant(seen, 1)}
    over = len(shape) - 1 in reduced and shape[-1] % multiple
    return f"reduces {shape[-1]} channels, taken are multiples of {multiple}" if over else ""


def _rank(seen: _Seen, most: int) -> str:
    ranks = [len(tensor.shape) for tensor in seen.tensors()]
    return f"has a tensor of {max(ranks)} axes, taken are up to {most}" if max(ranks) > most else ""


def _inputs(seen: _Seen, most: int) -> str:
    count = len(seen.operator.inputs)
    return f"joins {count} tensors, taken are up to {most}" if count > most else ""


CONDITIONS: Mapping[str, Callable[[_Seen, Any], str]] = {
    "weights": _weights,
    "activations": _activations,
    "values": _values,
    "fused_activation": _fused_activation,
    "equal_dilation": _equal_dilation,
    "equal_ranges": _equal_ranges,
    "fixed_point": _fixed_point,
    "unit_strides": _unit_strides,
    "strides": _strides,
    "filter_widths": _filter_widths,
    "multiplier": _multiplier,
    "axes": _axes,
    "rank": _rank,
    "inputs": _inputs,
    "elements": _elements,
    "side": _side,
    "channel_multiple": _channel_multiple,
}
_REMEDIES: Mapping[str, str] = {
    "weights": "Give weights='int8'",
    "activations": "Use another layer there, or quantize with 8-bit activations (activations=8 in the recipe)",
    "values": "Make the mask of whole numbers that stand in that order already",
    "fused_activation": "Put a range (QuantActivation) between the layer and its activation",
    "equal_dilation": "Use one dilation for both axes",
    "equal_ranges": "Put the activation right behind a layer with weights, so that it is part of it",
    "fixed_point": "Export it for this target: its codes are then in the file as a table",
    "unit_strides": "Take every place, or use a pooling layer",
    "strides": "Use smaller strides",
    "filter_widths": "Use another window",
    "multiplier": "Use a depth multiplier of 1",
    "axes": "Reshape in front of it so that outer axes are 1, or use another layer there",
    "rank": "Reshape in front of it and behind it, so that neighbouring axes are one",
    "inputs": "Join some of them first, in a range of their own (QuantActivation)",
    "elements": "Use fewer",
    "side": "Resize to a smaller image",
    "channel_multiple": "Use another number of channels",
}
