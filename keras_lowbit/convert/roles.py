"""What each operation means to an int8 integer pipeline: where ranges belong, what fuses, what keeps its range."""

import enum
from typing import Any

import keras

from keras_lowbit import layers as klb_layers
from keras_lowbit.layers.graph import Call, is_graph_model


class Role(enum.Enum):
    """How an operation takes part in the integer pipeline."""

    WEIGHTED = "weights on int8 inputs"
    BATCH_NORM = "per-channel affine, folds into the weighted layer before it"
    CLIP = "relu or relu6, fuses with the operation before it"
    COMPUTE = "makes new values: gets a range of its own"
    FIXED = "its result has a range known beforehand"
    KEEP = "moves or selects values: keeps the range of its input"
    CONCAT = "its inputs and its result share one range"
    GATED = "x * gate(x): becomes a gate with a fixed range and a product"
    NESTED = "a model inside the model"
    RANGE = "a range already in place"
    ISLAND = "unknown here: runs in float between a dequantize and a quantize"


# Kernel kinds, the words of recipe rules.
KINDS: dict[str, str] = {
    "Conv1D": "conv1d",
    "Conv2D": "conv2d",
    "DepthwiseConv2D": "depthwise",
    "Conv2DTranspose": "transpose",
    "SeparableConv2D": "separable",
    "Dense": "dense",
}

QUANTIZED_CLASSES: dict[str, type[klb_layers.QuantizedLayer]] = {
    "Conv1D": klb_layers.QuantConv1D,
    "Conv2D": klb_layers.QuantConv2D,
    "DepthwiseConv2D": klb_layers.QuantDepthwiseConv2D,
    "Conv2DTranspose": klb_layers.QuantConv2DTranspose,
    "Dense": klb_layers.QuantDense,
}

_SIMPLE: dict[str, Role] = {
    **dict.fromkeys(
        (
            "Add Subtract Multiply Average Maximum Minimum Rescaling Normalization LeakyReLU LeakyRelu Softmax Mean"
        ).split(),
        Role.COMPUTE,
    ),
    **dict.fromkeys(
        (
            "InputLayer Reshape Flatten Permute RepeatVector Dropout SpatialDropout1D SpatialDropout2D Identity "
            "ActivityRegularization MaxPooling1D MaxPooling2D GlobalMaxPooling1D GlobalMaxPooling2D "
            "AveragePooling1D AveragePooling2D GlobalAveragePooling1D GlobalAveragePooling2D ZeroPadding1D "
            "ZeroPadding2D Cropping1D Cropping2D GetItem Squeeze ExpandDims Transpose GaussianNoise "
            "GaussianDropout AlphaDropout"
        ).split(),
        Role.KEEP,
    ),
    "Concatenate": Role.CONCAT,
    "BatchNormalization": Role.BATCH_NORM,
    "Relu": Role.CLIP,
    "Relu6": Role.CLIP,
    "Sigmoid": Role.FIXED,
    "Tanh": Role.FIXED,
    "HardSigmoid": Role.FIXED,
    "Silu": Role.GATED,
    "HardSilu": Role.GATED,
}

# By the name Keras serialises an activation function under.
_ACTIVATIONS: dict[str, Role] = {
    "linear": Role.KEEP,
    "relu": Role.CLIP,
    "relu6": Role.CLIP,
    "sigmoid": Role.FIXED,
    "tanh": Role.FIXED,
    "hard_sigmoid": Role.FIXED,
    "silu": Role.GATED,
    "swish": Role.GATED,
    "hard_silu": Role.GATED,
    "hard_swish": Role.GATED,
    "softmax": Role.COMPUTE,
    "leaky_relu": Role.COMPUTE,
}

GATES = {"silu": "sigmoid", "swish": "sigmoid", "hard_silu": "hard_sigmoid", "hard_swish": "hard_sigmoid"}

# (minimum, maximum) of results whose range LiteRT fixes or the function bounds.
FIXED_RANGES = {
    "sigmoid": (0.0, 255.0 / 256.0),
    "hard_sigmoid": (0.0, 255.0 / 256.0),
    "tanh": (-1.0, 127.0 / 128.0),
}


def stock_kind(operation: Any) -> str:
    """The class name of a stock layer or op, "Conv2D" for a QuantConv2D too; "?" for a class that is not Keras' own.

    A user's layer may have any name, "Dense" or "Identity" too, and compute something else.
    """
    name = type(operation).__name__
    if isinstance(operation, klb_layers.QuantizedLayer):
        return name.removeprefix("Quant")
    return name if type(operation).__module__.startswith("keras.") else "?"


def activation_name(operation: Any) -> str:
    """The name of a layer's or op's activation function ("linear" if it has none, "?" if it has no name)."""
    by_op = {
        "Silu": "silu",
        "HardSilu": "hard_silu",
        "Sigmoid": "sigmoid",
        "Tanh": "tanh",
        "HardSigmoid": "hard_sigmoid",
    }
    if type(operation).__name__ in by_op:
        return by_op[type(operation).__name__]
    function = getattr(operation, "activation", None)
    if function is None:
        return "linear"
    serialized = keras.activations.serialize(function)
    return serialized if isinstance(serialized, str) else "?"


def fuses(operation: Any) -> bool:
    """Whether an operation's own activation is none, relu or relu6: part of the integer op itself."""
    return activation_name(operation) in ("linear", "relu", "relu6")


def role_of(call: Call) -> Role:
    """The role of a call."""
    operation, kind = call.operation, stock_kind(call.operation)
    if isinstance(operation, klb_layers.QuantActivation):
        return Role.RANGE
    if isinstance(operation, (keras.Sequential, keras.Model)):
        return Role.NESTED if is_graph_model(operation) else Role.ISLAND
    if kind in KINDS:
        return Role.WEIGHTED if getattr(operation, "data_format", "channels_last") == "channels_last" else Role.ISLAND
    if kind == "Activation":
        return _ACTIVATIONS.get(activation_name(operation), Role.ISLAND)
    if kind == "ReLU":
        return _relu_role(operation)
    if kind == "UpSampling2D":
        return Role.KEEP if operation.interpolation in ("nearest", "bilinear") else Role.ISLAND
    if kind == "Pad":
        return Role.KEEP if operation.mode == "constant" and not any(_constants(call)) else Role.ISLAND
    if len(call.outputs) > 1:
        return Role.ISLAND
    return _SIMPLE.get(kind, Role.ISLAND)


def why_island(call: Call) -> str:
    """Why `role_of` says ISLAND, for the report."""
    operation, kind = call.operation, stock_kind(call.operation)
    if kind in KINDS and getattr(operation, "data_format", "channels_last") != "channels_last":
        return "its data format is channels_first, the integer pipeline is channels_last"
    if not type(operation).__module__.startswith(("keras.", "keras_lowbit.")):
        return f"{type(operation).__name__} is a class of {type(operation).__module__}, unknown here"
    if kind in ("Activation", "ReLU"):
        return f"its function {activation_name(operation)!r} has no integer form here"
    return f"{type(operation).__name__} has no integer form here"


def _constants(call: Call) -> list[Any]:
    return [value for value in call.constants() if isinstance(value, (int, float)) and value]


def _relu_role(layer: Any) -> Role:
    if layer.threshold or layer.max_value not in (None, 6.0):
        return Role.ISLAND
    return Role.COMPUTE if layer.negative_slope else Role.CLIP
