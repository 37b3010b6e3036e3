"""The reals that an activation range stands for."""

from typing import Any, NamedTuple


class ActivationGrid(NamedTuple):
    """The reals of the lowest and highest code, and the size of a step."""

    minimum: float
    maximum: float
    step: float


def activation_grid(host: Any) -> ActivationGrid | None:
    """Of the state layer of a range; None before it has seen data, and for what is no range."""
    quantizer, values = host.activation_range, host.values()
    if quantizer is None or not (quantizer.has_static_range or float(values["count"]) != 0):
        return None
    scale, zero_point = (float(value) for value in quantizer.grid(values))
    half = 2 ** (int(quantizer.bits) - 1)
    return ActivationGrid(scale * (-half - zero_point), scale * (half - 1 - zero_point), scale)
