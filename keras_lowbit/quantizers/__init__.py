"""Quantizers: frozen values that say how reals become codes, found by short name, dict or object."""

from keras_lowbit.numerics.grids import Quantized
from keras_lowbit.quantizers.adjustable import AdjustableThreshold
from keras_lowbit.quantizers.base import (
    ActivationQuantizer,
    Quantizer,
    StateSpec,
    deserialize,
    get,
    is_activation_quantizer,
    known_names,
    register,
    serialize,
)
from keras_lowbit.quantizers.clustered import ClusterCodes, Clustered
from keras_lowbit.quantizers.fixed_point import DynamicFixedPoint
from keras_lowbit.quantizers.incremental import Incremental
from keras_lowbit.quantizers.kept_scale import KeptScale
from keras_lowbit.quantizers.learned_step import LearnedPowerOfTwo, LearnedStep
from keras_lowbit.quantizers.power_of_two import PowerOfTwo
from keras_lowbit.quantizers.stochastic import Stochastic
from keras_lowbit.quantizers.ternary import Binary, Ternary
from keras_lowbit.quantizers.trained_ternary import TrainedTernary
from keras_lowbit.quantizers.uniform import ActivationRange, Uniform

__all__ = [
    "ActivationQuantizer",
    "ActivationRange",
    "AdjustableThreshold",
    "Binary",
    "ClusterCodes",
    "Clustered",
    "DynamicFixedPoint",
    "Incremental",
    "KeptScale",
    "LearnedPowerOfTwo",
    "LearnedStep",
    "PowerOfTwo",
    "Quantized",
    "Quantizer",
    "StateSpec",
    "Stochastic",
    "Ternary",
    "TrainedTernary",
    "Uniform",
    "deserialize",
    "get",
    "is_activation_quantizer",
    "known_names",
    "register",
    "serialize",
]
