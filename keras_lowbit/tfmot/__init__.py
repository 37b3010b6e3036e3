"""The front end for tf_keras and TFMOT: the same quantizers, schedules and export, behind TFMOT's interface."""

import keras as _keras

if _keras.config.backend() != "tensorflow":
    raise ImportError(
        f"keras_lowbit.tfmot computes with TensorFlow, but Keras runs on {_keras.config.backend()!r}. Start Python with "
        "KERAS_BACKEND=tensorflow, or use the Keras 3 layers of keras_lowbit.layers."
    )

from keras_lowbit.tfmot import callbacks
from keras_lowbit.tfmot.adapter import LowbitQuantizer
from keras_lowbit.tfmot.configs import (
    ClusteredQuantizeConfig,
    FATQuantizeConfig,
    INQQuantizeConfig,
    KernelQuantizeConfig,
    NoOpQuantizeConfig,
    OutputQuantizeConfig,
    SQQuantizeConfig,
)
from keras_lowbit.tfmot.keras3 import to_keras3
from keras_lowbit.tfmot.scheme import QuantizeScheme, quantize_model
from keras_lowbit.tfmot.scope import scope

__all__ = [
    "ClusteredQuantizeConfig",
    "FATQuantizeConfig",
    "INQQuantizeConfig",
    "KernelQuantizeConfig",
    "LowbitQuantizer",
    "NoOpQuantizeConfig",
    "OutputQuantizeConfig",
    "QuantizeScheme",
    "SQQuantizeConfig",
    "callbacks",
    "quantize_model",
    "scope",
    "to_keras3",
]
