"""Training steps on the TensorFlow backend: batches are cut on the host, the step is one graph on one thread."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from studies.common.cifar10 import Split
from studies.common.cifar_resnet import MEAN, STD
from studies.runner.batches import Epoch, cut, pad


class Steps:
    """Runs epochs of a compiled model. Variables change in place.

    loss: (targets, logits) -> scalar.   teacher: gives the targets instead of the labels; never trained.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Any,
        train: Split,
        teacher: keras.Model | None = None,
        jit_compile: bool = False,  # XLA has no convolutions of oneDNN: its step takes over twice as long
    ):
        self.padded, self.labels = pad(train[0]), train[1].astype(np.int32)
        optimizer = model.optimizer
        optimizer.build(model.trainable_variables)

        def step(pixels: Any, labels: Any) -> tuple[Any, Any]:
            images = _values(pixels)
            targets = labels if teacher is None else ops.cast(teacher(images, training=False), "float32")
            with tf.GradientTape() as tape:
                logits = ops.cast(model(images, training=True), "float32")
                value = loss(targets, logits)
            gradients = tape.gradient(value, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            return value, ops.mean(ops.cast(ops.equal(ops.argmax(logits, -1), labels), "float32"))

        self._step = tf.function(step, jit_compile=jit_compile)

    def run(self, epoch: Epoch) -> tuple[np.ndarray, np.ndarray]:
        """The loss and the share of right classes of every step."""
        found = [
            self._step(tf.constant(cut(self.padded, epoch, step)), tf.constant(self.labels[epoch.rows[step]]))
            for step in range(len(epoch.rows))
        ]
        losses, right = np.array([[value.numpy() for value in pair] for pair in found]).T
        return losses, right


def predictor(model: keras.Model) -> Any:
    """uint8 images -> logits in inference mode."""
    forward = tf.function(lambda pixels: model(_values(pixels), training=False), jit_compile=False)
    return lambda pixels: forward(tf.constant(pixels)).numpy()


def _values(pixels: Any) -> Any:
    return (ops.cast(pixels, "float32") / 255 - MEAN) / STD
