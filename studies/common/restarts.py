"""Restarts of the optimizer without a quantizer's schedule: the control of staged methods."""

import keras

from keras_lowbit.callbacks import reset_optimizer


class Restarts(keras.callbacks.Callback):
    """Restarts the optimizer (slots, step count, so also its schedule) when a stage begins, as staged methods do."""

    def __init__(self, epochs_per_stage):
        super().__init__()
        self.epochs_per_stage = epochs_per_stage

    def on_epoch_begin(self, epoch, logs=None):
        """Epoch 0 starts with a fresh optimizer anyway."""
        if epoch and epoch % self.epochs_per_stage == 0:
            reset_optimizer(self.model)
