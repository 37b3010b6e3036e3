"""The same training through TFMOT on tf_keras and through Keras 3: the same kernels, bit for bit."""

import keras
import numpy as np
import pytest
import tf_keras

import keras_lowbit.tfmot as klt
from keras_lowbit import callbacks, recipes
from keras_lowbit.callbacks import weight_codes
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.base import kernel_layers
from keras_lowbit.quantizers import (
    ActivationRange,
    AdjustableThreshold,
    Binary,
    Clustered,
    Incremental,
    LearnedStep,
    PowerOfTwo,
    Stochastic,
    Ternary,
    Uniform,
)
from keras_lowbit.recipes import Recipe, Rule
from keras_lowbit.tfmot.wrappers import WrappedModel

EPOCHS, SAMPLES, BATCH = 3, 16, 8

# Layer -> quantizer of its kernel. One model holds several methods: each has its own state, schedule and draws.
METHODS = {
    "sq, inq": {
        "conv": Stochastic(Ternary()),
        "depthwise": Stochastic(Binary(), selection="keep_error", probability="sigmoid"),
        "transpose": Incremental(PowerOfTwo(5)),
        "dense": Incremental(PowerOfTwo(2), partition="random"),
    },
    "clustered, fat": {
        "conv": Clustered(Ternary(), cluster_size=2),
        "depthwise": AdjustableThreshold(Uniform(4)),
        "transpose": LearnedStep(Uniform(8)),
        "dense": Clustered(Uniform(4), cluster_size=16),
    },
    "straight-through": {
        "conv": Ternary(),
        "depthwise": Uniform(4, calibration="mse"),
        "transpose": Uniform(8),
        "dense": Binary(),
    },
}


def small_network():
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(8, 3, use_bias=False, name="conv"),
            layers.ReLU(name="relu"),
            layers.DepthwiseConv2D(3, use_bias=False, name="depthwise"),
            layers.ReLU(name="relu_2"),
            layers.Conv2DTranspose(4, 2, use_bias=False, name="transpose"),
            layers.Flatten(name="flatten"),
            layers.Dense(5, use_bias=False, name="dense"),
        ]
    )


def twins(kernels, activations=None):
    """A quantized tf_keras model, and its copy in Keras 3, both compiled with the same optimizer and loss."""
    recipe = Recipe("test", tuple(Rule(kernel, layers=name) for name, kernel in kernels.items()), activations)
    theirs = klt.quantize_model(small_network(), recipe)
    ours = klt.to_keras3(theirs)
    theirs.compile(
        tf_keras.optimizers.SGD(0.05, momentum=0.9), tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    ours.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,  # XLA sums in another order
    )
    return theirs, ours


def data():
    rng = np.random.default_rng(5)
    return rng.normal(size=(SAMPLES, 8, 8, 3)).astype(np.float32), rng.integers(0, 5, SAMPLES)


def schedules(module, kernels):
    found = {type(kernel) for kernel in kernels.values()}
    made = [module.RatioSchedule((0.3, 0.8, 1.0), epochs=EPOCHS)] if Stochastic in found else []
    return made + ([module.PartitionSchedule((0.4, 0.7, 1.0), epochs=EPOCHS)] if Incremental in found else [])


def train_both(kernels, activations):
    theirs, ours = twins(kernels, activations)
    images, labels = data()
    fit = {"epochs": EPOCHS, "batch_size": BATCH, "shuffle": False, "verbose": 0}
    logs = [
        model.fit(images, labels, callbacks=schedules(module, kernels), **fit).history
        for model, module in ((theirs, klt.callbacks), (ours, callbacks))
    ]
    return theirs, ours, logs


RANGES = {
    "float activations": None,
    "8-bit activations": ActivationRange(),
    "trained ranges": AdjustableThreshold(ActivationRange(), mode="asymmetric"),
}


@pytest.mark.parametrize(
    ("name", "activations"),
    [
        ("sq, inq", "float activations"),
        ("sq, inq", "8-bit activations"),
        ("clustered, fat", "trained ranges"),
        ("straight-through", "8-bit activations"),
    ],
)
def test_training_leaves_the_same_bits(name, activations):
    activations = RANGES[activations]
    theirs, ours, logs = train_both(METHODS[name], activations)
    # The kernels that the forward pass multiplies with, straight from TFMOT's wrappers.
    pairs = list(zip(WrappedModel(theirs).kernel_layers(), kernel_layers(ours), strict=True))
    assert len(pairs) == 4
    for their, our in pairs:
        np.testing.assert_array_equal(to_numpy(our.kernel), their.kernel.numpy())
        quantized = our.kernel_host.encode(our.kernel), their.kernel_host.encode(their.kernel)
        np.testing.assert_array_equal(*(to_numpy(each.real) for each in quantized))
    # Every other variable too: ranges, ratios, masks, the state of the random generators.
    for found, wanted in zip(klt.to_keras3(theirs).variables, ours.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(found), to_numpy(wanted), err_msg=wanted.path)
    images, _ = data()
    np.testing.assert_array_equal(np.asarray(ours(images)), np.asarray(theirs(images)))
    assert logs[0].keys() == logs[1].keys()
    for key in set(logs[0]) - {"loss"}:  # each Keras averages the losses of the batches in its own way
        assert logs[0][key] == logs[1][key]
    np.testing.assert_allclose(logs[0]["loss"], logs[1]["loss"], rtol=1e-6)


def test_training_flips_codes_and_draws_anew_in_every_step():
    theirs, untrained = twins(METHODS["sq, inq"])
    before = weight_codes(WrappedModel(theirs))
    images, labels = data()
    theirs.fit(images, labels, epochs=2, batch_size=BATCH, verbose=0)
    assert any((old != new).any() for old, new in zip(before, weight_codes(WrappedModel(theirs)), strict=True))
    ours = klt.to_keras3(theirs)
    for their, our, old in zip(*map(kernel_layers, (WrappedModel(theirs), ours, untrained)), strict=True):
        if our.kernel_host.seed_generator is not None:
            state = to_numpy(our.kernel_host.seed_generator.state)
            np.testing.assert_array_equal(state - to_numpy(old.kernel_host.seed_generator.state), (0, 4))
            generators = our.kernel_host.seed_generator, their.kernel_host.values()["seed"]
            drawn = [to_numpy(keras.random.uniform((9,), seed=generator)) for generator in generators]
            np.testing.assert_array_equal(*drawn)


def test_a_recipe_names_the_same_quantizers_in_both():
    theirs = klt.quantize_model(small_network(), "inq-5")
    kernels = [kernel.kernel_quantizer for kernel in WrappedModel(theirs).kernel_layers()]
    assert kernels == [recipes.get("inq-5").plan[0].kernel] * 4
