"""The integer graph: tensors, nodes, and the one number contract they all keep.

    real = scale * (code - zero_point)        scale: size of one step (float32), never its reciprocal

Activations are int8 with one scale and one zero point in [-128, 127], or int16 with zero point 0 (`Range`).
Weights are int8 codes in [-127, 127] with zero point 0 and one scale per output channel. Biases are int32 at
`float32(s_in) * float32(s_w[c])`. Sums are kept in int32 and brought back to int8 the way LiteRT's reference kernels do
it (double rounding). On int16 activations the type of the bias is that of the sums: int32 where it holds every sum that can
occur, else int64.

Nothing in this file needs TensorFlow or Keras.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from keras_lowbit.deploy.graph import serialize
from keras_lowbit.deploy.graph.diagram import LEGEND, NOTE, arrows, boxes
from keras_lowbit.deploy.graph.operations import check_node
from keras_lowbit.deploy.graph.tensors import CODES, Node, Tensor, check_name
from keras_lowbit.figures.diagram import FORMATS, draw_graph
from keras_lowbit.files import FilePath, atomic_write, name_of


@dataclass(frozen=True, eq=False)
class IntegerGraph:
    """An integer network: what is verified and what ships. It cannot be changed.

    tensors: name -> Tensor.   nodes: in an order that can be run.   inputs, outputs: tensor names.
    metadata: plain JSON (recipe, library version, ...).
    Raises ValueError for a graph that could not run: its checks are done once, here.

    >>> graph = klb.deploy.lower(quantized)
    >>> graph.save("q.klb")
    >>> again = klb.deploy.IntegerGraph.load("q.klb")  # bit-equal
    """

    tensors: Mapping[str, Tensor]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    _is_sound: bool = field(default=False, init=False, repr=False)  # but for the metadata
    _is_valid: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("nodes", "inputs", "outputs"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("tensors", "metadata"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name) or {})))

    def with_metadata(self, **entries: Any) -> IntegerGraph:
        """The same graph with more, or other, metadata."""
        made = IntegerGraph(self.tensors, self.nodes, self.inputs, self.outputs, {**self.metadata, **entries})
        object.__setattr__(made, "_is_sound", self._is_sound)
        return made

    def validate(self, nodes: bool = True) -> None:
        """Check names, order, shapes, dtypes, scales, zero points, codes and biases. ValueError says what is wrong where.

        A graph cannot be changed, so it is checked once however often this is called.
        nodes: False where each node was checked when it was made.
        """
        if self._is_valid:
            return
        if not self._is_sound:
            self._check_parts(nodes)
            object.__setattr__(self, "_is_sound", True)
        try:
            json.dumps(dict(self.metadata), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"metadata is not plain JSON ({error}): {dict(self.metadata)!r}") from error
        object.__setattr__(self, "_is_valid", True)

    def _check_parts(self, nodes: bool) -> None:
        for key, tensor in self.tensors.items():
            if key != tensor.name:
                raise ValueError(f"tensor {tensor.name!r} is filed under {key!r}: names must agree")
            tensor.check()
        self._check_ends()
        self._check_order()
        for node in self.nodes if nodes else ():
            check_node(node, self.tensors)

    def _check_ends(self) -> None:
        for kind, names in (("inputs", self.inputs), ("outputs", self.outputs)):
            if not names or len(set(names)) != len(names) or any(n not in self.tensors for n in names):
                raise ValueError(
                    f"graph {kind} are {names}: expected at least one, all different, all tensors of the graph"
                )
            if constants := sorted(n for n in names if self.tensors[n].is_constant):
                raise ValueError(
                    f"graph {kind} {constants} are constants: expected inputs, or tensors that a node computes"
                )

    def _check_order(self) -> None:
        known = {n for n, t in self.tensors.items() if t.is_constant} | set(self.inputs)
        seen: set[str] = set()
        for node in self.nodes:
            check_name(node.name, f"a {node.op} node")
            if node.name in seen:
                raise ValueError(f"two nodes are named {node.name!r}: expected unique names")
            seen.add(node.name)
            if late := [n for n in node.inputs if n not in known]:
                raise ValueError(f"{node.op} {node.name!r} reads {late} before any node computes it")
            if twice := [n for n in node.outputs if n in known]:
                raise ValueError(f"{node.op} {node.name!r} writes {twice}, which already has a value")
            known |= set(node.outputs)
        if orphans := [n for n in self.tensors if n not in known]:
            raise ValueError(f"no node computes the tensors {orphans}, and they are neither inputs nor constants")

    def save(self, path: FilePath) -> None:
        """Write the graph into one file, atomically. OSError if the folder cannot be written."""
        self.validate()
        serialize.save(path, self.tensors, self.nodes, self.inputs, self.outputs, self.metadata)

    @classmethod
    def load(cls, path: FilePath) -> IntegerGraph:
        """Read a saved graph. GraphFileError (a ValueError) for a damaged, foreign or newer file."""
        fields = serialize.load(path)
        with serialize.damage(path):
            graph = cls(**fields)
            graph.validate()
        return graph

    def plot(self, path: FilePath) -> None:
        """Draw the graph into a .svg, .png or .pdf file: see `keras_lowbit.plot.graph`."""
        ending = name_of(path).lower().rpartition(".")[2]
        if ending not in FORMATS:
            raise ValueError(f"A graph is drawn as .{', .'.join(FORMATS)}, got path {name_of(path)!r}.")
        drawn = boxes(self.tensors, self.nodes, self.inputs, self.outputs)
        title = str(self.metadata.get("name", "integer graph"))
        edges = list(arrows(self.tensors, self.nodes))
        atomic_write(path, draw_graph(title, drawn, edges, LEGEND, NOTE, ending))

    def producer(self, name: str) -> Node | None:
        """The node that computes tensor `name`; None for inputs and constants."""
        return next((n for n in self.nodes if name in n.outputs), None)

    def equals(self, other: IntegerGraph) -> bool:
        """Bit equality: tensors, nodes, order, metadata."""
        plain = ("nodes", "inputs", "outputs", "metadata")
        return (
            all(getattr(self, k) == getattr(other, k) for k in plain)
            and self.tensors.keys() == other.tensors.keys()
            and all(t.equals(other.tensors[n]) for n, t in self.tensors.items())
        )

    def __str__(self) -> str:
        """One line per input and node: operation, name, shape, grid of the output, weight codes."""
        rows = [("op", "name", "output", "scale", "zero", "weights", "attributes")]
        rows += [("input", n, *_tensor_cells(self.tensors[n]), "", "") for n in self.inputs]
        for node in self.nodes:
            rows += [
                (node.op, node.name, *_tensor_cells(self.tensors[out]), self._weight_cell(node), _attribute_cell(node))
                for out in node.outputs
            ]
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
        weights = sum(t.data.size for t in self.tensors.values() if t.data is not None and t.dtype in CODES)
        lines.append(f"{len(self.nodes)} nodes, {weights:,} int8 weights, outputs: {', '.join(self.outputs)}")
        return "\n".join(lines)

    def _weight_cell(self, node: Node) -> str:
        constants = (self.tensors[n] for n in node.inputs)
        return " ".join(
            "x".join(map(str, t.shape)) + f" [{t.data.min()},{t.data.max()}]"
            for t in constants
            if t.data is not None and t.dtype in CODES and t.data.size
        )


def _tensor_cells(tensor: Tensor) -> tuple[str, str, str]:
    shape = "x".join("?" if d is None else str(d) for d in tensor.shape)
    if tensor.scale is None:
        return f"{shape} {tensor.dtype}", "", ""
    return f"{shape} {tensor.dtype}", f"{float(tensor.scale):.6g}", str(tensor.zero_point)


def _attribute_cell(node: Node) -> str:
    shown = ((k, f"<{len(v)} bytes>" if isinstance(v, bytes) else v) for k, v in node.attributes.items())
    return " ".join(f"{k}={v}" for k, v in shown if v is not None)
