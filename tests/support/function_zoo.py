"""Small Keras models of functions of one value, and of places picked in another order: name -> `Case`."""

import keras
import numpy as np
from keras import layers as kl

from tests.support.zoo_case import SIGNAL, VECTOR, Case, case, conv, function


def by_the_largest(x):
    return x / (2 + keras.ops.max(x, axis=(1, 2, 3), keepdims=True))


FUNCTIONS: dict[str, Case] = {
    "divide": function(lambda x: x / 3.0),
    "divide by a vector": function(lambda x: x / np.float32([3, -1, 0.5, 255])),
    "a number by a tensor": function(lambda x: 2.0 / (kl.ReLU()(kl.Conv2D(3, 1)(x)) + 1.0)),
    "two tensors divided": function(
        lambda x: kl.Conv2D(2, 1)(x / (kl.ReLU()(x) + 1.0)), float_fallbacks=("true_divide",)
    ),
    "slice backwards": function(lambda x: kl.Conv2D(2, 1)(x[:, ::-1])),
    "slice all ways": function(lambda x: x[:, 5:1:-2, 1:5:2, ::-1]),
    "slice backwards and pick": function(lambda x: x[:, -2, ::-1]),
    "stack": function(lambda x: keras.ops.stack([x[..., 2], x[..., 1] * 2.0, x[..., 0]], axis=-1)),
    "stack on the first axis": function(lambda x: keras.ops.stack([x[:, :, 0], kl.Dense(4)(x[:, :, 1])], 1)),
    "split": function(lambda x: kl.Concatenate()(keras.ops.split(x, 2, axis=-1)[::-1])),
    "split at places": function(lambda x: kl.Concatenate(axis=1)(keras.ops.split(x, [2, 5], axis=1)[1:])),
    "split and train": function(lambda x: [kl.Conv2D(2, 1)(part) for part in keras.ops.split(x, 4, axis=2)]),
    "unstack": function(lambda x: kl.Add()(keras.ops.unstack(x, axis=1)[3:5])),
    "maximum of three": function(lambda x: kl.Maximum(name="three")([x, x * 2.0, kl.Conv2D(4, 1)(x)])),
    "minimum of four": function(lambda x: kl.Minimum()([x * -1.0, x, x * 2.0, x * 3.0])),
    "sum of three": function(lambda x: kl.ReLU()(kl.Add(name="three")([x, x * 2.0, kl.Conv2D(4, 1)(x)]))),
    "average": function(lambda x: kl.Dense(2)(kl.Average()([x, kl.Conv2D(4, 1)(x)]))),
    "average of four": function(lambda x: kl.ReLU()(kl.Average()([x, x * -0.5, x * 2.0, kl.Conv2D(4, 1)(x)]))),
    "sum of several shapes": function(
        lambda x: kl.Conv2D(2, 1)(kl.Add(name="three")([kl.Conv2D(4, 1)(x), x * 2.0, kl.Conv2D(4, 1)(x[:, :1])]))
    ),
    "flip": function(lambda x: keras.ops.flip(x, (1, -1))),
    "roll": function(lambda x: keras.ops.roll(x, 2, 1)),
    "repeat places": function(lambda x: keras.ops.repeat(x, 3, 2)),
    "tile": function(lambda x: keras.ops.tile(x, (1, 2, 1, 3))),
    "take": function(lambda x: keras.ops.take(x, np.array([3, 0, -1, 3]), axis=-1)),
    "upsample 1-d": case(lambda: kl.UpSampling1D(3), shape=SIGNAL),
    "repeat": case(lambda: kl.RepeatVector(3, name="again"), lambda: kl.Dense(2), shape=VECTOR),
    "capped relu": case(conv(), lambda: kl.ReLU(max_value=1.0)),
    "function of the input": case(lambda: kl.ReLU(max_value=1.0, name="cap"), conv(), float_fallbacks=("cap",)),
    "capped and sloped relu": case(conv(), lambda: kl.ReLU(6.0, negative_slope=0.3, name="cap")),
    "relu with a threshold": case(conv(), lambda: kl.ReLU(threshold=0.5)),
    **{
        f"function {name}": case(conv(), lambda name=name: kl.Activation(name), conv())
        for name in (
            "celu",
            "elu",
            "exponential",
            "gelu",
            "mish",
            "selu",
            "softplus",
            "softsign",
            "hard_tanh",
            "log_sigmoid",
        )
    },
    **{
        f"function {name}": function(lambda x, name=name: getattr(keras.ops, name)(kl.Conv2D(3, 1)(x)))
        for name in ("abs", "negative", "square", "exp", "sin", "erf", "expm1")
    },
    **{
        f"function {name} of what is positive": function(
            lambda x, name=name: kl.Dense(2)(getattr(keras.ops, name)(kl.ReLU()(kl.Conv2D(3, 1)(x)) + 0.5))
        )
        for name in ("sqrt", "rsqrt", "log", "log1p", "reciprocal")
    },
    **{
        f"whole numbers by {name}": function(
            lambda x, name=name: kl.Dense(2)(getattr(keras.ops, name)(kl.Conv2D(3, 1)(x * 2.0)))
        )
        for name in ("floor", "ceil", "round", "sign", "trunc")
    },
    "power": function(lambda x: kl.Conv2D(3, 1)(x) ** 3),
    "a number to a power": function(lambda x: keras.ops.power(2.0, kl.Conv2D(3, 1)(x))),
    "clip": function(lambda x: keras.ops.clip(kl.Conv2D(3, 1)(x), -0.25, 1.0)),
    "clip by a vector": function(
        lambda x: kl.Conv2D(2, 1)(keras.ops.clip(x, np.float32([-1, 0, -1, -1]), 1.0)), float_fallbacks=("clip",)
    ),
    "a user's function": case(
        conv(), lambda: kl.Activation(lambda x: keras.ops.tanh(x) * keras.ops.relu(x + 0.5)), conv()
    ),
    "a user's function in a layer": case(conv(activation=lambda x: x * keras.ops.sigmoid(1.7 * x))),
    "lambda": case(conv(), lambda: kl.Lambda(lambda x: x * 0.3 + keras.ops.abs(x)), conv()),
    "lambda that mixes values": case(conv(), lambda: kl.Lambda(by_the_largest, name="l"), conv()),
    "lambda that sorts values": case(
        conv(), lambda: kl.Lambda(lambda x: keras.ops.sort(x, axis=-1), name="l"), conv(), float_fallbacks=("l",)
    ),
    "gelu": case(conv(activation="gelu", name="c")),
    "elu in float": case(
        conv(),
        lambda: kl.Activation("sparsemax", name="n"),
        lambda: kl.ELU(name="e"),
        conv(),
        float_fallbacks=("n", "e"),
        reference=False,
    ),
    "elu": case(conv(), lambda: kl.ELU(name="e"), conv()),
    # batch norms
}
