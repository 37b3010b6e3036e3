"""Ranges that the quantizers of a TFMOT model learned, as ranges of this library."""

import dataclasses
from typing import Any

import tensorflow_model_optimization as tfmot

from keras_lowbit.layers import QuantActivation
from keras_lowbit.quantizers import ActivationRange
from keras_lowbit.quantizers.base import SEED
from keras_lowbit.tfmot.adapter import LowbitQuantizer
from keras_lowbit.tfmot.wrappers import input_range, ranges_in

SEEN_BATCHES = 1000.0  # of a range that TFMOT's own quantizers learned: an average past its warm-up


@dataclasses.dataclass(frozen=True)
class PlacedRange:
    """A range to place: the quantizer and the values of its variables."""

    quantizer: Any
    state: dict[str, Any]


def range_of(quantizer: Any, variables: dict[str, Any]) -> PlacedRange | None:
    """The range of a quantizer in a TFMOT model, None for one that does nothing."""
    if isinstance(quantizer, LowbitQuantizer):
        return PlacedRange(quantizer.quantizer, {name: variable.numpy() for name, variable in variables.items()})
    kind = type(quantizer).__name__
    if quantizer is None or kind == "NoQuantizer":
        return None
    per_axis, narrow = getattr(quantizer, "per_axis", False), getattr(quantizer, "narrow_range", False)
    if per_axis or narrow or getattr(quantizer, "symmetric", False) or "min_var" not in variables:
        raise ValueError(
            f"TFMOT's {kind} has a grid that ActivationRange cannot take over (per axis, symmetric or narrow). Use "
            "keras_lowbit.tfmot.OutputQuantizeConfig for that layer."
        )
    low, high = float(variables["min_var"].numpy()), float(variables["max_var"].numpy())
    if kind == "FixedQuantizer":
        return PlacedRange(ActivationRange(quantizer.num_bits, minimum=low, maximum=high), {})
    made = ActivationRange(quantizer.num_bits, hold=kind == "AllValuesQuantizer")
    return PlacedRange(made, {"minimum": low, "maximum": high, "count": SEEN_BATCHES, "frozen": 0.0})


def ranges_of(layer: Any) -> dict[str, PlacedRange]:
    """The ranges of a layer: "pre" before an activation that does not fuse, "post" behind everything else."""
    if isinstance(layer, tfmot.quantization.keras.QuantizeWrapper):
        found = [("pre" if place == "pre_activation" else "post", *rest) for place, *rest in ranges_in(layer)]
    else:
        own = input_range(layer)
        found = [] if own is None else [("post", *own)]
    placed = {place: range_of(quantizer, variables) for place, quantizer, variables in found}
    return {place: value for place, value in placed.items() if value is not None}


def range_layer(placed: PlacedRange, name: str) -> QuantActivation:
    """A built layer that is that range alone."""
    made = QuantActivation(None, placed.quantizer, name=name)
    made.build((None,))
    set_state(made.output_host, placed.state)
    return made


def set_state(host: Any, state: dict[str, Any]) -> None:
    """Give the variables of a built `QuantizerHost` their values, by name; the random generator's under ``"seed"``."""
    for name, value in state.items():
        (host.seed_generator.state if name == SEED else host.state[name]).assign(value)
