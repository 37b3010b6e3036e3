"""Small Keras models, one for each thing that lowering must know: name -> `Case`."""

from typing import Any

import keras
import numpy as np
from keras import layers as kl

import keras_lowbit as klb
from keras_lowbit import layers as klb_layers
from tests.support.expansion_zoo import EXPANSIONS
from tests.support.function_zoo import FUNCTIONS
from tests.support.zoo_case import IMAGE, SIGNAL, VECTOR, Case, case, conv, function

FIRST = {"data_format": "channels_first"}


class Unknown(kl.Layer):
    """A layer that no library knows."""

    def call(self, x):
        return keras.ops.sin(x)

    def compute_output_shape(self, shape):
        return shape


def adapted(invert=False):
    """A Normalization whose mean and variance are given."""
    return kl.Normalization(mean=[0.1, -0.2, 0.3, 0.0], variance=[1.0, 0.5, 2.0, 0.1], invert=invert)


def residual(x):
    left = kl.Conv2D(4, 3, padding="same")(x)
    return kl.ReLU()(kl.Add()([left, x]))


def unequal(x):
    wide = kl.Conv2D(4, 1, name="wide")(x * 9.0)
    return kl.Concatenate()([wide, kl.Conv2D(3, 1, name="narrow")(x), kl.Activation("sigmoid")(x)])


def nested(x):
    body = keras.Sequential([keras.Input(IMAGE), kl.Conv2D(4, 3, padding="same"), kl.BatchNormalization()], name="body")
    outer_in = keras.Input(IMAGE)
    outer = keras.Model(outer_in, kl.ReLU()(body(outer_in)), name="outer")
    return kl.Dense(3, name="head")(kl.GlobalAveragePooling2D()(outer(x)))


def shared(a, b):
    conv_, norm = kl.Conv2D(5, 3, name="conv"), kl.BatchNormalization(name="norm")
    return kl.Subtract()([norm(conv_(a)), norm(conv_(b))])


def gates(x):
    return kl.Multiply()([x, kl.Activation("sigmoid")(kl.Conv2D(1, 1)(kl.GlobalAveragePooling2D(keepdims=True)(x)))])


def channels_first(x):
    """A network whose images have their channels first, with all that knows which axis they are on."""
    x = kl.ReLU()(kl.BatchNormalization(axis=1)(kl.Conv2D(4, 3, padding="same", **FIRST)(x)))
    x = kl.Add()([x, kl.DepthwiseConv2D(3, padding="same", activation="silu", **FIRST)(x)])
    x = kl.Concatenate(axis=1)([x, kl.SpatialDropout2D(0.1, **FIRST)(x)])
    gate = kl.Dense(8, activation="sigmoid")(kl.GlobalAveragePooling2D(**FIRST)(x))
    x = kl.Multiply()([kl.MaxPooling2D(**FIRST)(x), kl.Reshape((8, 1, 1))(gate)])
    flat = kl.Flatten(data_format="channels_last")(kl.ZeroPadding2D(1, **FIRST)(x))
    return [kl.Dense(3)(kl.Flatten(**FIRST)(x)), kl.Dense(2)(flat), x]


def returned_again(x):
    """One tensor, its Dropout, a value in float, whole numbers and the input, each given twice."""
    codes = kl.Dense(4)(x)
    real, place = Unknown(name="u")(codes), keras.ops.argmax(codes, -1)
    return [codes, codes, kl.Dropout(0.5)(codes), real, real, place, place, x, x]


def fixed_batch():
    entry = keras.Input(batch_shape=(4, *IMAGE), name="x")
    return keras.Model(entry, kl.Dense(3)(kl.Flatten()(kl.Conv2D(4, 3)(entry))), name="m")


def drop_in():
    range_ = {"output_quantizer": "activation"}
    entry = keras.Input(IMAGE, name="x")
    value = klb_layers.QuantActivation()(entry)
    value = klb_layers.QuantConv2D(6, 3, activation="relu", kernel_quantizer="ternary", name="conv", **range_)(value)
    value = klb_layers.QuantDepthwiseConv2D(3, kernel_quantizer="binary", name="deep", **range_)(value)
    value = kl.Flatten()(value)
    value = klb_layers.QuantDense(5, "softmax", kernel_quantizer="uniform", name="dense", **range_)(value)
    return keras.Model(entry, value, name="m")


def drop_in_activation(activation, output_quantizer="activation"):
    entry = keras.Input(IMAGE, name="x")
    value = klb_layers.QuantActivation()(entry)
    value = klb_layers.QuantConv2D(
        5, 3, activation=activation, kernel_quantizer="ternary", output_quantizer=output_quantizer, name="conv"
    )(value)
    return keras.Model(entry, klb_layers.QuantActivation()(value), name="m")


def _norm(**options):
    return lambda: kl.BatchNormalization(**options)


VARIABLE = (None, None, 4)
PAIRS = np.float32([[0.5], [2.0]] * 4)  # one factor for each column of an image, not for each of as many channels

ZOO: dict[str, Case] = {
    **FUNCTIONS,
    **EXPANSIONS,
    # convolutions
    "conv2d": case(conv(padding="same", activation="relu")),
    "conv2d stride": case(conv(strides=(2, 1), padding="same")),
    "conv2d even kernel": case(conv(6, (2, 4), strides=2, padding="same", use_bias=False)),
    "conv2d dilation": case(conv(dilation_rate=(2, 1), padding="same")),
    "conv2d groups": case(conv(6, groups=2, activation="relu6")),
    "conv2d 1x1 ternary": case(conv(8, 1), recipe="twn"),
    "conv2d binary": case(conv(5), recipe="bwn"),
    "conv1d": case(lambda: kl.Conv1D(5, 3, padding="same", activation="relu"), shape=SIGNAL),
    "conv1d stride groups": case(lambda: kl.Conv1D(6, 4, strides=2, groups=2), shape=SIGNAL),
    "conv1d causal": case(lambda: kl.Conv1D(5, 3, padding="causal", dilation_rate=2), shape=SIGNAL, recipe="twn"),
    "depthwise": case(lambda: kl.DepthwiseConv2D(3, padding="same", activation="relu")),
    "depthwise multiplier": case(lambda: kl.DepthwiseConv2D(3, 2, depth_multiplier=2), recipe="twn"),
    "depthwise dilation": case(lambda: kl.DepthwiseConv2D(2, dilation_rate=2, padding="same", use_bias=False)),
    "separable": case(lambda: kl.SeparableConv2D(6, 3, padding="same", activation="relu", depth_multiplier=2)),
    "transpose same": case(lambda: kl.Conv2DTranspose(5, 3, strides=2, padding="same"), recipe="twn"),
    "transpose valid": case(lambda: kl.Conv2DTranspose(5, (2, 3), strides=(3, 2), activation="relu")),
    # dense
    "dense 2-d": case(lambda: kl.Dense(5, activation="relu"), shape=VECTOR),
    "dense 3-d": case(lambda: kl.Dense(5), shape=SIGNAL, recipe="twn"),
    "dense 4-d": case(lambda: kl.Dense(8, use_bias=False), recipe="twn"),
    **{
        f"dense {name}": case(lambda name=name: kl.Dense(5, activation=name), shape=VECTOR)
        for name in ("softmax", "sigmoid", "tanh", "hard_sigmoid", "silu", "hard_silu")
    },
    # elementwise
    "add": function(residual),
    "subtract": function(lambda a, b: kl.Subtract()([a, b]), IMAGE, IMAGE),
    "multiply": function(lambda a, b: kl.Multiply()([a, b]), IMAGE, IMAGE),
    "operators": function(lambda a, b: (a + b) * (a - b), IMAGE, IMAGE),
    "squeeze and excite": function(gates),
    "add constant": function(lambda x: x + 0.7),
    "subtract constant": function(lambda x: x - np.float32([0.1, 0.5, -2, 0])),
    "from constant": function(lambda x: 1.5 - x),
    "multiply constant": function(lambda x: x * np.float32([0.5, -1, 0, 3])),
    "relu behind affine": function(lambda x: keras.ops.relu(x * 2.0 - 0.3)),
    "from vector": function(lambda x: keras.ops.subtract(np.float32([1, 2, -1, 0]), x)),
    "multiply columns": function(lambda x: kl.Conv2D(8, 1)(x) * PAIRS),
    "multiply widens": function(
        lambda x: kl.Dense(3)(kl.Dense(1)(x) * np.float32([1, -2, 0.5])), VECTOR, float_fallbacks=("multiply",)
    ),
    "add of rank 5": function(lambda x: kl.Dense(2)(x + x * 2.0), (2, 3, 2, 2, 4)),
    # concatenations
    "concat unequal": function(unequal),
    "concat rows": function(lambda a, b: kl.Concatenate(axis=1)([a, b]), IMAGE, (2, 8, 4)),
    "concat with a float operation": function(
        lambda x: kl.Concatenate()([kl.Activation("sparsemax", name="e")(x), kl.Conv2D(2, 1)(x)]),
        float_fallbacks=("e",),
    ),
    "concat with a function": function(lambda x: kl.Concatenate()([kl.ELU()(kl.Conv2D(3, 1)(x)), kl.Conv2D(2, 1)(x)])),
    "concat twice": function(lambda x: kl.Concatenate()([x, kl.Concatenate()([kl.Conv2D(2, 1)(x), x * 3.0])])),
    # extrema: parts share a range, as in a concatenation
    "maximum": function(lambda x: kl.Maximum()([kl.Conv2D(4, 1)(x), x])),
    "minimum of two layers": function(lambda x: kl.Minimum()([kl.Conv2D(4, 1)(x), kl.Conv2D(4, 3, padding="same")(x)])),
    "maximum with a number": function(lambda x: keras.ops.maximum(kl.Conv2D(4, 1)(x), 0.25)),
    "minimum with a vector": function(lambda x: keras.ops.minimum(np.float32([0.5, -1.0, 0.0, 9.0]), x)),
    # pools and means
    "max pool": case(lambda: kl.MaxPooling2D((2, 3))),
    "max pool same": case(lambda: kl.MaxPooling2D(3, 2, "same")),
    "average pool": case(lambda: kl.AveragePooling2D(2)),
    "average pool same": case(lambda: kl.AveragePooling2D(3, 2, "same")),
    "average pool same of every pixel": case(
        conv(activation="relu"), lambda: kl.AveragePooling2D(3, 1, "same"), conv()
    ),
    "average pool of one pixel": case(lambda: kl.AveragePooling2D(1, 2)),
    "average pool of the image": case(conv(), lambda: kl.AveragePooling2D((7, 6)), lambda: kl.Flatten()),
    "average pool wide": case(lambda: kl.AveragePooling2D(9, 1, "same", name="wide"), float_fallbacks=("wide",)),
    "averages joined": function(
        lambda x: kl.Concatenate()([kl.GlobalAveragePooling2D()(x), kl.GlobalMaxPooling2D()(x)])
    ),
    "max pool 1-d": case(lambda: kl.MaxPooling1D(3, 2, "same"), shape=SIGNAL),
    "average pool 1-d": case(lambda: kl.AveragePooling1D(2), shape=SIGNAL),
    "average pool 1-d same": case(lambda: kl.AveragePooling1D(5, 1, "same"), shape=SIGNAL),
    "global average": case(lambda: kl.GlobalAveragePooling2D()),
    "global average kept": case(lambda: kl.GlobalAveragePooling2D(keepdims=True)),
    "global average 1-d": case(lambda: kl.GlobalAveragePooling1D(), shape=SIGNAL),
    "global max": case(lambda: kl.GlobalMaxPooling2D()),
    "global max 1-d": case(lambda: kl.GlobalMaxPooling1D(keepdims=True), shape=SIGNAL),
    "global average channels first": case(
        conv(), lambda: kl.GlobalAveragePooling2D(name="g", **FIRST), lambda: kl.Dense(3)
    ),
    "average with a mask": function(
        lambda x: kl.Dense(3)(kl.GlobalAveragePooling1D(name="g")(x, mask=np.arange(11)[None] < 4)),
        SIGNAL,
        float_fallbacks=("g",),
    ),
    "mean": function(lambda x: keras.ops.mean(x, axis=(1, 2))),
    "mean channels": function(lambda x: keras.ops.mean(x, axis=-1, keepdims=True)),
    "sums so far": function(lambda x: conv(3)()(keras.ops.cumsum(kl.ReLU()(conv()()(x)), axis=1))),
    "sums so far of channels": function(lambda x: keras.ops.cumsum(kl.Dense(6)(x), axis=-1), VECTOR, recipe="bwn"),
    # shapes
    "pad": case(lambda: kl.ZeroPadding2D(((1, 2), (0, 3)))),
    "pad 1-d": case(lambda: kl.ZeroPadding1D((2, 1)), shape=SIGNAL),
    "pad then conv": case(lambda: kl.ZeroPadding2D(((0, 1), (0, 1))), conv(strides=2)),
    "pad channels first": case(conv(), lambda: kl.ZeroPadding2D(1, name="p", **FIRST), conv()),
    "pad with twos": function(
        lambda x: kl.Conv2D(2, 3)(keras.ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=np.float32(2))),
        float_fallbacks=("pad",),
    ),
    "reshape": case(lambda: kl.Reshape((-1, 8))),
    "flatten": case(lambda: kl.Flatten(), lambda: kl.Dense(3)),
    "flatten channels first": case(conv(), lambda: kl.Flatten(name="f", **FIRST), lambda: kl.Dense(3)),
    "flatten of a fixed batch": Case(fixed_batch),
    "transpose from behind": function(lambda x: keras.ops.transpose(x, (0, -1, 1, 2))),
    "permute": case(lambda: kl.Permute((3, 1, 2))),
    "crop": case(lambda: kl.Cropping2D(((1, 0), (2, 1)))),
    "a network with channels first": function(channels_first, (4, 9, 8)),
    "crop channels first": case(conv(), lambda: kl.Cropping2D(1, name="k", **FIRST), conv()),
    "crop 1-d": case(lambda: kl.Cropping1D((1, 2)), shape=SIGNAL),
    "slice": function(lambda x: x[:, 1:7:2, ..., :3]),
    "pick one": function(lambda x: x[:, -1, :, 0:2]),
    "upsample nearest": case(lambda: kl.UpSampling2D((2, 3))),
    "upsample bilinear": case(lambda: kl.UpSampling2D(2, interpolation="bilinear")),
    "upsample bilinear by 6": case(lambda: kl.UpSampling2D(6, interpolation="bilinear"), conv()),
    "upsample bilinear by 4 and 8": case(lambda: kl.UpSampling2D((4, 8), interpolation="bilinear")),
    "upsample bilinear from one row": case(lambda: kl.UpSampling2D((7, 2), interpolation="bilinear"), shape=(1, 5, 4)),
    # activations of their own
    **{
        f"activation {name}": case(lambda name=name: kl.Activation(name))
        for name in ("relu", "relu6", "sigmoid", "tanh", "hard_sigmoid", "hard_silu", "silu", "leaky_relu", "softmax")
    },
    "relu layer": case(conv(), lambda: kl.ReLU(6.0)),
    "leaky relu layer": case(conv(), lambda: kl.LeakyReLU(negative_slope=0.1)),
    "sloped relu": case(conv(), lambda: kl.ReLU(negative_slope=0.25)),
    "softmax with a mask": function(lambda x: kl.Softmax(name="s")(kl.Conv2D(4, 1)(x), mask=np.arange(4) < 2)),
    "norm after conv": case(conv(6), _norm(), lambda: kl.ReLU(), recipe="twn"),
    "norm after depthwise": case(lambda: kl.DepthwiseConv2D(3, depth_multiplier=2), _norm(), recipe="bwn"),
    "norm after dense": case(lambda: kl.Dense(6), _norm(), lambda: kl.ReLU(), shape=VECTOR, recipe="twn"),
    "norm after transpose": case(lambda: kl.Conv2DTranspose(5, 3), _norm(center=False)),
    "norm after conv1d": case(lambda: kl.Conv1D(5, 3), _norm(scale=False), shape=SIGNAL),
    "two norms": case(conv(6), _norm(), _norm(), recipe="twn"),
    "norm rank 2": case(_norm(), shape=VECTOR),
    "norm rank 3": case(_norm(), shape=SIGNAL),
    "norm rank 4": case(_norm(), lambda: kl.ReLU()),
    "norm behind relu": case(conv(activation="relu"), _norm()),
    "norm after transpose with output padding": case(
        lambda: kl.Conv2DTranspose(5, 3, strides=2, output_padding=1),
        _norm(),
        lambda: kl.ReLU(),
    ),
    "norm of rows": case(conv(), _norm(axis=1, name="n"), conv(), float_fallbacks=("n",)),
    "normalization of columns": case(
        conv(8, 1),
        lambda: kl.Normalization(axis=2, mean=[0.3] * 8, variance=[0.5, 2.0] * 4, name="n"),
        conv(),
        float_fallbacks=("n",),
    ),
    "rescaling columns": case(conv(8, 1), lambda: kl.Rescaling(PAIRS, name="r"), conv(), float_fallbacks=("r",)),
    "rescaling": case(lambda: kl.Rescaling(0.5, offset=-1.0), conv()),
    "rescaling channels": case(lambda: kl.Rescaling([0.1, 0.2, 0.3, 0.4], offset=[0.0, 1.0, 2.0, 3.0])),
    "normalization": case(adapted, conv()),
    "normalization inverted": case(lambda: adapted(invert=True)),
    # whole models
    "nested": function(nested),
    "shared": function(shared, IMAGE, IMAGE, recipe="twn"),
    "several outputs": function(
        lambda a, b: [kl.Dense(3)(a), kl.Flatten()(kl.Conv2D(2, 3)(b)), a + 1.0], VECTOR, IMAGE
    ),
    "passes its input on": function(lambda x: [x, kl.Conv2D(2, 3)(x)]),
    "spectral normalization": case(
        lambda: kl.SpectralNormalization(kl.Conv2D(4, 3, activation="relu", name="inner")),
        lambda: kl.SpectralNormalization(kl.Dense(3)),
    ),
    "channels first in three": case(
        lambda: kl.Conv3D(3, 2, **FIRST), lambda: kl.MaxPooling3D((1, 2, 2), **FIRST), shape=(2, 3, 6, 5)
    ),
    "a pool of volumes in float": case(
        lambda: kl.Dense(4),
        lambda: kl.MaxPooling3D((1, 2, 2), padding="same", name="pool"),
        lambda: kl.Dense(2),
        shape=(3, 5, 4, 2),
        arguments={"skip": ["pool"]},
        float_fallbacks=("pool",),
    ),
    "a loop": case(
        lambda: kl.Dense(4), lambda: kl.GRU(3, name="gru"), lambda: kl.Dense(2), shape=SIGNAL, float_fallbacks=("gru",)
    ),
    "lstm as one operator": case(
        lambda: kl.LSTM(4, return_sequences=True),
        lambda: kl.LSTM(3, use_bias=False),
        lambda: kl.Dense(2),
        shape=SIGNAL,
        arguments={"fuse_lstm": True},
    ),
    "a film": case(
        lambda: kl.ConvLSTM2D(2, 2, name="film"), lambda: kl.Conv2D(2, 1), shape=(3, 4, 4, 2), float_fallbacks=("film",)
    ),
    "returns values again": function(returned_again, VECTOR, float_fallbacks=("u",)),
    "returns reals again": function(
        lambda x: [kl.Dense(4, name="head")(x)] * 2, VECTOR, arguments={"skip": ["head"]}, float_fallbacks=("head",)
    ),
    "inputs read in another order": function(lambda a, b: kl.Dense(2)(b) - kl.Dense(2)(a), VECTOR, VECTOR),
    "dropout": case(conv(), lambda: kl.Dropout(0.5), lambda: kl.ReLU(), lambda: kl.SpatialDropout2D(0.2)),
    "augmentation": case(
        lambda: kl.RandomFlip(), lambda: kl.RandomRotation(0.2), conv(), lambda: kl.RandomContrast(0.5)
    ),
    "variable size": case(
        conv(padding="same"),
        lambda: kl.MaxPooling2D(),
        lambda: kl.GlobalAveragePooling2D(),
        shape=VARIABLE,
        input_shapes={"x": (8, 6, 4)},
    ),
    "variable size by tuple": case(conv(), shape=VARIABLE, input_shapes=(8, 6, 4)),
    "skip list": case(
        conv(name="one"), conv(name="two", activation="relu"), arguments={"skip": ["one"]}, float_fallbacks=("one",)
    ),
    "skipped head": case(
        lambda: kl.Dense(4, activation="softmax", name="head"),
        shape=VECTOR,
        arguments={"skip": ["head"]},
        float_fallbacks=("head",),
    ),
    "unknown layer": case(conv(), lambda: Unknown(name="u"), conv(), float_fallbacks=("u",)),
    "drop-in layers": Case(drop_in, quantized=True),
    **{
        f"drop-in {name}": Case(lambda name=name: drop_in_activation(name), quantized=True)
        for name in ("leaky_relu", "silu", "hard_silu", "hard_sigmoid", "relu6")
    },
    "drop-in gelu": Case(lambda: drop_in_activation("gelu"), quantized=True),
    "drop-in without output_quantizer": Case(
        lambda: drop_in_activation("tanh", None), quantized=True, float_fallbacks=("conv",)
    ),
}


def enliven(model: keras.Model, seed: int = 0) -> None:
    """Random weights that leave nothing out: negative and zero gamma, filters of zeros, biases."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, kl.BatchNormalization):
            _random_norm(layer, rng)
        elif isinstance(layer, kl.LayerNormalization | kl.RMSNormalization | kl.GroupNormalization):
            for variable in layer.trainable_variables:
                variable.assign(variable + rng.normal(0, 0.3, variable.shape))
        elif hasattr(layer, "kernel") and getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(0, 0.3, layer.bias.shape))
        if getattr(layer, "kernel", None) is not None:
            _zero_filter(layer)


def _zero_filter(layer) -> None:
    """The last filter of a kernel of several becomes zeros."""
    kernel = np.array(keras.ops.convert_to_numpy(layer.kernel))
    axis = -2 if isinstance(layer, kl.Conv2DTranspose) else -1
    if kernel.shape[axis] > 2:
        np.moveaxis(kernel, axis, 0)[-1] = 0
        layer.kernel.assign(kernel)


def _random_norm(layer, rng) -> None:
    size = layer.moving_mean.shape
    if layer.scale:
        gamma = rng.uniform(-1, 2, size)
        gamma[0], gamma[-1] = 0.0, -0.5
        layer.gamma.assign(gamma)
    if layer.center:
        layer.beta.assign(rng.normal(0, 0.5, size))
    layer.moving_mean.assign(rng.normal(0, 0.3, size))
    layer.moving_variance.assign(rng.uniform(0.5, 2, size))


def samples(model: keras.Model, count: int = 3, input_shapes: Any = None, seed: int = 1) -> list[np.ndarray]:
    """Random inputs in the model's order, normal with a tail; whole numbers from 0 to 8, bytes from 0 to 255."""
    rng = np.random.default_rng(seed)
    found = []
    for tensor in model.inputs:
        given = input_shapes.get(tensor.name) if isinstance(input_shapes, dict) else input_shapes
        shape = (count, *(given or tensor.shape[1:]))
        if tensor.dtype == "uint8":
            found.append(rng.integers(0, 256, shape, np.uint8))
        elif "int" in tensor.dtype:
            found.append(rng.integers(0, 9, shape, np.int32))
        else:
            found.append(rng.normal(0, 1.5, shape).astype(np.float32))
    return found


def trained(entry: Case) -> tuple[keras.Model, Any]:
    """The case's model, quantized and calibrated, and the data it saw: an array, or a list of arrays."""
    model = entry.make()
    enliven(model)
    inputs = samples(model, input_shapes=entry.input_shapes)
    data: Any = inputs if len(inputs) > 1 else inputs[0]
    quantized = model if entry.quantized else klb.quantize_model(model, entry.recipe, **entry.arguments)[0]
    klb.calibrate(quantized, data, verbose=0)
    return quantized, data
