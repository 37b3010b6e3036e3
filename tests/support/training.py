"""A small model of three stochastic layers, and what the tests of callbacks do with it: compile, fit, look at ratios."""

import keras
import numpy as np

from keras_lowbit.layers import QuantConv2D, QuantDense, hosts
from keras_lowbit.quantizers import Binary, Stochastic, Ternary

RNG = np.random.default_rng(9)
IMAGES = RNG.normal(size=(24, 6, 6, 2)).astype("float32")
LABELS = RNG.integers(0, 3, 24)
BATCH = 8
STEPS = 3
SQ_TWN = Stochastic(Ternary())


def network(kernel=SQ_TWN, output="activation"):
    inputs = keras.Input((6, 6, 2))
    hidden = QuantConv2D(4, 3, kernel_quantizer=kernel, output_quantizer=output, name="conv")(inputs)
    hidden = keras.layers.BatchNormalization()(hidden)
    inner = keras.Sequential(
        [keras.Input((4, 4, 4)), QuantConv2D(3, 1, kernel_quantizer=kernel, name="conv")], name="inner"
    )
    hidden = keras.layers.Flatten()(inner(hidden))
    return keras.Model(inputs, QuantDense(3, kernel_quantizer=Binary(), name="head")(hidden))


def compiled(optimizer, **arguments):
    model = network(**arguments)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def fit(model, *listeners, epochs=8):
    arguments = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    return model.fit(IMAGES, LABELS, epochs=epochs, callbacks=list(listeners), **arguments).history


def ratios_of(model):
    return {float(host.state["ratio"].numpy()) for _, host in hosts(model) if "ratio" in host.state}
