import keras
import numpy as np
import pytest

from keras_lowbit import callbacks, layers
from keras_lowbit.layers import QuantConv2D, QuantDense, freeze_ranges, hosts, set_ratio
from keras_lowbit.quantizers import Binary, Stochastic, Ternary
from tests.support.recorder import Recorder

RNG = np.random.default_rng(9)
IMAGES = RNG.normal(size=(24, 6, 6, 2)).astype("float32")
LABELS = RNG.integers(0, 3, 24)
BATCH = 8
STEPS = 3


SQ_TWN = Stochastic(Ternary())


def network(kernel=SQ_TWN, output="activation"):
    inputs = keras.Input((6, 6, 2))
    hidden = QuantConv2D(4, 3, kernel_quantizer=kernel, output_quantizer=output, name="conv")(inputs)
    hidden = keras.layers.BatchNormalization()(hidden)
    inner = keras.Sequential(
        [keras.Input((4, 4, 4)), QuantConv2D(3, 1, kernel_quantizer=kernel, name="conv")], name="inner"
    )
    hidden = keras.layers.Flatten()(inner(hidden))
    return keras.Model(inputs, QuantDense(3, kernel_quantizer=Binary(), name="head")(hidden))


def compiled(optimizer, **arguments):
    model = network(**arguments)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def fit(model, *listeners, epochs=8):
    arguments = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    return model.fit(IMAGES, LABELS, epochs=epochs, callbacks=list(listeners), **arguments).history


def ratios_of(model):
    return {float(host.state["ratio"].numpy()) for _, host in hosts(model) if "ratio" in host.state}


def test_ratio_at_every_epoch_and_one_at_the_end():
    model, recorder = compiled("sgd"), Recorder(ratios_of)
    history = fit(model, callbacks.RatioSchedule(), recorder)
    assert recorder.seen == [{0.5}, {0.5}, {0.75}, {0.75}, {0.875}, {0.875}, {1.0}, {1.0}]
    assert history["ratio"] == [0.5, 0.5, 0.75, 0.75, 0.875, 0.875, 1.0, 1.0]


def test_epochs_may_be_more_than_those_of_this_fit():
    recorder = Recorder(ratios_of)
    fit(compiled("sgd"), callbacks.RatioSchedule("average", epochs=20), recorder, epochs=5)
    assert recorder.seen == [{np.float32(0.2)}] * 4 + [{np.float32(0.4)}]


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


def test_moving_averages_restart_from_the_weights_of_the_first_step():
    model = compiled(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9))
    fit(model, callbacks.RatioSchedule((0.5, 1.0), epochs=9), epochs=4)
    callbacks.reset_optimizer(model)
    model.train_on_batch(IMAGES[:BATCH], LABELS[:BATCH])
    averages = [slot for slot in model.optimizer.variables if slot.name.endswith("_average")]
    assert len(averages) == len(model.trainable_variables)
    for average, variable in zip(averages, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(average.numpy(), variable.numpy())


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


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: callbacks.RatioSchedule("exponentail"), "Known names"),
        (lambda: callbacks.RatioSchedule(epochs=3), "4 stages need at least 4 epochs"),
        (lambda: fit(compiled("sgd"), callbacks.RatioSchedule(), epochs=3), "4 stages need at least 4 epochs"),
        (lambda: fit(compiled("sgd", kernel=Ternary()), callbacks.RatioSchedule()), "no stochastic quantizer.*sq-twn"),
        (
            lambda: fit(compiled(OPTIMIZERS["scheduled"]()), callbacks.RatioSchedule(learning_rate=0.1)),
            "Leave learning_rate out",
        ),
        (lambda: callbacks.FreezeRanges(-1), "0 or more, got epoch=-1"),
        (lambda: fit(compiled("sgd", output=None), callbacks.FreezeRanges(1)), "nothing to freeze"),
        (
            lambda: fit(compiled("sgd"), callbacks.FreezeRanges(0)),
            "have seen no data, the first is 'conv/output_quantizer'",
        ),
        (lambda: set_ratio(network(), 1.5), r"in \[0, 1\], got 1.5. For 50 % write 0.5"),
        (lambda: set_ratio(network(), float("nan")), "got nan"),
        (lambda: set_ratio(network(kernel=Ternary()), 0.5), "no stochastic quantizer"),
        (lambda: freeze_ranges(network()), "1 of 1 activation ranges have seen no data"),
    ],
)
def test_wrong_use_says_what_to_do(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_model_without_variables_is_told_to_build():
    model = keras.Sequential([QuantDense(3, kernel_quantizer=Stochastic())])
    with pytest.raises(ValueError, match=r"no variables yet. Build it first"):
        set_ratio(model, 0.5)


def test_multi_optimizer_needs_reset_optimizer_false():
    def multi():
        return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.01)))

    with pytest.raises(ValueError, match=r"MultiOptimizer.*reset_optimizer=False"):
        fit(compiled(multi()), callbacks.RatioSchedule())


def test_hosts_are_found_in_nested_models_once_each_with_their_paths():
    model = network()
    assert sorted(path for path, _ in hosts(model)) == [
        "conv/kernel_quantizer",
        "conv/output_quantizer",
        "head/kernel_quantizer",
        "inner/conv/kernel_quantizer",
    ]
    shared = QuantDense(4, kernel_quantizer=Stochastic())
    inputs = keras.Input((4,))
    assert len(hosts(keras.Model(inputs, shared(shared(inputs))))) == 1


def test_set_ratio_reaches_every_stochastic_quantizer():
    model = network()
    set_ratio(model, 0.25)
    assert ratios_of(model) == {0.25}
    assert len(layers.find_layers(model, QuantDense)) == 1


def ranges_of(model):
    return [
        [float(host.state[key]) for key in ("minimum", "maximum")]
        for _, host in hosts(model)
        if "minimum" in host.state
    ]


def test_ranges_stop_at_the_given_epoch_and_can_be_released():
    model, recorder = compiled(keras.optimizers.SGD(0.1)), Recorder(ranges_of)
    fit(model, callbacks.FreezeRanges(2), recorder, epochs=4)
    assert recorder.seen[0] != recorder.seen[1] != recorder.seen[2]
    assert recorder.seen[2] == recorder.seen[3] == ranges_of(model)
    assert freeze_ranges(model, frozen=False) == 1
    fit(model, epochs=1)
    assert ranges_of(model) != recorder.seen[3]
