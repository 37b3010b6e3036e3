"""The steps of INQ in `fit`, the recipes that hold them, and what the trained models export."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit import callbacks, recipes, schedules
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import QuantConv2D, QuantDense
from keras_lowbit.quantizers import Incremental, PowerOfTwo, Ternary
from tests.support.recorder import Recorder

RNG = np.random.default_rng(31)
IMAGES = RNG.normal(size=(24, 6, 6, 2)).astype("float32")
LABELS = RNG.integers(0, 3, 24)
STEPS = 3
PORTIONS = (0.5, 0.75, 1.0)
PAPER = {
    5: (0.5, 0.75, 0.875, 1.0),
    4: (0.3, 0.5, 0.8, 0.9, 0.95, 1.0),
    3: (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0),
    2: (0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 1.0),
}


def network(seed=1, partition="random", optimizer=None, jit_compile=False):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 2))
    kernel, head = Incremental(PowerOfTwo(4), partition), Incremental(Ternary(), partition)
    hidden = QuantConv2D(4, 3, kernel_quantizer=kernel, output_quantizer="activation", name="conv")(inputs)
    hidden = keras.layers.Flatten()(keras.layers.BatchNormalization()(hidden))
    model = keras.Model(inputs, QuantDense(3, kernel_quantizer=head, name="head")(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss, jit_compile=jit_compile)
    return model


def fit(model, *listeners, epochs=5):
    arguments = {"batch_size": 8, "shuffle": False, "verbose": 0, "epochs": epochs, "callbacks": list(listeners)}
    return model.fit(IMAGES, LABELS, **arguments).history


def frozen_fractions(model):
    """Of every kernel: number of frozen weights."""
    masks = [to_numpy(model.get_layer(name).kernel_host.state["mask"]) for name in ("conv", "head")]
    return [int(mask.sum()) for mask in masks]


def test_portions_at_epoch_boundaries_and_a_fresh_optimizer_at_each_step():
    model = network()
    sizes = [int(np.prod(model.get_layer(name).kernel.shape)) for name in ("conv", "head")]
    recorder = Recorder(lambda m: (frozen_fractions(m), int(m.optimizer.iterations)))
    history = fit(model, callbacks.PartitionSchedule(PORTIONS), recorder)
    wanted = [0.5, 0.5, 0.75, 0.75, 1.0]
    assert history["portion"] == wanted
    assert [counts for counts, _ in recorder.seen] == [[round(p * size) for size in sizes] for p in wanted]
    assert [steps for _, steps in recorder.seen] == [0, STEPS, 0, STEPS, 0]
    assert history["flip_rate"][-1] == 0.0
    assert max(history["flip_rate"][:4]) > 0
    for name in ("conv", "head"):  # the kernels hold the grid when all is frozen
        layer = model.get_layer(name)
        np.testing.assert_array_equal(np.asarray(layer.quantized_kernel(True)), klb.quantized_weights(model)[name].real)


def test_slots_and_learning_rate_start_anew_unless_told_otherwise():
    rate = keras.optimizers.schedules.ExponentialDecay(0.05, 1, 0.5)

    def look(model):
        slots = [float(np.abs(slot.numpy()).max()) for slot in model.optimizer.variables[1:]]
        return float(model.optimizer.learning_rate), max(slots)

    recorder = Recorder(look)
    model = network(optimizer=keras.optimizers.SGD(rate, 0.9))
    model.optimizer.build(model.trainable_variables)
    fit(model, callbacks.PartitionSchedule(PORTIONS), recorder)
    for epoch in (0, 2, 4):
        assert recorder.seen[epoch] == (pytest.approx(0.05), 0.0)
    for epoch in (1, 3):
        assert recorder.seen[epoch][0] == pytest.approx(0.05 / 2**STEPS)
        assert recorder.seen[epoch][1] > 0
    kept = Recorder(lambda m: int(m.optimizer.iterations))
    fit(network(), callbacks.PartitionSchedule(PORTIONS, reset_optimizer=False), kept)
    assert kept.seen == [STEPS * epoch for epoch in range(5)]


def test_epochs_of_several_fits_together():
    model, recorder = network(), Recorder(lambda m: frozen_fractions(m)[0])
    schedule = callbacks.PartitionSchedule(PORTIONS, epochs=7)
    fit(model, schedule, recorder, epochs=2)
    model.fit(IMAGES, LABELS, initial_epoch=2, epochs=7, verbose=0, callbacks=[schedule, recorder])
    assert recorder.seen == [36, 36, 36, 54, 54, 54, 72]


def test_a_longer_fit_goes_on_with_the_last_step():
    recorder = Recorder(lambda m: int(m.optimizer.iterations))
    history = fit(network(), callbacks.PartitionSchedule(PORTIONS, epochs=5), recorder, epochs=7)
    assert history["portion"] == [0.5, 0.5, 0.75, 0.75, 1.0, 1.0, 1.0]
    assert recorder.seen[4:] == [0, STEPS, 2 * STEPS]  # a decaying learning rate falls as far as in the other steps


class Killed(Exception):
    pass


class KillAt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise Killed


def test_a_killed_fit_resumes_to_the_same_bits(tmp_path):
    undisturbed = network(jit_compile="auto")
    history = fit(undisturbed, callbacks.PartitionSchedule(PORTIONS))
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(Killed):
        fit(network(jit_compile="auto"), backup, callbacks.PartitionSchedule(PORTIONS), KillAt(2))
    resumed = network(seed=2, jit_compile="auto")
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    rest = fit(resumed, backup, callbacks.PartitionSchedule(PORTIONS))
    for name in ("loss", "portion", "flip_rate"):
        assert rest[name] == history[name][2:]
    ours, theirs = (m.variables + m.optimizer.variables for m in (resumed, undisturbed))
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(to_numpy(left), to_numpy(right), err_msg=left.path)


def test_a_layer_that_is_ahead_waits_for_the_others():
    model = network()
    callbacks.partition.freeze_portion(model.get_layer("conv"), 0.75, np.random.default_rng(0))
    recorder = Recorder(frozen_fractions)
    fit(model, callbacks.PartitionSchedule(PORTIONS), recorder)
    assert [conv for conv, _ in recorder.seen] == [54, 54, 54, 54, 72]
    assert [head for _, head in recorder.seen] == [96, 96, 144, 144, 192]


def test_another_seed_draws_other_weights():
    masks = []
    for seed in (0, 0, 1):
        model = network()
        fit(model, callbacks.PartitionSchedule(PORTIONS, epochs=5, seed=seed), epochs=1)
        masks.append(to_numpy(model.get_layer("head").kernel_host.state["mask"]))
    np.testing.assert_array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


def test_a_model_with_nothing_to_freeze_is_refused():
    inputs = keras.Input((6, 6, 2))
    model = keras.Model(inputs, QuantDense(3, kernel_quantizer=Ternary())(keras.layers.Flatten()(inputs)))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r'no built layer with an incremental quantizer.*"inq-5"'):
        fit(model, callbacks.PartitionSchedule(5))


def test_fewer_epochs_than_steps_are_refused():
    with pytest.raises(ValueError, match="4 steps need at least 4 epochs, got epochs=3"):
        callbacks.PartitionSchedule(5, epochs=3)
    with pytest.raises(ValueError, match="3 steps need at least 3 epochs, got epochs=2"):
        fit(network(), callbacks.PartitionSchedule(PORTIONS), epochs=2)


@pytest.mark.parametrize("bits", PAPER)
def test_portions_of_the_paper(bits):
    assert schedules.portions(bits) == PAPER[bits] == schedules.portions(list(PAPER[bits]))
    recipe = recipes.get(f"inq-{bits}")
    assert recipe.plan[0].kernel == Incremental(PowerOfTwo(bits))
    assert recipes.Recipe.from_json(recipe.to_json()) == recipe
    (schedule,) = recipe.callbacks(epochs=16)
    assert (schedule.values, schedule.epochs) == (PAPER[bits], 16)
    mine = recipe.replace(schedule={"portions": (0.5, 1.0)})
    assert recipes.Recipe.from_json(mine.to_json()).callbacks(2)[0].values == (0.5, 1.0)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (6, "No portions are published for 6 bits"),
        (1, "No portions are published for 1 bits"),
        ((0.5, 0.9), "must be 1"),
        ((0.5, 0.4, 1.0), "must grow"),
        ((0.5, 1.5), r"in \[0, 1\]"),
        ((), "at least one"),
        ("inq", "bits of the paper's table"),
        (4.0, "bits of the paper's table"),
    ],
)
def test_wrong_portions(schedule, words):
    with pytest.raises((ValueError, TypeError), match=words):
        schedules.portions(schedule)


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (1, 5), (4, 4), (4, 7), (4, 16), (10, 31)])
def test_the_last_epoch_alone_is_the_last_step(steps, epochs):
    found = [schedules.step_at(epoch, steps, epochs) for epoch in range(epochs)]
    assert sorted(set(found)) == list(range(steps))
    assert found == sorted(found)
    assert found.count(steps - 1) == (1 if steps > 1 else epochs)
    lengths = [found.count(step) for step in range(steps - 1)]
    assert not lengths or max(lengths) - min(lengths) <= 1
    assert schedules.step_at(epochs + 3, steps, epochs) == steps - 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 4, 3), "4 steps need at least 4 epochs"),
        ((0, 0, 3), "whole number of stages"),
        ((-1, 2, 3), "counted from 0, got epoch=-1"),
        ((-1, 1, 3), "counted from 0, got epoch=-1"),
    ],
)
def test_step_at_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        schedules.step_at(*arguments)


def float_model(units=3):
    keras.utils.set_random_seed(4)
    inputs = keras.Input((6, 6, 2))
    hidden = keras.layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
    hidden = keras.layers.ReLU()(keras.layers.BatchNormalization()(hidden))
    return keras.Model(inputs, keras.layers.Dense(units, name="head")(keras.layers.Flatten()(hidden)))


def trained(name, model):
    recipe = recipes.get(name)
    quantized, _ = klb.quantize_model(model, recipe)
    quantized.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    epochs = len(schedules.portions(recipe.schedule["portions"]))
    fit(quantized, *recipe.callbacks(epochs=epochs), epochs=epochs)
    assert klb.reestimate_batch_norms(quantized, IMAGES, batch_size=8, check=False, verbose=0) == 1
    klb.calibrate(quantized, IMAGES, batch_size=8, verbose=0)
    return quantized


@pytest.mark.parametrize("name", ["inq-4", "inq-2"])
def test_a_trained_model_exports_and_verifies(tmp_path, name):
    quantized = trained(name, float_model())
    for weights in klb.quantized_weights(quantized).values():
        assert weights.codes.dtype == np.int8
        assert set(np.abs(np.unique(weights.codes))) <= ({0, 1, 2, 4, 8} if name == "inq-4" else {0, 1})
    klb.export_litert(quantized, tmp_path / "model.tflite")
    assert klb.verify(quantized, tmp_path / "model.tflite", IMAGES[:8]).ok


def five_bits(spread):
    """A model whose head has filters 0 and 1 over the given octaves below the top, its filter 2 at the top."""
    model = float_model()
    shape = model.get_layer("head").kernel.shape
    kernel = np.ones(shape, np.float32)
    kernel[::2, 0] = 2.0 ** -spread[0]
    kernel[:, 1] = -(2.0 ** -spread[1])
    model.get_layer("head").kernel.assign(kernel)
    quantized, _ = klb.quantize_model(model, "inq-5", overrides={"conv": "ternary"})
    callbacks.partition.freeze_portion(quantized.get_layer("head"), 1.0, np.random.default_rng(0))
    klb.calibrate(quantized, IMAGES, verbose=0)
    return quantized, kernel


def test_five_bits_with_both_ends_in_a_filter_do_not_fit_int8(tmp_path):
    quantized, kernel = five_bits((7, 7))
    weights = klb.quantized_weights(quantized)["head"]
    assert weights.codes.dtype == np.int16
    assert set(np.unique(weights.codes[:, 0])) == {1, 128}
    np.testing.assert_array_equal(weights.real, kernel)
    with pytest.raises(ValueError, match=r"'head' has filters whose codes reach from 1 to 128.*int8_exact=True"):
        klb.export_litert(quantized, tmp_path / "model.tflite", overflow="error")
    assert not (tmp_path / "model.tflite").exists()
    with pytest.warns(UserWarning, match=r"1 layer with codes beyond 127: 32 of 192 weights altered to fit int8"):
        klb.export_litert(quantized, tmp_path / "model.tflite")
    assert klb.verify(quantized, tmp_path / "model.tflite", IMAGES[:8]).ok


def test_five_bits_without_both_ends_in_any_filter_are_exact_int8(tmp_path):
    quantized, kernel = five_bits((6, 7))
    weights = klb.quantized_weights(quantized)["head"]
    assert weights.codes.dtype == np.int8
    np.testing.assert_array_equal(weights.real, kernel)
    assert weights.scale.shape == (1, 3)
    klb.export_litert(quantized, tmp_path / "model.tflite")
    assert klb.verify(quantized, tmp_path / "model.tflite", IMAGES[:8]).ok
