"""What a Keras tensor is while its model is being lowered: an input, stored as int8, waiting for its range, or float."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_lowbit.deploy.graph import Range
from keras_lowbit.deploy.lowering.folding import Affine
from keras_lowbit.deploy.lowering.int8_overflow import Overflow
from keras_lowbit.keras_graph.calls import Call, run_calls
from keras_lowbit.quantizers import Quantized


@dataclasses.dataclass(eq=False)
class PartialCall:
    """A piece of a Keras call that is stored on its own; runs like a `Call`."""

    function: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def run(self, values: dict[int, Any]) -> list[Any]:
        """The piece's outputs from the values of its inputs."""
        return [self.function(*(values[key] for key in self.inputs))]


@dataclasses.dataclass(frozen=True)
class Provenance:
    """How a value came about in Keras since its last stored ancestors; `verify` replays it.

    sources: key of a Keras tensor -> name of the graph tensor that stores it.   calls: in running order.
    """

    sources: dict[int, str] = dataclasses.field(default_factory=dict)
    calls: tuple[Call | PartialCall, ...] = ()

    def add(self, *others: "Provenance", call: Call | PartialCall) -> "Provenance":
        """This one joined with others, and one more call; each call once."""
        sources, calls = dict(self.sources), dict.fromkeys(self.calls)
        for other in others:
            sources |= other.sources
            calls |= dict.fromkeys(other.calls)
        return Provenance(sources, (*calls, *(() if call in calls else (call,))))

    def replay(self, stored: dict[str, Any], key: int) -> Any:
        """The value of Keras tensor `key`, from the reals of the stored tensors by name."""
        values = {source: stored[tensor] for source, tensor in self.sources.items()}
        run_calls(self.calls, [values], keep=(key,))
        return values[key]


@dataclasses.dataclass(frozen=True)
class QuantizedTensor:
    """A tensor of the graph that holds codes.

    rounded: whether Keras holds the same rounded value; False for one that only the graph rounds, such as a sigmoid with no
    range behind it.
    """

    tensor: str
    provenance: Provenance
    rounded: bool = True


@dataclasses.dataclass(frozen=True)
class FloatTensor:
    """A tensor of the graph that holds values, not codes: float32, or whole numbers and masks of operations in float."""

    tensor: str
    provenance: Provenance


@dataclasses.dataclass(frozen=True)
class GraphInput:
    """A model input that nothing has read yet. dtype: of it, if no range behind it decides its grid."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    provenance: Provenance


@dataclasses.dataclass(frozen=True)
class DeferredOp:
    """An operation that waits for its range: batch norms and a relu may still fuse with it.

    op: name of an integer operation, or of a composition with an emitter of its own (see `lowering.state.emits`).
    path: name of its node.   inputs: graph tensors, or for a concatenation values that wait too.
    attributes: of the operation.   affine: per-channel affine collected so far, None for operations that take none in.
    fuses_activation: whether a relu can stand at its end.   activation: the relu that does.
    fallback: the range that it takes where nothing puts one behind it; None for operations that need one.
    rounded: whether Keras rounds to that range too, as behind an affine that leaves every code as it is.
    """

    op: str
    path: str
    inputs: tuple[Any, ...]
    provenance: Provenance
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    affine: Affine | None = None
    fuses_activation: bool = False
    activation: str | None = None
    fallback: Range | None = None
    rounded: bool = False

    def with_activation(self, activation: str, call: Call) -> "DeferredOp":
        """The same with a relu at its end."""
        return dataclasses.replace(self, activation=activation, provenance=self.provenance.add(call=call))

    def then(self, affine: Affine, call: Call) -> "DeferredOp":
        """The same with one more affine behind it."""
        before = self.affine
        joined = affine if before is None else before.then(affine)
        return dataclasses.replace(self, affine=joined, provenance=self.provenance.add(call=call))

    @property
    def takes_affine(self) -> bool:
        """Whether a batch norm can still fold into it."""
        return self.affine is not None and self.activation is None

    @property
    def takes_activation(self) -> bool:
        """Whether a relu can still fuse with it."""
        return self.fuses_activation and self.activation is None


Value = QuantizedTensor | FloatTensor | GraphInput | DeferredOp


@dataclasses.dataclass(frozen=True)
class Segment:
    """One stored tensor and the Keras calls that make it from stored tensors: what `verify` checks alone.

    key: the Keras tensor that the graph tensor stands for.
    """

    tensor: str
    key: int
    provenance: Provenance


@dataclasses.dataclass(frozen=True)
class LoweredLayer:
    """How a quantized Keras layer stands in the graph. factors, flushed: as in `folding.Folded`.

    weights: the layer's codes and scales before folding, fitted to int8.   overflow: what that changed, None for nothing.
    """

    path: str
    node: str
    factors: np.ndarray
    flushed: tuple[int, ...]
    weights: Quantized
    overflow: Overflow | None = None


@dataclasses.dataclass(frozen=True)
class FloatFallback:
    """A Keras operation that runs in float, and why."""

    path: str
    reason: str


def fixed_codes(real: Any, grid: Range) -> np.ndarray:
    """Codes (int32) of reals on a grid, half to even, saturated."""
    codes = np.round(np.asarray(real, np.float64) / np.float32(grid.scale)) + grid.zero_point
    return np.clip(codes, *grid.limits).astype(np.int32)
