"""The format of every layer's weights in a file, planned once for a graph.

`weights="auto"` takes for each layer the smallest format that is no slower than int8 in a table of measured latencies. The
table comes from `keras-lowbit bench packed --output FILE` on the machine that matters; a default measured on one
x86-64 server ships with the library (see its "machine"). A layer takes the row of the nearest shape.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_lowbit.arguments import shown
from keras_lowbit.deploy.graph import IntegerGraph, Node, Tensor
from keras_lowbit.deploy.litert.weight_formats import (
    BITS,
    PACKED,
    Formats,
    WeightFormat,
    codes_misfit,
    not_packable,
    smallest_formats,
    weighted_nodes,
)
from keras_lowbit.files import FilePath, name_of, read_whole
from keras_lowbit.sealed import strict_json

FORMAT_VERSION = 1
DEFAULT = Path(__file__).with_name("format_choice.json")
# Two measurements of the same thing differ by so much; a format this close to int8 counts as no slower.
TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class LayerLatency:
    """Median times of one layer in milliseconds. pixels: height times width of the output, 1 for a dense layer."""

    pixels: int
    inputs: int
    outputs: int
    int8: float
    int4: float
    int2: float

    def ratio(self, kind: str) -> float:
        """Time with `kind` weights over time with int8 weights."""
        return float(getattr(self, kind)) / self.int8

    def distance(self, pixels: int, inputs: int, outputs: int) -> float:
        """How far the row's shape is: Euclidean, in powers of two."""
        pairs = ((self.pixels, pixels), (self.inputs, inputs), (self.outputs, outputs))
        return math.dist([math.log2(a) for a, _ in pairs], [math.log2(b) for _, b in pairs])


@dataclasses.dataclass(frozen=True)
class LatencyTable:
    """Measured layers, and where they were measured; `export_litert(weights=LatencyTable.load(path))` follows it."""

    rows: tuple[LayerLatency, ...]
    machine: dict[str, Any]

    @classmethod
    def load(cls, path: FilePath | None = None) -> LatencyTable:
        """A table file, the shipped one by default. FileNotFoundError or ValueError, with the remedy, for a bad one."""
        source = DEFAULT if path is None else path
        remedy = "Measure one with: keras-lowbit bench packed --output FILE"
        try:
            found = strict_json(read_whole(source))
            if found["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format version {found['format_version']!r}, expected {FORMAT_VERSION}")
            rows = tuple(LayerLatency(**row) for row in found["rows"])
            if not rows or any(not value > 0 for row in rows for value in dataclasses.astuple(row)):
                raise ValueError("it needs rows of numbers above 0")
            return cls(rows, dict(found["machine"]))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"No latency table at {name_of(source)!r}. {remedy}") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise ValueError(
                f"{name_of(source)!r} is no latency table ({type(error).__name__}: {error}). {remedy}"
            ) from error

    def nearest(self, pixels: int, inputs: int, outputs: int) -> LayerLatency:
        """The row of the nearest shape."""
        return min(self.rows, key=lambda row: row.distance(pixels, inputs, outputs))

    def to_json(self) -> str:
        """The text of a table file."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        return json.dumps({"format_version": FORMAT_VERSION, "machine": self.machine, "rows": rows}, indent=1) + "\n"


Weights = str | LatencyTable | Formats


def plan_formats(graph: IntegerGraph, weights: Weights) -> Formats:
    """The format of every node with weights.

    weights: "int8"; "int4" or "int2", where they fit; "auto" or a `LatencyTable`, the smallest that is no slower than int8; or
    the plan itself.   ValueError for another word.
    """
    if isinstance(weights, LatencyTable) or weights == "auto":
        table = weights if isinstance(weights, LatencyTable) else LatencyTable.load()
        return {node.name: _no_slower(node, graph, table) for node in weighted_nodes(graph)}
    if isinstance(weights, Mapping):
        return weights
    if not isinstance(weights, str) or weights not in BITS:
        bits = f" Write weights='int{weights}'." if f"int{weights}" in BITS else ""
        raise ValueError(
            f"weights={shown(weights)}: expected 'auto', one of {', '.join(map(repr, BITS))}, or a LatencyTable.{bits}"
        )
    return smallest_formats(graph, weights)


def _no_slower(node: Node, graph: IntegerGraph, table: LatencyTable) -> WeightFormat:
    kernel, dense = graph.tensors[node.inputs[1]], node.op == "fully_connected"
    if reason := not_packable(node, kernel):
        return WeightFormat("int8", False, reason)
    inputs, outputs = (int(size or 0) for size in kernel.shape[-2:])
    row = table.nearest(_pixels(graph.tensors[node.outputs[0]]), inputs, outputs)
    where = f"measured at {row.pixels} x {row.inputs} -> {row.outputs}"
    refused = []
    for kind in PACKED:
        misfit, speed = codes_misfit(kernel, BITS[kind]), f"{row.ratio(kind):.2f} times the time of int8, {where}"
        if misfit is None and row.ratio(kind) <= 1 + TOLERANCE:
            return WeightFormat(kind, True, speed)
        refused.append(f"not {kind}: {misfit or speed}")
    return WeightFormat("int8", dense, "; ".join(refused))


def _pixels(output: Tensor) -> int:
    return math.prod(int(size or 1) for size in output.shape[1:-1])
