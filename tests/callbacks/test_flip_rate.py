"""flip_rate: the fraction of codes that an epoch changed."""

import keras
import numpy as np

from keras_lowbit import callbacks
from tests.support.training import compiled, fit


def test_flip_rate_is_the_fraction_of_codes_that_changed():
    model = compiled(keras.optimizers.SGD(0.05))
    before = []
    keep = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: before.append(callbacks.weight_codes(model)),
        on_epoch_end=lambda epoch, logs: before.append(callbacks.weight_codes(model)),
    )
    history = fit(model, keep, callbacks.RatioSchedule(), epochs=4)
    assert len(before[0]) == 3
    want = []
    for old, new in zip(before[::2], before[1::2], strict=True):
        old, new = (np.concatenate([codes.ravel() for codes in side]) for side in (old, new))
        want.append(np.mean(old != new))
    np.testing.assert_allclose(history["flip_rate"], want, rtol=1e-12)
    assert max(want) > 0


def test_flip_rate_of_nothing_is_zero():
    assert callbacks.flip_rate([], []) == 0.0
