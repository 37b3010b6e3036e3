"""Ranges that the quantizers of a TFMOT model learned, as ranges of this library."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow_model_optimization as tfmot

from keras_lowbit.layers import QuantActivation
from keras_lowbit.quantizers import ActivationRange
from keras_lowbit.quantizers.base import SEED
from keras_lowbit.tfmot.adapter import LowbitQuantizer
from keras_lowbit.tfmot.scope import tfmot_class
from keras_lowbit.tfmot.wrappers import input_range, ranges_in

_Quantizers = tfmot.quantization.keras.quantizers
_FixedQuantizer, _NoQuantizer = tfmot_class("FixedQuantizer"), tfmot_class("NoQuantizer")
_LEARNED = (_Quantizers.AllValuesQuantizer, _Quantizers.MovingAverageQuantizer, _Quantizers.LastValueQuantizer)
_SEEN_BATCHES = 1000.0  # of a range that TFMOT's own quantizers learned: an average past its warm-up
_FIRST_RANGES = ((0.0, 0.0), (-6.0, 6.0))  # where TFMOT's start, before the first training step
_FIXED_BITS = 8  # TFMOT's FixedQuantizer has an argument num_bits and computes with 8


@dataclasses.dataclass(frozen=True)
class PlacedRange:
    """A range to place: the quantizer and the values of its variables."""

    quantizer: Any
    state: dict[str, Any]


def range_of(quantizer: Any, variables: dict[str, Any]) -> PlacedRange | None:
    """The range of a quantizer in a TFMOT model, None for one that does nothing.

    TFMOT's own becomes an `ActivationRange` of the same grid; it has no range yet where TFMOT's is still the one it starts
    with. A narrow one (code 0 left out) keeps its steps and gets that code.
    """
    if isinstance(quantizer, LowbitQuantizer):
        return PlacedRange(quantizer.quantizer, {name: variable.numpy() for name, variable in variables.items()})
    if quantizer is None or isinstance(quantizer, _NoQuantizer):
        return None
    if isinstance(quantizer, _FixedQuantizer):
        low, high = _grid_ends(quantizer.init_min, quantizer.init_max, quantizer.narrow_range, _FIXED_BITS)
        return PlacedRange(ActivationRange(_FIXED_BITS, minimum=low, maximum=high), {})
    if not isinstance(quantizer, _LEARNED) or quantizer.per_axis:
        raise ValueError(
            f"{type(quantizer).__name__} of {type(quantizer).__module__} does not quantize activations on one 8-bit range that "
            "to_keras3 could take over. Use keras_lowbit.tfmot.OutputQuantizeConfig for that layer."
        )
    first = (float(variables["min_var"].numpy()), float(variables["max_var"].numpy()))
    low, high = _grid_ends(*first, quantizer.narrow_range, quantizer.num_bits)
    made = ActivationRange(quantizer.num_bits, hold=isinstance(quantizer, _Quantizers.AllValuesQuantizer))
    count = 0.0 if first in _FIRST_RANGES else _SEEN_BATCHES
    return PlacedRange(made, {"minimum": low, "maximum": high, "count": count, "frozen": 0.0})


def _grid_ends(low: float, high: float, narrow: bool, bits: int) -> tuple[float, float]:
    """The reals of the lowest and the highest code of TensorFlow's fake quantization, all of its codes in use.

    TensorFlow shifts a range that lies beside 0 until it holds 0, where `ActivationRange` widens it.
    """
    if not narrow and low <= 0.0 <= high:
        return low, high
    top = 2**bits - 1
    scale = (high - low) / (top - narrow)
    zero = float(np.clip(np.rint(narrow - low / scale), narrow, top)) if scale else 0.0
    return -zero * scale, (top - zero) * scale


def ranges_of(layer: Any) -> dict[str, PlacedRange]:
    """The ranges of a layer: "pre" before an activation that does not fuse, "post" behind everything else."""
    if isinstance(layer, tfmot.quantization.keras.QuantizeWrapper):
        found = [("pre" if place == "pre_activation" else "post", *rest) for place, *rest in ranges_in(layer)]
    else:
        own = input_range(layer)
        found = [] if own is None else [("post", *own)]
    placed = {place: range_of(quantizer, variables) for place, quantizer, variables in found}
    return {place: value for place, value in placed.items() if value is not None}


def range_layer(placed: PlacedRange, name: str, trainable: bool) -> QuantActivation:
    """A built layer that is that range alone. trainable: False for one of a frozen layer, which stands still."""
    made = QuantActivation(None, placed.quantizer, name=name, trainable=trainable)
    made.build((None,))
    set_state(made.output_host, placed.state)
    return made


def set_state(host: Any, state: dict[str, Any]) -> None:
    """Give the variables of a built `QuantizerHost` their values, by name; the random generator's under ``"seed"``."""
    for name, value in state.items():
        (host.seed_generator.state if name == SEED else host.state[name]).assign(value)
