"""Training steps on the JAX backend: the images stay on the device, a step with its crops is one compiled program."""

import dataclasses
from typing import Any

import jax
import keras
import numpy as np
from keras import ops

from studies.common.cifar10 import Split
from studies.common.cifar_resnet import MEAN, STD
from studies.runner.batches import MARGIN, Epoch, pad


class Steps:
    """Runs epochs of a compiled model. Its variables are read before an epoch and written after it.

    loss, teacher: as in `tensorflow_steps.Steps`. Crops, mirrors and normalisation are part of the program.
    """

    def __init__(self, model: keras.Model, loss: Any, train: Split, teacher: keras.Model | None = None):
        self.model, self.optimizer = model, model.optimizer
        self.optimizer.build(model.trainable_variables)
        self.data = jax.device_put((pad(train[0]), train[1].astype(np.int32)))
        optimizer = self.optimizer

        def loss_and_rest(trained: Any, others: Any, images: Any, targets: Any) -> Any:
            logits, others = model.stateless_call(trained, others, images, training=True)
            logits = ops.cast(logits, "float32")
            return loss(targets, logits), (logits, others)

        def targets_of(teacher_values: Any, images: Any, labels: Any) -> Any:
            if teacher is None:
                return labels
            return ops.cast(teacher.stateless_call(*teacher_values, images, training=False)[0], "float32")

        def step(state: Any, teacher_values: Any, data: Any, chosen: Any) -> Any:
            trained, others, slots = state
            images, classes = _values(_cut(data[0], *chosen)), data[1][chosen[0]]
            targets = targets_of(teacher_values, images, classes)
            differentiate = jax.value_and_grad(loss_and_rest, has_aux=True)
            (value, (logits, others)), gradients = differentiate(trained, others, images, targets)
            trained, slots = optimizer.stateless_apply(slots, gradients, trained)
            return (trained, others, slots), (value, ops.mean(ops.cast(logits.argmax(-1) == classes, "float32")))

        self._step = jax.jit(step, donate_argnums=0)
        self._teacher = (
            None if teacher is None else _values_of(teacher.trainable_variables, teacher.non_trainable_variables)
        )

    def run(self, epoch: Epoch) -> tuple[np.ndarray, np.ndarray]:
        """The loss and the share of right classes of every step; none is waited for before the last."""
        groups = (self.model.trainable_variables, self.model.non_trainable_variables, self.optimizer.variables)
        state, found = _values_of(*groups), []
        epoch = jax.device_put(dataclasses.astuple(epoch))
        for step in range(len(epoch[0])):
            state, measured = self._step(state, self._teacher, self.data, [array[step] for array in epoch])
            found.append(measured)
        for variables, values in zip(groups, state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        losses, right = np.array(jax.device_get(found)).T
        return losses, right


def predictor(model: keras.Model) -> Any:
    """uint8 images -> logits in inference mode, with the variables as they are at each call."""
    groups = (model.trainable_variables, model.non_trainable_variables)
    forward = jax.jit(lambda values, pixels: model.stateless_call(*values, _values(pixels), training=False)[0])
    return lambda pixels: np.asarray(forward(_values_of(*groups), pixels), np.float32)


def _values_of(*groups: Any) -> tuple[list[Any], ...]:
    return tuple([variable.value for variable in variables] for variables in groups)


def _cut(padded: Any, rows: Any, top: Any, left: Any, mirrored: Any) -> Any:
    """The images of one step, as `batches.cut` makes them."""
    size = padded.shape[1] - 2 * MARGIN

    def one(row: Any, y: Any, x: Any, mirror: Any) -> Any:
        image = jax.lax.dynamic_slice(padded, (row, y, x, 0), (1, size, size, 3))[0]
        return ops.where(mirror, image[:, ::-1], image)

    return jax.vmap(one)(rows, top, left, mirrored)


def _values(pixels: Any) -> Any:
    return (ops.cast(pixels, "float32") / 255 - MEAN) / STD
