"""Ranges of few bits, whose trained factors learn along with the rounding of their block."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_lowbit.keras_graph.calls import Call, CallGraph, find_layers
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.host import QuantizerHost

_FINE = 8  # bits from which on a range is left to `distill`
UNIT = 0.05  # of a factor, which is 1 or, of a logarithm, 0 at first: with the rate of the logits 0.0025 in a step


@dataclasses.dataclass(frozen=True)
class RangeFactor:
    """One trained variable of an activation's quantizer. key: path of the call, and the variable's name."""

    key: str
    host: QuantizerHost
    name: str

    @property
    def variable(self) -> Any:
        """The Keras variable."""
        return self.host.state[self.name]

    def within_limits(self, value: np.ndarray) -> np.ndarray:
        """`value` in the interval that the variable is kept in."""
        constraint = self.variable.constraint
        return value if constraint is None else to_numpy(constraint(value))


def range_factors(graph: CallGraph, calls: Iterable[Call]) -> list[RangeFactor]:
    """The trained variables of ranges below 8 bits of layers that run once in `graph`."""
    return [
        RangeFactor(f"{call.path} {name}", host, name)
        for call in calls
        if call.is_layer and graph.uses(call.operation) == 1
        for host in find_layers(call.operation, QuantizerHost)
        if host.activation_range is not None and host.quantizer.bits < _FINE
        for name, variable in host.state.items()
        if any(variable is learned for learned in host.learned)
    ]
