"""The batch norm of the runner, which makes its steps fast."""

import keras
import numpy as np
import pytest

from studies.runner.batch_norm import FusedBatchNormalization


@pytest.mark.parametrize("training", [True, False])
def test_fused_batch_norm_is_keras_own(training):
    rng = np.random.default_rng(0)
    images = rng.normal(2, 3, (8, 4, 4, 5)).astype(np.float32)
    upstream = rng.normal(size=images.shape).astype(np.float32)
    values = [rng.uniform(0.5, 2, 5).astype(np.float32) for _ in range(4)]
    found = []
    for kind in (keras.layers.BatchNormalization, FusedBatchNormalization):
        layer = kind(momentum=0.9, epsilon=1e-5)
        layer.build(images.shape)
        layer.set_weights(values)
        found.append((*_differentiated(layer, images, upstream, training), *layer.get_weights()))
    for own, fused in zip(*found, strict=True):
        np.testing.assert_allclose(fused, own, rtol=2e-5, atol=2e-5)


def _differentiated(layer, images, upstream, training):
    import tensorflow as tf

    images = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = layer(images, training=training)
    gradients = tape.gradient(outputs, [images, layer.gamma.value, layer.beta.value], output_gradients=upstream)
    return outputs.numpy(), *(gradient.numpy() for gradient in gradients)
