"""RatioSchedule: ratios at epoch boundaries, and what of the optimizer starts anew with a stage."""

import keras
import numpy as np
import pytest

from keras_lowbit import callbacks
from keras_lowbit.quantizers import Ternary
from tests.support.recorder import Recorder
from tests.support.training import STEPS, compiled, fit, ratios_of


def test_ratio_at_every_epoch_and_one_at_the_end():
    model, recorder = compiled("sgd"), Recorder(ratios_of)
    history = fit(model, callbacks.RatioSchedule(), recorder)
    assert recorder.seen == [{0.5}, {0.5}, {0.75}, {0.75}, {0.875}, {0.875}, {1.0}, {1.0}]
    assert history["ratio"] == [0.5, 0.5, 0.75, 0.75, 0.875, 0.875, 1.0, 1.0]


def test_epochs_may_be_more_than_those_of_this_fit():
    recorder = Recorder(ratios_of)
    fit(compiled("sgd"), callbacks.RatioSchedule("average", epochs=20), recorder, epochs=5)
    assert recorder.seen == [{np.float32(0.2)}] * 4 + [{np.float32(0.4)}]


def test_every_stage_starts_the_optimizer_and_the_learning_rate_schedule_anew():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    model = compiled(keras.optimizers.SGD(schedule, momentum=0.9))
    recorder = Recorder(
        lambda m: (
            int(m.optimizer.iterations),
            float(m.optimizer.learning_rate),
            float(np.abs(m.optimizer.variables[1]).max()),
        )
    )
    fit(model, callbacks.RatioSchedule(), recorder)
    for stage in range(4):
        steps, rate, momentum = recorder.seen[2 * stage]
        assert (steps, rate, momentum) == (0, pytest.approx(0.1), 0.0)
        steps, rate, momentum = recorder.seen[2 * stage + 1]
        assert (steps, rate) == (STEPS, pytest.approx(0.1 * 0.5**STEPS))
        assert momentum > 0


class Halve(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.optimizer.learning_rate = float(self.model.optimizer.learning_rate) / 2


@pytest.mark.parametrize(("arguments", "start"), [({}, 0.04), ({"learning_rate": 0.02}, 0.02)])
def test_a_plain_learning_rate_restarts(arguments, start):
    model, recorder = compiled(keras.optimizers.SGD(0.04)), Recorder(lambda m: float(m.optimizer.learning_rate))
    fit(model, callbacks.RatioSchedule(**arguments), Halve(), recorder)
    np.testing.assert_allclose(recorder.seen, [start, start / 2] * 4, rtol=1e-6)


def test_without_reset_nothing_but_the_ratio_changes():
    model = compiled(keras.optimizers.SGD(0.04, momentum=0.9))
    recorder = Recorder(lambda m: (int(m.optimizer.iterations), float(m.optimizer.learning_rate)))
    history = fit(model, callbacks.RatioSchedule(reset_optimizer=False), Halve(), recorder)
    assert [steps for steps, _ in recorder.seen] == [STEPS * epoch for epoch in range(8)]
    np.testing.assert_allclose([rate for _, rate in recorder.seen], 0.04 * 0.5 ** np.arange(8), rtol=1e-6)
    assert history["ratio"][-1] == 1.0


def test_of_a_loss_scale_optimizer_only_the_inner_one_restarts():
    model = compiled(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01, momentum=0.9), dynamic_growth_steps=2)
    )
    recorder = Recorder(lambda m: (int(m.optimizer.iterations), float(m.optimizer.dynamic_scale.numpy())))
    fit(model, callbacks.RatioSchedule(), recorder)
    assert [steps for steps, _ in recorder.seen] == [0, STEPS] * 4
    scales = [scale for _, scale in recorder.seen]
    assert scales == sorted(scales)
    assert scales[-1] > scales[0] == 2.0**15


@pytest.mark.parametrize("first", [True, False])
def test_swapped_averages_survive_a_new_stage(first):
    # Between on_epoch_end and the next on_epoch_begin the averages' slots hold the weights themselves.
    def run(listeners):
        keras.utils.set_random_seed(1)
        model = compiled(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9))
        fit(model, *listeners, epochs=4)
        return [variable.numpy() for variable in model.trainable_variables]

    swap, stage = keras.callbacks.SwapEMAWeights(swap_on_epoch=True), callbacks.RatioSchedule((0.5, 1.0))
    swapped = run([swap, stage] if first else [stage, swap])
    plain = run([callbacks.RatioSchedule((0.5, 1.0))])
    for left, right in zip(swapped, plain, strict=True):
        # Swapping adds and subtracts: each swap costs a rounding.
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)


def test_multi_optimizer_needs_reset_optimizer_false():
    def multi():
        return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.01)))

    with pytest.raises(ValueError, match=r"MultiOptimizer.*reset_optimizer=False"):
        fit(compiled(multi()), callbacks.RatioSchedule())


def scheduled():
    return keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.9), 0.9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: callbacks.RatioSchedule("exponentail"), "Known names"),
        (lambda: callbacks.RatioSchedule(epochs=3), "4 stages need at least 4 epochs"),
        (lambda: fit(compiled("sgd"), callbacks.RatioSchedule(), epochs=3), "4 stages need at least 4 epochs"),
        (lambda: fit(compiled("sgd", kernel=Ternary()), callbacks.RatioSchedule()), "no stochastic quantizer.*sq-twn"),
        (
            lambda: fit(compiled(scheduled()), callbacks.RatioSchedule(learning_rate=0.1)),
            "Leave learning_rate out",
        ),
    ],
)
def test_wrong_use_says_what_to_do(make, words):
    with pytest.raises(ValueError, match=words):
        make()
