"""The format of every layer's weights in a file, planned once for a graph.

`weights="auto"` takes for each layer the smallest format that is no slower than int8 in a table of measured latencies;
`weights="int4"` and "int2" take the smallest there is, and the table says what that costs. It comes from
`keras-lowbit bench packed --output FILE` on the machine that matters; a default measured on one x86-64 server ships with the
library (see its "machine"). A layer takes the row of the nearest shape.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from keras_lowbit.arguments import shown
from keras_lowbit.deploy.graph import IntegerGraph, Node, Tensor
from keras_lowbit.deploy.litert.fixed_point import tables
from keras_lowbit.deploy.litert.target import Target, named_target
from keras_lowbit.deploy.litert.weight_formats import (
    BITS,
    PACKED,
    Formats,
    WeightFormat,
    builtin_of,
    is_dense,
    packing,
    weighted_nodes,
)
from keras_lowbit.files import FilePath, name_of, read_whole
from keras_lowbit.sealed import strict_json

WIDE = "beside 16-bit activations weights are int8"
FORMAT_VERSION = 1
DEFAULT = Path(__file__).with_name("format_choice.json")
# Two measurements of the same thing differ by so much; a format this close to int8 counts as no slower.
TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class LayerLatency:
    """Median times of one layer in milliseconds. pixels: height times width of the output, 1 for a dense layer.

    int2: None where LiteRT has no such kernel.   op: the LiteRT operator of packed weights.   taps: height times width of the
    window.   groups: of a CONV_2D.
    """

    pixels: int
    inputs: int
    outputs: int
    int8: float
    int4: float
    int2: float | None = None
    op: str = "FULLY_CONNECTED"
    taps: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        known = named_target("litert").operators
        if self.op not in known:
            raise ValueError(f"op {self.op!r}, expected one of {', '.join(known)}")
        values = [value for value in dataclasses.astuple(self) if value is not None and value != self.op]
        if any(not value > 0 for value in values):
            raise ValueError("it needs rows of numbers above 0")

    def ratio(self, kind: str) -> float:
        """Time with `kind` weights over time with int8 weights; not a number where it was not measured."""
        return float(getattr(self, kind) or math.nan) / self.int8

    def distance(self, pixels: int, inputs: int, outputs: int, taps: int = 1, groups: int = 1) -> float:
        """How far the row's shape is: Euclidean, in powers of two."""
        mine, other = (
            (self.pixels, self.inputs, self.outputs, self.taps, self.groups),
            (pixels, inputs, outputs, taps, groups),
        )
        return math.dist([math.log2(value) for value in mine], [math.log2(value) for value in other])

    def __str__(self) -> str:
        words = [f"{self.pixels} x {self.inputs} -> {self.outputs}"]
        words += [f"{count} {what}" for count, what in ((self.taps, "taps"), (self.groups, "groups")) if count > 1]
        return ", ".join(words)


@dataclasses.dataclass(frozen=True)
class LatencyTable:
    """Measured layers, and where they were measured; `export_litert(weights=LatencyTable.load(path))` follows it.

    rows: one for each layer and container, in ms.   machine: processor, threads, versions.
    Raises FileNotFoundError in `load` for a missing file, ValueError for one of another kind.

    >>> table = klb.deploy.LatencyTable.load()  # the one that comes with the library
    >>> written = klb.export_litert(ternary, "q.tflite", weights=table)
    """

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
            if not rows:
                raise ValueError("it needs rows of numbers above 0")
            return cls(rows, dict(found["machine"]))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"No latency table at {name_of(source)!r}. {remedy}") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise ValueError(
                f"{name_of(source)!r} is no latency table ({type(error).__name__}: {error}). {remedy}"
            ) from error

    def nearest(self, op: str, *shape: int) -> LayerLatency | None:
        """The row of the nearest shape of an operator; None if it has none. shape: see `LayerLatency.distance`."""
        rows = [row for row in self.rows if row.op == op]
        return min(rows, key=lambda row: row.distance(*shape), default=None)

    def to_json(self) -> str:
        """The text of a table file."""
        defaults = {field.name: field.default for field in dataclasses.fields(LayerLatency)}
        rows = [{k: v for k, v in dataclasses.asdict(row).items() if v != defaults[k]} for row in self.rows]
        return json.dumps({"format_version": FORMAT_VERSION, "machine": self.machine, "rows": rows}, indent=1) + "\n"


Weights = str | LatencyTable | Formats


def plan_formats(graph: IntegerGraph, weights: Weights, target: Target | None = None) -> Formats:
    """The format of every node with weights, of those that a target takes.

    weights: "int8"; "int4" or "int2", where they fit; "auto" or a `LatencyTable`, the smallest that is no slower than int8; or
    the plan itself.   target: "litert" by default.   ValueError for another word.
    """
    target = target or named_target("litert")
    if isinstance(weights, Mapping):
        return weights
    if isinstance(weights, LatencyTable) or weights == "auto":
        table = weights if isinstance(weights, LatencyTable) else LatencyTable.load()
        choice = _Choice(graph, target, table, PACKED, 1 + TOLERANCE)
    elif isinstance(weights, str) and weights in BITS:
        kinds = PACKED[PACKED.index(weights) :] if weights in PACKED else ()
        choice = _Choice(graph, target, LatencyTable.load(), kinds)
    else:
        bits = f" Write weights='int{weights}'." if f"int{weights}" in BITS else ""
        raise ValueError(
            f"weights={shown(weights)}: expected 'auto', one of {', '.join(map(repr, BITS))}, or a LatencyTable.{bits}"
        )
    return {**{node.name: choice.of(node) for node in weighted_nodes(graph)}, **_as_tables(graph, target)}


def _as_tables(graph: IntegerGraph, target: Target) -> Formats:
    """The sigmoids and tanhs that the target computes in fixed point, on ranges where that gives other codes than LiteRT."""
    found = {}
    for node in graph.nodes:
        fixed = node.op in ("logistic", "tanh") and graph.tensors[node.inputs[0]].dtype == "int8"
        if fixed and target.operators.get(node.op.upper(), {}).get("fixed_point"):
            litert, own = tables(node.op, graph.tensors[node.inputs[0]].range)
            if (litert != own).any():
                found[node.name] = WeightFormat(
                    "int8", False, f"as a table: {node.op} of {target.name} gives other codes than LiteRT", table=True
                )
    return found


class _Choice(NamedTuple):
    """The first of `kinds` that a layer's weights go into, at no more than `slowest` times the time of int8; None: at any."""

    graph: IntegerGraph
    target: Target
    table: LatencyTable
    kinds: tuple[str, ...]
    slowest: float | None = None

    def of(self, node: Node) -> WeightFormat:
        """The format of a node, with what was passed over and what it costs."""
        kernel = self.graph.tensors[node.inputs[1]]
        found = self._container(node, kernel)
        if "channel" in self.target.granularity or kernel.scale is None or kernel.scale.size < 2:
            return found
        return found._replace(per_tensor=bool((kernel.scale == kernel.scale.flat[0]).all()))

    def _container(self, node: Node, kernel: Tensor) -> WeightFormat:
        said: list[str] = []
        wide = self.graph.tensors[node.inputs[0]].dtype == "int16"
        for kind in self.kinds:
            dense, reason = (False, WIDE) if wide else packing(node, kernel, kind, self.target)
            if reason is None:
                ratio, cost = self._cost(node, kernel, kind, dense)
                if self.slowest is None:
                    told = [] if dense or self.target.name != "litert" else [cost]
                    return WeightFormat(kind, dense, "; ".join((*said, *told)) or "asked for")
                if ratio <= self.slowest:
                    return WeightFormat(kind, dense, cost)
                reason = cost
            said.append(f"not {kind}: {reason}")
        return WeightFormat("int8", is_dense(node, self.target), "; ".join(said) or "asked for")

    def _cost(self, node: Node, kernel: Tensor, kind: str, dense: bool) -> tuple[float, str]:
        """Time over that of int8 weights, not a number where the table knows nothing of it; and in words."""
        op = builtin_of(node, dense)
        taps, inputs, outputs = (math.prod(part) for part in _parts(kernel.shape))
        groups = int(node.attributes.get("groups", 1))
        row = self.table.nearest(op, _pixels(self.graph.tensors[node.outputs[0]]), inputs, outputs, taps, groups)
        if row is None or math.isnan(row.ratio(kind)):
            return math.nan, f"the time of {op} with {kind} weights is in no row of the table"
        beside = "" if dense else " (XNNPACK leaves it to the built-in kernel)"
        beside = beside if self.target.name == "litert" else " on LiteRT"
        return row.ratio(kind), f"{row.ratio(kind):.2f} times the time of int8{beside}, measured at {row}"


def _parts(shape: tuple[int | None, ...]) -> tuple[list[int], list[int], list[int]]:
    sizes = [int(size or 0) for size in shape]
    return sizes[:-2], sizes[-2:-1], sizes[-1:]


def _pixels(output: Tensor) -> int:
    return math.prod(int(size or 1) for size in output.shape[1:-1])
