"""Ranges below 8 bits: their trained factors learn along with the rounding of their block."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.convert.post_training.reconstruction.blocks import Block
from keras_lowbit.convert.post_training.reconstruction.neighbours import neighbours_of
from keras_lowbit.convert.post_training.reconstruction.ranges import range_factors
from keras_lowbit.convert.post_training.reconstruction.trainer import BlockTrainer, Settings, train
from keras_lowbit.keras_graph.calls import calls_of
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import QuantActivation, QuantDense, QuantizerHost
from keras_lowbit.quantizers import ActivationRange, AdjustableThreshold, LearnedPowerOfTwo, LearnedStep, Uniform

RNG = np.random.default_rng(6)
INPUTS = RNG.normal(1.0, 1.0, (64, 5)).astype("float32")


def model_of(range_quantizer, twice=False):
    """A dense layer of 3-bit weights, a relu behind it, and a range as wide as data four times as large ask for."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((5,))
    dense = QuantDense(3, kernel_quantizer=Uniform(3), name="dense")
    behind = QuantActivation("relu", range_quantizer, name="range")
    x = behind(dense(inputs))
    model = keras.Model(inputs, behind(x) if twice else x)
    found = behind.output_host.quantizer.state_from_min_max(0.0, 4 * float(np.max(model(INPUTS))), 1)
    for name, value in found.items():
        behind.output_host.state[name].assign(value)
    return model, dense, behind.output_host


def trainer_of(model, dense, iterations, drop=0.0):
    graph = calls_of(model)
    block = Block(tuple(graph.calls), tuple(graph.inputs), graph.outputs[0], ("dense",))
    settings = Settings(iterations, 0.05, drop, 0.3, 16, 0)
    return BlockTrainer(
        block, {"dense": dense}, {"dense": neighbours_of(dense)}, settings, range_factors(graph, block.calls)
    )


@pytest.mark.parametrize("drop", [0.0, 0.5])
@pytest.mark.parametrize("quantizer", [AdjustableThreshold, LearnedStep, LearnedPowerOfTwo])
def test_a_range_that_is_too_wide_narrows(quantizer, drop):
    model, dense, host = model_of(quantizer(ActivationRange(4)))
    target = np.maximum(INPUTS @ to_numpy(dense.kernel), 0).astype("float32")
    (name,) = [name for name in ("factor", "log2_factor") if name in host.state]
    start = float(to_numpy(host.state[name]))
    trainer = trainer_of(model, dense, 200, drop)
    train(trainer, [INPUTS, INPUTS], target, np.random.default_rng(0))
    (found,) = trainer.learnt_factors().values()
    assert found < start - 0.2
    low, high = host.quantizer.kept_within().get(name, (-np.inf, np.inf))
    assert low <= found <= high
    assert float(to_numpy(host.state[name])) == start  # the layer itself is not touched


def test_the_block_computes_with_the_factors_as_they_are():
    model, dense, host = model_of(LearnedStep(ActivationRange(4)))
    trainer = trainer_of(model, dense, 10)
    trainer.moves[0].assign(-10.0)  # f = 0.5
    soft = to_numpy(trainer([INPUTS, INPUTS]))
    host.state["factor"].assign(0.5)
    on_grid = to_numpy(host(np.maximum(INPUTS @ to_numpy(dense.kernel), 0)))
    np.testing.assert_allclose(soft, on_grid, atol=0.5 * float(host.quantizer.grid(host.values())[0]) + 1e-6)
    assert len(np.unique(soft)) <= 16


def test_factors_stand_still_while_biases_alone_learn():
    model, dense, _ = model_of(LearnedStep(ActivationRange(4)))
    trainer = trainer_of(model, dense, 20)
    trainer.step.assign(19)
    trainer.compile(keras.optimizers.SGD(1.0), jit_compile=False)
    trainer.train_on_batch([INPUTS, INPUTS], np.zeros((64, 3), "float32"))
    np.testing.assert_array_equal(to_numpy(trainer.moves[0]), 0)
    assert np.abs(to_numpy(trainer.shifts[0])).max() > 0


def test_eight_bits_plain_ranges_and_layers_that_run_twice_are_left():
    for quantizer in (LearnedStep(ActivationRange(8)), ActivationRange(4)):
        model, _, _ = model_of(quantizer)
        assert range_factors(calls_of(model), calls_of(model).calls) == []
    model, _, _ = model_of(LearnedStep(ActivationRange(4)), twice=True)
    assert range_factors(calls_of(model), calls_of(model).calls) == []


def test_w4a4_has_four_bits_behind_a_relu_and_reconstruct_moves_their_factors():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(6, 3, padding="same", activation="relu", name="stem")(inputs)
    x = keras.layers.Conv2D(8, 1, activation="relu", name="middle")(x)
    x = keras.layers.Conv2D(4, 1, name="end")(x)
    reference = keras.Model(inputs, x)
    images = RNG.normal(1.0, 0.5, (48, 6, 6, 3)).astype("float32")
    recipe = klb.recipes.w4(first=None, activation_bits=4)
    assert recipe.name == "w4a4"
    model, _ = klb.quantize_model(reference, recipe)
    klb.calibrate(model, images, verbose=0)
    hosts = [h for h in klb.layers.find_layers(model, QuantizerHost) if h.activation_range is not None]
    assert sorted(host.quantizer.bits for host in hosts) == [4, 4, 8, 8]
    before = [{name: to_numpy(value).copy() for name, value in host.state.items()} for host in hosts]
    klb.reconstruct(model, reference, images, iterations=30, check=False, verbose=0)
    for host, state in zip(hosts, before, strict=True):
        moved = any(np.any(to_numpy(host.state[name]) != value) for name, value in state.items())
        assert moved == (host.quantizer.bits == 4)
