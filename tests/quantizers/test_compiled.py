"""The same bits eagerly and in a graph: what `encode` exports is what the forward pass used."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_lowbit.quantizers import ActivationRange, Binary, Ternary, Uniform

KERNEL = np.random.default_rng(7).normal(size=(3, 3, 8, 16)).astype("float32")
UNIFORM = [Uniform(*choice) for choice in itertools.product(range(2, 9), ("channel", "tensor"), ("max", "percentile"))]
QUANTIZERS = [Binary(), Ternary(), Ternary(calibration="mse"), Ternary(centered=True), *UNIFORM]


@pytest.mark.parametrize("quantizer", [*QUANTIZERS, Uniform(4, calibration="mse")], ids=repr)
def test_a_graph_computes_the_bits_of_eager_mode(quantizer):
    graph = tf.function(lambda weights: quantizer(weights, {}, (-1,)))
    np.testing.assert_array_equal(graph(KERNEL), quantizer.encode(KERNEL, {}, (-1,)).real)


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=repr)
def test_xla_computes_the_same_codes(quantizer):
    graph = tf.function(lambda weights: quantizer.encode(weights, {}, (-1,))[:2], jit_compile=True)
    codes, scale = graph(KERNEL)
    eager = quantizer.encode(KERNEL, {}, (-1,))
    np.testing.assert_array_equal(codes, eager.codes)
    # XLA adds the 72 terms of a mean in another order.
    np.testing.assert_allclose(scale, eager.scale, rtol=1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_activation_grids_are_the_same_in_a_graph_and_under_xla(bits):
    quantizer, real = ActivationRange(bits), KERNEL.ravel()
    for low, high in np.random.default_rng(8).normal(size=(10, 2)).astype("float32") * 3:
        state = {
            "minimum": tf.constant(min(low, high)),
            "maximum": tf.constant(max(low, high)),
            "count": tf.constant(1.0),
        }
        eager = ops.convert_to_numpy(quantizer(real, state))
        for jit in (False, True):
            graph = tf.function(lambda values, state: quantizer(values, state), jit_compile=jit)
            np.testing.assert_array_equal(graph(real, state), eager)
