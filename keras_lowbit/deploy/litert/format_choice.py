"""weights="auto": for each layer the smallest container that is no slower than int8, from a table of measured times.

The table comes from `python -m keras_lowbit.bench.packed --out FILE` on the machine that matters; a default measured on
one x86-64 server ships with the library (see its "machine"). A layer takes the row of the nearest shape.
"""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

from keras_lowbit.deploy.graph.checks import RULES
from keras_lowbit.deploy.graph.integer_graph import IntegerGraph
from keras_lowbit.deploy.graph.tensors import Node, Tensor
from keras_lowbit.deploy.litert.weight_formats import (
    BITS,
    Container,
    Weights,
    check_weights,
    does_not_fit,
    not_pointwise,
)

FORMAT_VERSION = 1
DEFAULT = Path(__file__).with_name("format_choice.json")
# Two measurements of the same thing differ by so much; a container this close to int8 counts as no slower.
TOLERANCE = 0.05
PACKED = ("int2", "int4")


@dataclasses.dataclass(frozen=True)
class Speed:
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
class SpeedTable:
    """Measured layers, and where they were measured."""

    rows: tuple[Speed, ...]
    machine: dict[str, Any]

    def nearest(self, pixels: int, inputs: int, outputs: int) -> Speed:
        """The row of the nearest shape."""
        return min(self.rows, key=lambda row: row.distance(pixels, inputs, outputs))

    def to_json(self) -> str:
        """The text of a table file."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        return json.dumps({"format_version": FORMAT_VERSION, "machine": self.machine, "rows": rows}, indent=1) + "\n"


def load_table(path: str | os.PathLike[str] | None = None) -> SpeedTable:
    """A table file, the shipped one by default. FileNotFoundError or ValueError, with the remedy, for a bad one."""
    source = DEFAULT if path is None else Path(path)
    remedy = "Measure one with: python -m keras_lowbit.bench.packed --out FILE"
    try:
        found = json.loads(source.read_text(encoding="utf-8"))
        if found["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {found['format_version']!r}, expected {FORMAT_VERSION}")
        rows = tuple(Speed(**row) for row in found["rows"])
        if not rows or any(not value > 0 for row in rows for value in dataclasses.astuple(row)):
            raise ValueError("it needs rows of numbers above 0")
        return SpeedTable(rows, dict(found["machine"]))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"No speed table at {os.fspath(source)!r}. {remedy}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{os.fspath(source)!r} is no speed table ({type(error).__name__}: {error}). {remedy}"
        ) from error


def resolve_weights(graph: IntegerGraph, weights: Weights, table: str | os.PathLike[str] | None = None) -> Weights:
    """`weights` itself, or for "auto" the container of each node by name. table: file, the shipped one by default."""
    if weights != "auto":
        if isinstance(weights, str) and weights not in BITS:
            raise ValueError(f"weights={weights!r}: expected 'auto' or one of {', '.join(map(repr, BITS))}")
        check_weights(weights)
        return weights
    speeds = load_table(table)
    weighted = [node for node in graph.nodes if RULES[node.op].weighted]
    return {node.name: _choose(node, graph, speeds) for node in weighted}


def _choose(node: Node, graph: IntegerGraph, speeds: SpeedTable) -> Container:
    kernel, dense = graph.tensors[node.inputs[1]], node.op == "fully_connected"
    reason = "" if dense else not_pointwise(node, kernel)
    if reason:
        return Container("int8", False, f"{reason}: LiteRT takes packed weights in FULLY_CONNECTED only")
    inputs, outputs = (int(size or 0) for size in kernel.shape[-2:])
    pixels = _pixels(graph.tensors[node.outputs[0]])
    row = speeds.nearest(pixels, inputs, outputs)
    where = f"measured at {row.pixels} x {row.inputs} -> {row.outputs}"
    refused = []
    for kind in PACKED:
        misfit, speed = does_not_fit(kernel, BITS[kind]), f"{row.ratio(kind):.2f} times the time of int8, {where}"
        if not misfit and row.ratio(kind) <= 1 + TOLERANCE:
            return Container(kind, True, speed)
        refused.append(f"not {kind}: {misfit or speed}")
    return Container("int8", dense, "; ".join(refused))


def _pixels(output: Tensor) -> int:
    return math.prod(int(size or 1) for size in output.shape[1:-1])
