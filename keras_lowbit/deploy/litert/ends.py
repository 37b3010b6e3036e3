"""The two ends of a file: in which type each input and output of the graph is handed over, and under which name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from keras_lowbit.deploy.graph import IntegerGraph, Tensor

if TYPE_CHECKING:
    from keras_lowbit.deploy.litert.operators import Emitter

TYPES = ("int8", "uint8", "int16", "float32")
FINER = 128  # int16 steps in one of int8: 255 steps of int8 on either side of zero fit


class Ends(NamedTuple):
    """Type by the name of the graph's tensor; of values without a range their own, whatever was asked for."""

    inputs: dict[str, str]
    outputs: dict[str, str]


Io = str | tuple[str, str] | Mapping[str, str] | Ends | None


def ends_of(graph: IntegerGraph, io: Io) -> Ends:
    """The types that `io` gives the ends of a graph: one for all, a pair for inputs and outputs, or by name.

    None, and what a dict leaves out: the graph's own, uint8 where the model reads bytes. An output's name is that in the
    signature, or of its tensor. ValueError for another type or name, and for 8-bit ends of a graph of 16-bit codes.
    """
    if isinstance(io, Ends):
        return io
    asked = _asked(graph, io)
    for name, kind in {**asked.inputs, **asked.outputs}.items():
        if graph.tensors[name].dtype == "int16" and kind in ("int8", "uint8"):
            raise ValueError(
                f"io={kind!r} for {name!r}, whose codes have 16 bits: expected 'int16', or 'float32' for reals"
            )
    return asked


def _asked(graph: IntegerGraph, io: Io) -> Ends:
    if io is None:
        io = {}
    if isinstance(io, Mapping):
        names = _names(graph)
        if unknown := [name for name in io if name not in names]:
            raise ValueError(f"io= names {unknown}, but the ends of the model are {', '.join(names)}")
        by_tensor = {names[name]: _checked(kind, f" for {name!r}") for name, kind in io.items()}
        sides = (
            {name: by_tensor.get(name, _usual(graph, name)) for name in side} for side in (graph.inputs, graph.outputs)
        )
        return Ends(*sides)
    pair = (io, io) if isinstance(io, str) else io
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"io={io!r}: expected a type, a pair (inputs, outputs), or a dict {{name of an end: type}}")
    kinds = [_checked(kind) for kind in pair]
    return Ends(dict.fromkeys(graph.inputs, kinds[0]), dict.fromkeys(graph.outputs, kinds[1]))


def _checked(kind: Any, where: str = "") -> str:
    if not isinstance(kind, str) or kind not in TYPES:
        raise ValueError(f"io={kind!r}{where}: expected {', '.join(map(repr, TYPES[:-1]))} or {TYPES[-1]!r}")
    return kind


def _own(graph: IntegerGraph, name: str) -> str:
    """The type of an end that nothing stands in front of or behind."""
    tensor = graph.tensors[name]
    return tensor.dtype if tensor.scale is not None else "int8"


def _usual(graph: IntegerGraph, name: str) -> str:
    """The type of an end that none is asked for: that of the model's input where it reads bytes."""
    return "uint8" if name in graph.metadata.get("byte_inputs", ()) else _own(graph, name)


def _names(graph: IntegerGraph) -> dict[str, str]:
    return {name: name for name in (*graph.inputs, *graph.outputs)} | dict(
        zip(output_names(graph), graph.outputs, strict=True)
    )


def output_names(graph: IntegerGraph) -> Sequence[str]:
    """Names of the outputs in the signature: those that the metadata give, the keys of a dict; else the tensors'."""
    given = graph.metadata.get("output_names")
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        return graph.outputs
    return given if len(given) == len(graph.outputs) == len(set(given)) else graph.outputs


def ends_in(graph: IntegerGraph, inputs: Sequence[str], outputs: Sequence[str]) -> Ends:
    """The types that a file was written with. inputs, outputs: names of its own ends."""

    def kind_of(name: str, names: Sequence[str], called: Callable[[str], str]) -> str:
        return next((kind for kind in TYPES if called(kind) in names), _own(graph, name))

    read = {name: kind_of(name, inputs, f"{name}/{{}}".format) for name in graph.inputs}
    made = {name: kind_of(name, outputs, partial(_output_name, graph, name)) for name in graph.outputs}
    return Ends(read, made)


def _output_name(graph: IntegerGraph, name: str, kind: str) -> str:
    """Name of an output of another type; that of an input which is handed on must not have the input's."""
    return f"{name}/{kind}" if name not in graph.inputs else f"{name}/output/{kind}"


def read(emitter: Emitter, name: str, kind: str) -> int:
    """The file's input for one of the graph: the tensor itself, or one of another type with a QUANTIZE behind it."""
    if kind == _own(emitter.graph, name) or emitter.graph.tensors[name].scale is None:
        return emitter.place(name)
    outer = _outer(emitter, name, kind, f"{name}/{kind}")
    version = _version(emitter, name, kind)
    emitter.file.operator("QUANTIZE", version, [outer], [emitter.place(name)], "QuantizeOptions")
    return outer


def write(emitter: Emitter, name: str, kind: str) -> int:
    """The file's output for one of the graph: the tensor itself, or one of another type made of it."""
    if kind == _own(emitter.graph, name) or emitter.graph.tensors[name].scale is None:
        return emitter.place(name)
    outer, version = _outer(emitter, name, kind, _output_name(emitter.graph, name, kind)), _version(emitter, name, kind)
    if kind == "float32":
        emitter.file.operator("DEQUANTIZE", version + 1, [emitter.place(name)], [outer], "DequantizeOptions")
    else:
        emitter.file.operator("QUANTIZE", version, [emitter.place(name)], [outer], "QuantizeOptions")
    return outer


def _version(emitter: Emitter, name: str, kind: str) -> int:
    """Version of the QUANTIZE between an end and its tensor; that of DEQUANTIZE is one more."""
    return 2 if "int16" in (kind, emitter.graph.tensors[name].dtype) else 1


def _outer(emitter: Emitter, name: str, kind: str, called: str) -> int:
    tensor = emitter.graph.tensors[name]
    scale, zero_point = (None, 0) if kind == "float32" else outer_grid(tensor, kind)
    return emitter.add(called, tensor, kind.upper(), scale, zero_point)


def outer_grid(tensor: Tensor, kind: str) -> tuple[Any, int]:
    """Scale and zero point of an end: uint8 has the steps of int8, int16 finer ones around zero, those of int8 among them."""
    if kind == "uint8":
        return tensor.scale, tensor.zero_point + 128
    return np.float32(tensor.range.scale / FINER), 0
