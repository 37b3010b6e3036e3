"""The cosine schedule against the published formula, and the callback that applies it."""

import contextlib
import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowbit import callbacks, schedules
from keras_lowbit.keras_graph.variables import to_numpy


@pytest.mark.parametrize("step", [0, 1, 199, 399, 400, 401, 1234])
def test_published_settings_give_the_published_rate(step):
    cycle = step % 400
    want = 1e-3 * math.exp(-1e-4 * step) * abs(math.cos(math.pi * cycle / (4 * 400))) + 1e-7
    got = schedules.cosine_restarts(step, 1e-3, 400, fraction=0.25, decay=1e-4)
    assert got == pytest.approx(want, rel=1e-12)


def test_default_falls_to_0_and_starts_again():
    rates = [schedules.cosine_restarts(step, 0.01, period=10) for step in range(21)]
    assert rates[0] == rates[10] == rates[20] == pytest.approx(0.01, rel=1e-4)
    assert rates[9] < 0.002
    assert all(after < before for before, after in itertools.pairwise(rates[:10]))


@pytest.mark.parametrize(
    "arguments", [{"learning_rate": 0.0}, {"period": 0}, {"fraction": 0}, {"decay": -1}, {"step": -1}, {"period": True}]
)
def test_bad_numbers_are_refused(arguments):
    with pytest.raises(ValueError, match="period 1 or more"):
        schedules.cosine_restarts(**({"step": 0} | arguments))


def model(rate=0.5):
    built = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    built.compile(keras.optimizers.Adam(rate), "mse", jit_compile=False)
    return built


def test_callback_sets_every_step_and_empties_the_slots_at_a_restart():
    built, seen = model(), []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append((float(self.model.optimizer.learning_rate), int(to_numpy(self.model.optimizer.iterations))))

    inputs = np.random.default_rng(0).normal(size=(20, 2)).astype("float32")
    restarts = callbacks.CosineRestarts(0.1, period=3)
    history = built.fit(inputs, inputs[:, :1], batch_size=4, epochs=1, callbacks=[restarts, Watch()], verbose=0)
    rates, iterations = zip(*seen, strict=True)
    np.testing.assert_allclose(rates, [schedules.cosine_restarts(step, 0.1, 3) for step in range(5)], rtol=1e-6)
    assert iterations == (1, 2, 3, 1, 2)
    assert history.history["learning_rate"] == [schedules.cosine_restarts(4, 0.1, 3)]


class Watch(keras.callbacks.Callback):
    """Rate and step count of the optimizer behind every execution; kills the fit at the beginning of an epoch."""

    def __init__(self, kill_at=None):
        super().__init__()
        self.kill_at, self.seen = kill_at, []

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.kill_at:
            raise KeyboardInterrupt

    def on_train_batch_end(self, batch, logs=None):
        optimizer = self.model.optimizer
        self.seen.append((float(to_numpy(optimizer.learning_rate)), int(to_numpy(optimizer.iterations))))


INPUTS = np.random.default_rng(1).normal(size=(16, 2)).astype("float32")


def watched(data=None, period=6, together=1, kill_at=None, folder=None):
    """What `Watch` sees in three epochs of four batches."""
    built, watch = model(), Watch(kill_at)
    built.compile(keras.optimizers.Adam(0.5), "mse", steps_per_execution=together, jit_compile=False)
    before = [keras.callbacks.BackupAndRestore(folder)] if folder else []
    inputs = {"x": INPUTS, "y": INPUTS[:, :1], "batch_size": 4} if data is None else {"x": data}
    with contextlib.suppress(KeyboardInterrupt):
        built.fit(
            **inputs,
            callbacks=[*before, callbacks.CosineRestarts(0.1, period), watch],
            epochs=3,
            shuffle=False,
            verbose=0,
        )
    return watch.seen


@pytest.mark.parametrize(("period", "together", "kill_at"), [(6, 1, 1), (4, 1, 1), (6, 1, 2), (7, 3, 2)])
def test_a_resumed_fit_takes_up_its_place_in_the_cycle(tmp_path, period, together, kill_at):
    arguments = {"period": period, "together": together, "folder": tmp_path / "backup"}
    first = watched(kill_at=kill_at, **arguments)
    assert first + watched(**arguments) == watched(period=period, together=together)


def test_steps_of_one_execution_count_as_steps():
    rates, iterations = zip(*watched(together=2, period=5), strict=True)
    begun = range(0, 12, 2)
    np.testing.assert_allclose(rates, [schedules.cosine_restarts(step, 0.1, 5) for step in begun], rtol=1e-6)
    assert iterations == (2, 4, 6, 2, 4, 2)  # restarts before steps 6 and 10, the first executions behind 5 and 10


def test_steps_are_counted_where_the_data_do_not_say_how_many_there_are():
    known = tf.data.Dataset.from_tensor_slices((INPUTS, INPUTS[:, :1])).batch(4)
    unknown = known.filter(lambda inputs, targets: True)
    assert int(unknown.cardinality()) < 0
    with pytest.warns(UserWarning, match="ran out of data"):  # Keras', of every data set of unknown length
        found = watched(unknown)
    # Not the optimizer's own count: Keras lets it count the batch that was not there.
    assert [rate for rate, _ in found] == [rate for rate, _ in watched(known)]


def test_optimizer_with_a_schedule_of_its_own_is_refused():
    built = model(keras.optimizers.schedules.CosineDecay(0.1, 10))
    with pytest.raises(ValueError, match="Compile with a plain number"):
        built.fit(np.zeros((4, 2)), np.zeros((4, 1)), callbacks=[callbacks.CosineRestarts()], verbose=0)
