"""reset_optimizer: slots of every kind as a new optimizer has them, and what it refuses."""

import keras
import numpy as np
import pytest

from keras_lowbit import callbacks
from tests.support.training import BATCH, IMAGES, LABELS, compiled, fit

OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adagrad": lambda: keras.optimizers.Adagrad(0.01),
    "nadam": lambda: keras.optimizers.Nadam(0.01),
    "amsgrad": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.9, centered=True),
    "accumulating": lambda: keras.optimizers.SGD(0.01, momentum=0.9, gradient_accumulation_steps=2),
    "scheduled": lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.9), 0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_slots_return_to_the_values_of_a_new_optimizer(name):
    model = compiled(OPTIMIZERS[name]())
    fit(model, epochs=1)
    used = [slot.numpy() for slot in model.optimizer.variables]
    fresh = OPTIMIZERS[name]()
    fresh.build(model.trainable_variables)
    callbacks.reset_optimizer(model)
    for slot, new in zip(model.optimizer.variables, fresh.variables, strict=True):
        np.testing.assert_array_equal(slot.numpy(), new.numpy(), err_msg=slot.path)
    assert any(not np.array_equal(old, new.numpy()) for old, new in zip(used, fresh.variables, strict=True))


def test_moving_averages_restart_from_the_weights_of_the_first_step():
    model = compiled(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9))
    fit(model, callbacks.RatioSchedule((0.5, 1.0), epochs=9), epochs=4)
    callbacks.reset_optimizer(model)
    model.train_on_batch(IMAGES[:BATCH], LABELS[:BATCH])
    averages = [slot for slot in model.optimizer.variables if slot.name.endswith("_average")]
    assert len(averages) == len(model.trainable_variables)
    for average, variable in zip(averages, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(average.numpy(), variable.numpy())


class Unbuildable(keras.optimizers.SGD):
    def __init__(self, needed):
        super().__init__(0.01)

    def get_config(self):
        return {"learning_rate": 0.01}


def test_an_optimizer_that_cannot_be_rebuilt_is_named():
    model = compiled(Unbuildable(1))
    fit(model, epochs=1)
    with pytest.raises(ValueError, match=r"Unbuildable could not be built again.*reset_optimizer=False"):
        callbacks.reset_optimizer(model)


def test_changing_trainable_after_compile_is_refused():
    model = compiled("adam")
    fit(model, epochs=1)
    model.get_layer("conv").trainable = False
    with pytest.raises(ValueError, match=r"changed after compile\(\). Call compile\(\) again"):
        callbacks.reset_optimizer(model)
