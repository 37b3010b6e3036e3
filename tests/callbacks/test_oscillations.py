"""FreezeOscillations and DampenOscillations: against a plain loop in float64, in `fit`, on every even grid, over a resume."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_lowbit as klb
from keras_lowbit import callbacks
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import QuantConv2D, QuantDense
from keras_lowbit.numerics.oscillation import Oscillation, damped
from keras_lowbit.quantizers import AdjustableThreshold, LearnedPowerOfTwo, LearnedStep, Ternary, Uniform

GRIDS = [LearnedStep(Uniform(3)), LearnedPowerOfTwo(Uniform(3)), AdjustableThreshold(Uniform(3))]
RNG = np.random.default_rng(5)
IMAGES = RNG.normal(size=(32, 5, 5, 2)).astype("float32")
LABELS = RNG.integers(0, 3, 32)


def model(kernel=GRIDS[0], rate=0.5, calibrated=True, **options):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((5, 5, 2))
    x = QuantConv2D(4, 3, activation="relu", kernel_quantizer=kernel, output_quantizer="activation", name="conv")(
        inputs
    )
    made = keras.Model(inputs, QuantDense(3, kernel_quantizer=kernel, name="head")(keras.layers.Flatten()(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(keras.optimizers.SGD(rate), loss, run_eagerly=True, **options)
    if calibrated:
        klb.calibrate(made, IMAGES, verbose=0)
    return made


def fit(made, *listeners, **options):
    arguments = {"batch_size": 8, "shuffle": False, "verbose": 0, "epochs": 1} | options
    return made.fit(IMAGES, LABELS, callbacks=list(listeners), **arguments).history


def codes(layer):
    return to_numpy(layer.kernel_host.encode(layer.kernel).codes)


def plain(rows, momentum, threshold):
    """The paper's equations, one weight and one step after the other: frequencies, averages, frozen codes or None."""
    found = []
    for weight in rows.T.astype(float):
        before, direction, frequency, average, frozen = weight[0], 0.0, 0.0, weight[0], None
        for code in weight[1:]:
            change = np.sign(code - before)
            turned = change != 0 and direction != 0 and change != direction
            frequency = momentum * turned + (1 - momentum) * frequency
            average = average if frozen is not None else momentum * code + (1 - momentum) * average
            if frozen is None and frequency > threshold:
                frozen = average = np.round(average)
            before, direction = code, change or direction
        found.append((frequency, average, frozen))
    return found


def test_frequencies_modes_and_freezing_are_those_of_a_plain_loop():
    rows = RNG.integers(-3, 4, (200, 40))
    rows[:, 0] = np.arange(200) // 60  # only ever up
    rows[:, 1] = np.where(np.arange(200) % 2, 1, 2)  # flips in every step
    rows[:, 2] = 3
    state = Oscillation.start(ops.convert_to_tensor(rows[0], "float32"))
    for row in rows[1:]:
        state = state.after(ops.convert_to_tensor(row, "float32"), 0.1).freezing(0.6)
    wanted = plain(rows, 0.1, 0.6)
    np.testing.assert_allclose(to_numpy(state.frequency), [row[0] for row in wanted], atol=1e-6)
    np.testing.assert_allclose(to_numpy(state.average), [row[1] for row in wanted], atol=1e-4)
    np.testing.assert_array_equal(to_numpy(state.frozen) > 0, [row[2] is not None for row in wanted])
    assert 0 < np.sum(to_numpy(state.frozen)) < 40
    assert wanted[0][0] == wanted[2][0] == 0


@pytest.mark.parametrize("kernel", GRIDS, ids=lambda grid: type(grid).__name__)
def test_a_frozen_weight_keeps_its_code_and_follows_the_step(kernel):
    made = model(kernel)
    freeze = callbacks.FreezeOscillations((0.02, 0.0), momentum=0.1)
    history = fit(made, freeze, epochs=3)
    frozen = [to_numpy(state.frozen) > 0 for state in freeze.state]
    stand = [to_numpy(state.average) for state in freeze.state]
    assert 0 < history["frozen"][0] <= history["frozen"][-1] < 1
    history = fit(made, freeze, epochs=2)
    for layer, mask, code in zip(freeze.layers, frozen, stand, strict=True):
        np.testing.assert_array_equal(codes(layer)[mask], code[mask])
        scale = np.broadcast_to(to_numpy(layer.kernel_host.encode(layer.kernel).scale), mask.shape)
        np.testing.assert_allclose(to_numpy(layer.kernel)[mask], (scale * code)[mask], rtol=1e-6)
    assert any(mask.any() for mask in frozen)


def test_a_threshold_that_nothing_reaches_changes_nothing():
    plainly, watched = model(), model()
    fit(plainly, epochs=2)
    history = fit(watched, callbacks.FreezeOscillations(1.0, momentum=0.1), epochs=2)
    for left, right in zip(plainly.weights, watched.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(left), to_numpy(right))
    assert history["frozen"] == [0.0, 0.0]
    assert history["oscillating"][-1] > 0


def test_the_threshold_follows_a_cosine_over_all_epochs():
    made, seen = model(), []
    freeze = callbacks.FreezeOscillations((0.8, 0.2))
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(freeze.value(batch)))
    fit(made, freeze, note, epochs=2)
    wanted = [0.2 + 0.6 * (1 + np.cos(np.pi * (step + 1) / 8)) / 2 for step in range(8)]
    np.testing.assert_allclose(seen, wanted, rtol=1e-12)


class Stop(Exception):
    """What stands for a kill."""


def test_a_resumed_fit_freezes_the_same_weights(tmp_path):
    def listeners(folder, stop=None):
        def end(epoch, logs):
            if epoch == stop:
                raise Stop

        freeze = callbacks.FreezeOscillations((0.03, 0.0), momentum=0.1, checkpoint=tmp_path / folder / "o")
        backup = keras.callbacks.BackupAndRestore(tmp_path / folder / "backup", delete_checkpoint=False)
        # The kill comes behind the file of the callback and before the backup of the same epoch.
        return [freeze, keras.callbacks.LambdaCallback(on_epoch_end=end), backup]

    whole, again = model(), model()
    (tmp_path / "whole").mkdir()
    (tmp_path / "again").mkdir()
    fit(whole, *listeners("whole"), epochs=4)
    with pytest.raises(Stop):
        fit(again, *listeners("again", stop=2), epochs=4)
    again = model()
    after = listeners("again")
    fit(again, *after, epochs=4)
    for left, right in zip(whole.weights, again.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(left), to_numpy(right))
    assert any(to_numpy(state.frozen).any() for state in after[0].state)


def test_a_file_of_other_kernels_and_a_damaged_one_are_refused(tmp_path):
    made, path = model(), tmp_path / "o"
    fit(made, callbacks.FreezeOscillations(checkpoint=path))
    other = model()
    other.layers[1].kernel.assign(2 * other.layers[1].kernel)
    with pytest.raises(ValueError, match=r"was written with other kernels than the model has now\. Delete it"):
        fit(other, callbacks.FreezeOscillations(checkpoint=path))
    path.write_bytes(b"half")
    with pytest.raises(ValueError, match="holds no oscillations, or is damaged"):
        fit(made, callbacks.FreezeOscillations(checkpoint=path))


def test_dampening_is_gradient_descent_on_the_distance_to_the_codes():
    kernel, on_grid = np.array([0.30, 0.74, -0.2, 1.9]), np.array([0.5, 0.5, 0.0, 1.5])
    found = damped(*(ops.convert_to_tensor(value, "float32") for value in (kernel, on_grid, np.full(4, 0.5))), 0.2)
    wanted = kernel - 0.1 * 2 * (kernel - on_grid)  # rate 0.1, strength 1
    wanted[-1] = 1.9  # beyond the grid's end
    np.testing.assert_allclose(to_numpy(found), wanted, rtol=1e-6)


@pytest.mark.parametrize("kernel", GRIDS, ids=lambda grid: type(grid).__name__)
def test_dampened_weights_come_nearer_to_their_codes(kernel):
    free, damp = model(kernel, 0.05), model(kernel, 0.05)
    loose = fit(free, callbacks.DampenOscillations(0.0), epochs=3)["off_grid"]
    history = fit(damp, callbacks.DampenOscillations((0.0, 5.0)), epochs=3)["off_grid"]
    assert history[-1] < 0.5 * loose[-1]
    assert 0.2 < loose[0] < 0.4


def test_nothing_moves_without_strength():
    plainly, watched = model(), model()
    fit(plainly)
    fit(watched, callbacks.DampenOscillations(0.0))
    for left, right in zip(plainly.weights, watched.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(left), to_numpy(right))


@pytest.mark.parametrize("callback", [callbacks.FreezeOscillations, callbacks.DampenOscillations])
def test_what_it_does_not_work_with_is_named(callback):
    for kernel in (Ternary(), Uniform(3)):  # the step of Uniform follows the weights, so nothing could stand
        with pytest.raises(
            ValueError, match=rf"works on grids whose step is learnt .*'conv' has {type(kernel).__name__}"
        ):
            fit(model(kernel), callback())
    with pytest.raises(ValueError, match=r"has no quantized kernel, so nothing oscillates\. Leave "):
        fit(model(None, calibrated=False), callback())
    with pytest.raises(
        ValueError, match=r"'conv' takes its threshold from the weights as they are\. Call klb\.calibrate"
    ):
        fit(model(GRIDS[2], calibrated=False), callback())
    with pytest.raises(ValueError, match="compiled with steps_per_execution=2"):
        fit(model(steps_per_execution=2), callback())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: callbacks.FreezeOscillations((0.1, 0.2, 0.3)), r"two: \(first, last\); got \(0.1, 0.2, 0.3\)"),
        (lambda: callbacks.FreezeOscillations(-1), "at least 0"),
        (lambda: callbacks.FreezeOscillations(momentum=0.0), "momentum above 0 and at most 1, got 0.0"),
        (lambda: callbacks.DampenOscillations(float("nan")), "at least 0"),
        (lambda: fit(model(), callbacks.DampenOscillations(2.0)), "would move weights by 2 of the way"),
    ],
)
def test_wrong_numbers_say_what_to_give(make, words):
    with pytest.raises(ValueError, match=words):
        make()
