"""The integer graph: tensors, nodes, and the one number contract they all keep.

    real = scale * (code - zero_point)        scale: size of one step (float32), never its reciprocal

Activations are int8 with one scale and one zero point in [-128, 127]. Weights are int8 codes in [-127, 127]
with zero point 0 and one scale per output channel. Biases are int32 at `float32(s_in) * float32(s_w[c])`.
Sums are kept in int32 and brought back to int8 the way LiteRT's reference kernels do it (double rounding).

Nothing in this file needs TensorFlow or Keras.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

DTYPES = ("int8", "int32", "float32")


class Range(NamedTuple):
    """Grid of an int8 activation: `real = scale * (code - zero_point)`; scale in real units, zero point in
    [-128, 127]."""

    scale: float
    zero_point: int = 0


@dataclass(frozen=True, eq=False)
class Tensor:
    """A named array of the graph.

    name: unique in the graph.   shape: activations have the batch axis first, written None; constants have
    their full shape.
    dtype: "int8", "int32" or "float32".   scale: float32 array, shape () per tensor or (channels,) per
    channel; None for float32.   zero_point: integer code of real 0.   data: the codes, for constants only
    (kept read-only).
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    scale: np.ndarray | None = None
    zero_point: int = 0
    data: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(None if d is None else int(d) for d in self.shape))
        object.__setattr__(self, "zero_point", int(self.zero_point))
        for key in ("scale", "data"):
            value = getattr(self, key)
            if value is None:
                continue
            array = np.array(value, dtype=np.float32 if key == "scale" else None, order="C")
            array.setflags(write=False)
            object.__setattr__(self, key, array)

    @property
    def is_constant(self) -> bool:
        """True if the tensor carries its codes."""
        return self.data is not None

    @property
    def range(self) -> Range:
        """Scale and zero point of a per-tensor quantized tensor. ValueError if it has none or one per
        channel."""
        if self.scale is None or self.scale.ndim:
            raise ValueError(
                f"tensor {self.name!r} has no single scale (dtype {self.dtype}, scale shape "
                f"{None if self.scale is None else self.scale.shape}); read .scale instead"
            )
        return Range(float(self.scale), self.zero_point)

    def static_shape(self, batch_size: int) -> tuple[int, ...]:
        """The shape with the batch axis filled in."""
        return tuple(batch_size if d is None else d for d in self.shape)

    def equals(self, other: Tensor) -> bool:
        """Bit equality of every field, codes and scales included."""
        plain = ("name", "shape", "dtype", "zero_point")
        return all(getattr(self, k) == getattr(other, k) for k in plain) and all(
            _same_bits(getattr(self, k), getattr(other, k)) for k in ("scale", "data")
        )


@dataclass(frozen=True)
class Node:
    """One integer operation. `attributes` are plain JSON values; only a float island holds bytes
    (`model`)."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


class IntegerGraph:
    """An integer network: what is verified on the desk and what ships.

    tensors: name -> Tensor.   nodes: in an order that can be run.   inputs, outputs: tensor names.
    metadata: plain JSON (recipe, library version, ...).

    >>> graph.save("q.klb"); again = IntegerGraph.load("q.klb")      # bit-equal
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        nodes: tuple[Node, ...],
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.tensors = dict(tensors)
        self.nodes = tuple(nodes)
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.metadata = dict(metadata or {})

    def validate(self) -> None:
        """Check names, order, shapes, dtypes, scales, zero points, codes and biases. ValueError says what is
        wrong where."""
        from keras_lowbit.deploy.checks import check_graph

        check_graph(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the graph into one file, atomically. OSError if the folder cannot be written."""
        from keras_lowbit.deploy.serialize import save

        save(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> IntegerGraph:
        """Read a saved graph. GraphFileError (a ValueError) for a damaged, foreign or newer file."""
        from keras_lowbit.deploy.serialize import load

        return load(path)

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
        weights = sum(t.data.size for t in self.tensors.values() if t.data is not None and t.dtype == "int8")
        lines.append(f"{len(self.nodes)} nodes, {weights:,} int8 weights, outputs: {', '.join(self.outputs)}")
        return "\n".join(lines)

    def _weight_cell(self, node: Node) -> str:
        constants = (self.tensors[n] for n in node.inputs)
        return " ".join(
            "x".join(map(str, t.shape)) + f" [{t.data.min()},{t.data.max()}]"
            for t in constants
            if t.data is not None and t.dtype == "int8" and t.data.size
        )


def _tensor_cells(tensor: Tensor) -> tuple[str, str, str]:
    shape = "x".join("?" if d is None else str(d) for d in tensor.shape)
    if tensor.scale is None:
        return f"{shape} {tensor.dtype}", "", ""
    return f"{shape} {tensor.dtype}", f"{float(tensor.scale):.6g}", str(tensor.zero_point)


def _attribute_cell(node: Node) -> str:
    shown = ((k, f"<{len(v)} bytes>" if isinstance(v, bytes) else v) for k, v in node.attributes.items())
    return " ".join(f"{k}={v}" for k, v in shown if v is not None)


def _same_bits(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
