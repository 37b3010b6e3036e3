"""What a Keras tensor is while its model is being lowered: stored as int8, waiting for its range, or float."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_lowbit.deploy.graph.tensors import Range
from keras_lowbit.deploy.lowering.folding import Affine
from keras_lowbit.deploy.lowering.int8_overflow import Overflow
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.quantizers import Quantized


@dataclasses.dataclass(eq=False)
class Part:
    """A piece of a Keras call that is stored on its own; runs like a `Call`."""

    function: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def run(self, values: dict[int, Any]) -> list[Any]:
        """The piece's outputs from the values of its inputs."""
        return [self.function(*(values[key] for key in self.inputs))]


@dataclasses.dataclass(frozen=True)
class Trail:
    """How a value came about in Keras since its last stored ancestors; what `verify` replays.

    sources: key of a Keras tensor -> name of the graph tensor that stores it.   calls: in running order.
    """

    sources: dict[int, str] = dataclasses.field(default_factory=dict)
    calls: tuple[Call | Part, ...] = ()

    def add(self, *others: "Trail", call: Call | Part) -> "Trail":
        """This trail joined with others, and one more call."""
        sources, calls = dict(self.sources), list(self.calls)
        for other in others:
            sources |= other.sources
            calls += [known for known in other.calls if known not in calls]
        return Trail(sources, (*calls, call))

    def replay(self, stored: dict[str, Any]) -> dict[int, Any]:
        """Values of every Keras tensor along the trail, from the reals of the stored tensors by name."""
        values = {key: stored[tensor] for key, tensor in self.sources.items()}
        for call in self.calls:
            values |= dict(zip(call.outputs, call.run(values), strict=True))
        return values


@dataclasses.dataclass(frozen=True)
class Stored:
    """An int8 tensor of the graph."""

    tensor: str
    trail: Trail


@dataclasses.dataclass(frozen=True)
class Floating:
    """A float32 tensor of the graph. bounded: it lies in [0, 1] (softmax, sigmoid), so its range is known."""

    tensor: str
    trail: Trail
    bounded: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model input that nothing has read yet: the first range behind it decides its grid."""

    name: str
    shape: tuple[int, ...]
    trail: Trail


Emit = Callable[[Range, "str | None", Affine | None], str]


@dataclasses.dataclass(frozen=True)
class Pending:
    """An operation that waits for its range: batch norms and a relu may still fuse with it.

    emit: makes the graph node(s) for (range, activation, affine) and returns the tensor's name.
    affine: per-channel affine collected so far, None for operations that take none in.
    clips: whether a relu can stand at its end.   activation: the relu that does.
    """

    name: str
    emit: Emit
    trail: Trail
    affine: Affine | None = None
    clips: bool = True
    activation: str | None = None

    def clipped(self, activation: str, call: Call) -> "Pending":
        """The same with a relu at its end."""
        return dataclasses.replace(self, activation=activation, trail=self.trail.add(call=call))

    def scaled(self, affine: Affine, call: Call) -> "Pending":
        """The same with one more affine behind it."""
        before = self.affine
        joined = affine if before is None else before.then(affine)
        return dataclasses.replace(self, affine=joined, trail=self.trail.add(call=call))

    @property
    def takes_affine(self) -> bool:
        """Whether a batch norm can still fold into it."""
        return self.affine is not None and self.activation is None


Value = Stored | Floating | Entry | Pending


@dataclasses.dataclass(frozen=True)
class Segment:
    """One stored tensor and the Keras calls that make it from stored tensors: what `verify` checks alone.

    key: the Keras tensor that the graph tensor stands for.
    """

    tensor: str
    key: int
    trail: Trail


@dataclasses.dataclass(frozen=True)
class LoweredLayer:
    """How a quantized Keras layer stands in the graph. factors, flushed: as in `fold.Folded`.

    weights: the layer's codes and scales before folding, fitted to int8.   overflow: what that changed, None for nothing.
    """

    path: str
    node: str
    factors: np.ndarray
    flushed: tuple[int, ...]
    weights: Quantized
    overflow: Overflow | None = None


def fixed_codes(real: Any, grid: Range) -> np.ndarray:
    """Codes (int32) of reals on a grid, half to even, saturated to int8."""
    codes = np.round(np.asarray(real, np.float64) / np.float32(grid.scale)) + grid.zero_point
    return np.clip(codes, -128, 127).astype(np.int32)
