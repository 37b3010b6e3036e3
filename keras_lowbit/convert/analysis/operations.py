"""What each operation means to an int8 integer pipeline: where ranges belong, what fuses, what keeps its range."""

import enum
from typing import Any

import keras

from keras_lowbit import layers as klb_layers
from keras_lowbit.convert.analysis import functions, masks, picks
from keras_lowbit.convert.analysis.supported import (
    AUGMENTATIONS,
    DROPOUTS,
    EXPANDABLE,
    RESIZES,
    SPLITS,
    unsupported_reason,
)
from keras_lowbit.keras_graph.calls import Call, is_graph_model
from keras_lowbit.keras_graph.copies import function_name
from keras_lowbit.quantizers import ActivationRange, is_activation_quantizer
from keras_lowbit.quantizers.base import WIDE


class Category(enum.Enum):
    """How an operation takes part in the integer pipeline; the value says it in words for the report."""

    WEIGHTED = "weights on inputs that have codes"
    BATCH_NORM = "per-channel affine, folds into the weighted layer before it"
    RELU = "relu or relu6, fuses with the operation before it"
    NEEDS_RANGE = "makes new values: gets a range of its own"
    FIXED_RANGE = "its result has a range known beforehand"
    KEEPS_RANGE = "moves or selects values: keeps the range of its input"
    ROUNDS_IN_RANGE = "makes new values inside the range of its input: that range stands behind it once more"
    SHARES_RANGE = "its inputs and its result share one range"
    FUNCTION = "a function of each value by itself: a table of 256 codes, and a range of its own"
    LOOKUP = "rows of a table by whole numbers: the table has the bits of activations and a range of its own"
    PIXELS = "bytes of an input as reals: codes of the range 0 to 255"
    MASK = "masks and whole numbers: exact, without a range"
    MANY = "of many tensors: becomes sums of two, each with a range"
    GATED_ACTIVATION = "x * gate(x): becomes a gate with a fixed range and a product"
    FUSED_LOOP = "a loop with its state and ranges inside: LiteRT's LSTM"
    NESTED_MODEL = "a model inside the model"
    RANGE_LAYER = "a range already in place"
    FLOAT = "unknown here: runs in float between a dequantize and a quantize"


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

_SIMPLE: dict[str, Category] = {
    **dict.fromkeys(
        (
            "Add Subtract Multiply Rescaling Normalization LeakyReLU LeakyRelu Softmax Mean AveragePooling1D "
            "AveragePooling2D GlobalAveragePooling1D GlobalAveragePooling2D Matmul Argmax Argmin "
            "ChannelAffine AddConstant MultiplyConstant Cumsum"
        ).split(),
        Category.NEEDS_RANGE,
    ),
    **dict.fromkeys(
        (
            "InputLayer Reshape Flatten Permute Identity ActivityRegularization MaxPooling1D MaxPooling2D "
            "GlobalMaxPooling1D GlobalMaxPooling2D ZeroPadding1D ZeroPadding2D Cropping1D Cropping2D UpSampling2D "
            "GetItem Squeeze ExpandDims Transpose Pad RepeatVector Max Min CenterCrop TopK"
        ).split(),
        Category.KEEPS_RANGE,
    ),
    **dict.fromkeys(DROPOUTS + AUGMENTATIONS + SPLITS + RESIZES + picks.KINDS, Category.KEEPS_RANGE),
    **dict.fromkeys(("Concatenate", "Stack", "Maximum", "Minimum"), Category.SHARES_RANGE),
    **dict.fromkeys(functions.OPERATIONS, Category.FUNCTION),
    **dict.fromkeys(functions.DIVISIONS, Category.NEEDS_RANGE),
    "Average": Category.MANY,
    "QuantLSTM": Category.FUSED_LOOP,
    "MaskScores": Category.ROUNDS_IN_RANGE,
    "Embedding": Category.LOOKUP,
    "Cast": Category.PIXELS,
    "Where": Category.SHARES_RANGE,
    **dict.fromkeys((*masks.COMPARISONS, *masks.LOGIC), Category.MASK),
    "BatchNormalization": Category.BATCH_NORM,
    "Relu": Category.RELU,
    "Relu6": Category.RELU,
    "Sigmoid": Category.FIXED_RANGE,
    "Tanh": Category.FIXED_RANGE,
    "HardSigmoid": Category.FIXED_RANGE,
    "Silu": Category.GATED_ACTIVATION,
    "HardSilu": Category.GATED_ACTIVATION,
}

# By the name Keras serialises an activation function under.
_ACTIVATIONS: dict[str, Category] = {
    "linear": Category.KEEPS_RANGE,
    "relu": Category.RELU,
    "relu6": Category.RELU,
    "sigmoid": Category.FIXED_RANGE,
    "tanh": Category.FIXED_RANGE,
    "hard_sigmoid": Category.FIXED_RANGE,
    "silu": Category.GATED_ACTIVATION,
    "swish": Category.GATED_ACTIVATION,
    "hard_silu": Category.GATED_ACTIVATION,
    "hard_swish": Category.GATED_ACTIVATION,
    "softmax": Category.NEEDS_RANGE,
    "leaky_relu": Category.NEEDS_RANGE,
    **dict.fromkeys(functions.ACTIVATIONS, Category.FUNCTION),
}

_PLACES = ("Argmax", "Argmin")  # that give whole numbers
LOOKUPS = ("HashedCrossing", "Hashing", "IntegerLookup", "StringLookup", "TextVectorization")
RECURRENT = ("Bidirectional", "GRU", "LSTM", "RNN", "SimpleRNN")

# Operations that have the name of a layer and compute something else.
_NAMESAKES = {"Average": "AverageOverAxes", "Dot": "DotProduct"}

GATES = {"silu": "sigmoid", "swish": "sigmoid", "hard_silu": "hard_sigmoid", "hard_swish": "hard_sigmoid"}

PROBABILITIES = (
    "softmax",
    "sigmoid",
)  # functions whose result has no range where it leaves the model: the loss takes it

# (minimum, maximum) of results whose range LiteRT fixes or the function bounds, in 8 and in 16 bits.
_UNIT, _UNIT_16 = (0.0, 255.0 / 256.0), (0.0, 32767.0 / 32768.0)
_FIXED_RANGES = {
    8: {"sigmoid": _UNIT, "hard_sigmoid": _UNIT, "tanh": (-1.0, 127.0 / 128.0)},
    WIDE: {"sigmoid": _UNIT_16, "hard_sigmoid": _UNIT_16, "tanh": (-_UNIT_16[1], _UNIT_16[1])},
}


def static_range(minimum: float, maximum: float, beside: Any) -> ActivationRange:
    """A range that its ends decide: of 16 bits beside learned ranges of 16 bits, else of 8."""
    return ActivationRange(WIDE if is_wide(beside) else 8, minimum=minimum, maximum=maximum)


def fixed_range(function: str, beside: Any) -> ActivationRange | None:
    """The range of a function's results if it is known beforehand. beside: quantizer of the ranges that are not."""
    found = _FIXED_RANGES[WIDE if is_wide(beside) else 8].get(function)
    return None if found is None else static_range(*found, beside)


def is_wide(quantizer: Any) -> bool:
    """Whether a quantizer makes 16-bit activations."""
    return is_activation_quantizer(quantizer) and quantizer.bits == WIDE


def lacks_int16(call: Call, category: Category) -> str | None:
    """Why a call that has an int8 form runs in float where activations have 16 bits; None if it does not.

    LiteRT has no kernel for int16 codes there.
    """
    if category is Category.PIXELS:
        return "LiteRT has no kernel that makes 16-bit codes of bytes"
    kind = stock_kind(call.operation)
    return f"LiteRT's ARG_{kind[-3:].upper()} takes no int16" if kind in _PLACES else None


def stock_kind(operation: Any) -> str:
    """The class name of a stock layer or op, "Conv2D" for a QuantConv2D too; "?" for a class of somebody else's.

    A user's layer may have any name, "Dense" or "Identity" too, and compute something else.
    """
    name = type(operation).__name__
    if isinstance(operation, klb_layers.QuantizedLayer):
        return name.removeprefix("Quant")
    if name in _NAMESAKES and not isinstance(operation, keras.layers.Layer):
        return _NAMESAKES[name]
    return name if type(operation).__module__.startswith(("keras.", "keras_lowbit.layers.")) else "?"


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


def function_of(call: Call) -> str:
    """The name of the function a call ends with: its own activation, or itself."""
    return "softmax" if stock_kind(call.operation) == "Softmax" else activation_name(call.operation)


def fuses(operation: Any) -> bool:
    """Whether an operation's own activation is none, relu or relu6: part of the integer op itself."""
    return activation_name(operation) in ("linear", "relu", "relu6")


def picks_pixels(operation: Any) -> bool:
    """Whether an average pool has windows of one pixel: it leaves pixels out and makes no new values."""
    return stock_kind(operation).startswith("AveragePooling") and set(operation.pool_size) == {1}


def category_of(call: Call) -> Category:
    """The category of a call: that of its operation, or FLOAT if the integer pipeline does not support this call of it."""
    category, kind = _usual_category(call.operation), stock_kind(call.operation)
    if masks.has_form(call, kind):
        return Category.MASK
    if category is Category.MASK:
        return Category.FLOAT
    if kind == "Cast" and str(call.tensors[0].dtype) == "bool":
        category = Category.SHARES_RANGE
    if kind == "Where" and masks.hides(call):
        category = Category.ROUNDS_IN_RANGE
    if category is Category.FLOAT and _is_users_function(call) and not _other_types(call):
        return Category.FUNCTION
    if kind in functions.DIVISIONS and functions.is_function(call, kind):
        category = Category.FUNCTION
    if kind == "Add" and len(call.inputs) > 2:
        category = Category.MANY
    if category in (Category.RANGE_LAYER, Category.NESTED_MODEL, Category.FLOAT):
        return category
    refused = _has_too_many_outputs(call, kind) or _other_types(call) or unsupported_reason(call, kind)
    return Category.FLOAT if refused else category


def _has_too_many_outputs(call: Call, kind: str) -> bool:
    return len(call.outputs) > 1 and kind not in (*SPLITS, "TopK")


def _other_types(call: Call) -> str | None:
    """Which values of a call are no reals: whole numbers and masks have no range."""
    kind = stock_kind(call.operation)
    reads = () if kind in ("Embedding", "Cast") else call.tensors[kind == "Where" :]
    makes = call.results[: {**dict.fromkeys(_PLACES, 0), "TopK": 1}.get(kind)]
    for does, tensors in (("reads", reads), ("makes", makes)):
        for tensor in tensors:
            if "float" not in str(tensor.dtype):
                return f"it {does} {tensor.dtype} values"
    return None


def _usual_category(operation: Any) -> Category:
    """The category of an operation if the integer pipeline supports the call."""
    kind = stock_kind(operation)
    if isinstance(operation, klb_layers.QuantActivation):
        return Category.RANGE_LAYER
    if isinstance(operation, (keras.Sequential, keras.Model)):
        return Category.NESTED_MODEL if is_graph_model(operation) else Category.FLOAT
    if kind in KINDS:
        return Category.WEIGHTED
    if kind == "Activation":
        return _ACTIVATIONS.get(activation_name(operation), Category.FLOAT)
    if kind == "ReLU":
        if functions.is_bent_relu(operation):
            return Category.FUNCTION
        return Category.NEEDS_RANGE if operation.negative_slope else Category.RELU
    if kind in ("UpSampling2D", *RESIZES) and operation.interpolation == "bilinear":
        return Category.ROUNDS_IN_RANGE
    if picks_pixels(operation):
        return Category.KEEPS_RANGE
    return _SIMPLE.get(kind, Category.FLOAT)


def _is_users_function(call: Call) -> bool:
    """Whether a call is a Lambda, or an Activation of a function that is none of Keras', that takes each value by itself."""
    kind, operation = stock_kind(call.operation), call.operation
    if kind == "Activation" and activation_name(operation) == "?":
        return functions.is_pointwise(operation.activation, tuple(call.tensors[0].shape))
    return kind == "Lambda" and functions.is_function(call, kind)


def is_known(operation: Any) -> bool:
    """Whether some call of an operation has an integer form."""
    return _usual_category(operation) is not Category.FLOAT


def is_loop(operation: Any) -> bool:
    """Whether a recurrent layer runs in a loop: it is not unrolled."""
    return not getattr(operation, "forward_layer", operation).unroll


def no_file_because(call: Call) -> str | None:
    """Why no file can hold a call, in float either, and what to do; None if one can."""
    if stock_kind(call.operation) not in LOOKUPS:
        return None
    shape, kind = tuple(call.results[0].shape[1:]), str(call.results[0].dtype)
    entry = f"keras.Input({shape}, dtype={kind if 'float' in kind else 'int32'!r})"
    return f"a file has no tables for what it looks up: run it in front of the model, which starts with its result, {entry}"


def fallback_reason(call: Call) -> str:
    """Why `category_of` says FLOAT, for the report."""
    operation, name = call.operation, type(call.operation).__name__
    if isinstance(operation, klb_layers.KeepFloat):
        return "marks what stays in float"
    if _usual_category(operation) is not Category.FLOAT:
        if stock_kind(operation) in (*masks.COMPARISONS, *masks.LOGIC):
            return "it compares reals, or two tensors: masks in integers are made of whole numbers and a constant"
        several = f"{name} has several outputs" if _has_too_many_outputs(call, stock_kind(operation)) else None
        return several or _other_types(call) or unsupported_reason(call, stock_kind(operation)) or ""
    if not type(operation).__module__.startswith(("keras.", "keras_lowbit.")):
        return f"{name} is a class of {type(operation).__module__}, unknown here"
    if stock_kind(operation) == "Activation":
        known, function = activation_name(operation), operation.activation
        if known == "?":
            return f"its function {getattr(function, '__qualname__', type(function).__name__)!r} is none of Keras'"
        return f"its function {known!r} has no integer form here"
    if any(isinstance(call.arguments.kwargs.get(name), keras.KerasTensor) for name in ("attention_mask", "mask")):
        return "its mask is made of inputs: in integers a mask is a constant"
    if stock_kind(operation) in RECURRENT and is_loop(operation) and not operation.stateful:
        fuses = ", fuse_lstm=True makes it LiteRT's LSTM" if stock_kind(operation) == "LSTM" else ""
        return f"it runs in a loop: quantize_model(unroll=True) takes one of up to 64 steps apart{fuses}"
    if (refused := no_file_because(call)) is not None:
        return refused
    if stock_kind(operation) in EXPANDABLE:
        return f"this call of {name} has no integer form"
    return f"{name} has no integer form here"
