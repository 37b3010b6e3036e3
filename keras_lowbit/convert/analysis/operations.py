"""What each operation means to an int8 integer pipeline: where ranges belong, what fuses, what keeps its range."""

import enum
from typing import Any

import keras

from keras_lowbit import layers as klb_layers
from keras_lowbit.convert.analysis.supported_forms import AUGMENTATIONS, DROPOUTS, lacks_form
from keras_lowbit.keras_graph.calls import Call, is_graph_model
from keras_lowbit.keras_graph.copies import function_name


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
        "Add Subtract Multiply Rescaling Normalization LeakyReLU LeakyRelu Softmax Mean".split(),
        Role.COMPUTE,
    ),
    **dict.fromkeys(
        (
            "InputLayer Reshape Flatten Permute Identity ActivityRegularization MaxPooling1D MaxPooling2D "
            "GlobalMaxPooling1D GlobalMaxPooling2D AveragePooling1D AveragePooling2D GlobalAveragePooling1D "
            "GlobalAveragePooling2D ZeroPadding1D ZeroPadding2D Cropping1D Cropping2D UpSampling2D GetItem Squeeze "
            "ExpandDims Transpose Pad"
        ).split(),
        Role.KEEP,
    ),
    **dict.fromkeys(DROPOUTS + AUGMENTATIONS, Role.KEEP),
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
    """The name of a layer's or op's activation function ("linear" if it has none, "?" if it is not one of Keras')."""
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
    return "linear" if function is None else function_name(function)


def fuses(operation: Any) -> bool:
    """Whether an operation's own activation is none, relu or relu6: part of the integer op itself."""
    return activation_name(operation) in ("linear", "relu", "relu6")


def role_of(call: Call) -> Role:
    """The role of a call."""
    role = _usual_role(call.operation)
    if role in (Role.RANGE, Role.NESTED, Role.ISLAND):
        return role
    return Role.ISLAND if len(call.outputs) > 1 or lacks_form(call, stock_kind(call.operation)) else role


def _usual_role(operation: Any) -> Role:
    """The role of an operation called in a form that the integer pipeline has."""
    kind = stock_kind(operation)
    if isinstance(operation, klb_layers.QuantActivation):
        return Role.RANGE
    if isinstance(operation, (keras.Sequential, keras.Model)):
        return Role.NESTED if is_graph_model(operation) else Role.ISLAND
    if kind in KINDS:
        return Role.WEIGHTED
    if kind == "Activation":
        return _ACTIVATIONS.get(activation_name(operation), Role.ISLAND)
    if kind == "ReLU":
        return Role.COMPUTE if operation.negative_slope else Role.CLIP
    return _SIMPLE.get(kind, Role.ISLAND)


def why_island(call: Call) -> str:
    """Why `role_of` says ISLAND, for the report."""
    operation, name = call.operation, type(call.operation).__name__
    if _usual_role(operation) is not Role.ISLAND:
        return lacks_form(call, stock_kind(operation)) or f"{name} has several outputs"
    if not type(operation).__module__.startswith(("keras.", "keras_lowbit.")):
        return f"{name} is a class of {type(operation).__module__}, unknown here"
    if stock_kind(operation) == "Activation":
        known, function = activation_name(operation), operation.activation
        if known == "?":
            return f"its function {getattr(function, '__qualname__', type(function).__name__)!r} is none of Keras'"
        return f"its function {known!r} has no integer form here"
    return f"{name} has no integer form here"
