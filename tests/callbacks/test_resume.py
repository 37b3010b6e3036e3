"""A killed fit, resumed by a new model object, ends with the bits of an undisturbed one."""

import keras
import numpy as np
import pytest

from keras_lowbit import callbacks
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import QuantConv2D, QuantDense
from keras_lowbit.quantizers import Binary, Stochastic, Ternary

RNG = np.random.default_rng(10)
IMAGES = RNG.normal(size=(24, 6, 6, 2)).astype("float32")
LABELS = RNG.integers(0, 3, 24)
EPOCHS = 8  # two for each of the four stages
STEPS = 3


def scheduled_sgd():
    return keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.7), momentum=0.9)


def adam():
    return keras.optimizers.Adam(0.01)


def network(make_optimizer, seed, jit_compile=False):
    """The same code as before the kill; `seed` differs, so that only the backup can bring the state back."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 2))
    hidden = QuantConv2D(4, 3, kernel_quantizer=Stochastic(Ternary()), output_quantizer="activation")(inputs)
    hidden = keras.layers.Flatten()(keras.layers.BatchNormalization()(hidden))
    model = keras.Model(inputs, QuantDense(3, kernel_quantizer=Stochastic(Binary()))(hidden))
    model.compile(
        make_optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=jit_compile
    )
    return model


class Killed(Exception):
    pass


class KillAt(keras.callbacks.Callback):
    def __init__(self, epoch, batch=None):
        super().__init__()
        self.at, self.epoch = (epoch, batch), None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        if self.at == (epoch, None):
            raise Killed

    def on_train_batch_end(self, batch, logs=None):
        if self.at == (self.epoch, batch):
            raise Killed


def fit(model, backup=None, before=True, kill=None):
    listeners = [callbacks.RatioSchedule(learning_rate=None), callbacks.FreezeRanges(6)]
    if backup is not None:
        listeners.insert(0 if before else len(listeners), backup)
    listeners += [] if kill is None else [kill]
    arguments = {"batch_size": 8, "shuffle": False, "verbose": 0, "epochs": EPOCHS, "callbacks": listeners}
    return model.fit(IMAGES, LABELS, **arguments).history


def everything(model):
    """Weights, optimizer state, ranges, ratios and seeds by path."""
    seeds = [
        layer.seed_generator.state
        for layer in model._flatten_layers()
        if hasattr(layer, "seed_generator") and layer.seed_generator is not None
    ]
    assert len(seeds) == 2
    return [to_numpy(variable) for variable in [*model.weights, *model.optimizer.variables, *seeds]]


def assert_same(left, right):
    assert len(left) == len(right)
    for ours, theirs in zip(left, right, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module", params=[scheduled_sgd, adam], ids=lambda make: make.__name__)
def undisturbed(request):
    model = network(request.param, seed=1)
    history = fit(model)
    return request.param, everything(model), history


KILLS = {
    "start of a stage": (4, None),
    "inside stage 2": (3, None),
    "middle of the first epoch of a stage": (2, 1),
    "middle of the last epoch of a stage": (5, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False], ids=["backup first", "backup last"])
@pytest.mark.parametrize("at", KILLS.values(), ids=KILLS.keys())
def test_a_resumed_fit_is_bit_identical(undisturbed, tmp_path, at, before):
    make_optimizer, want, history = undisturbed
    with pytest.raises(Killed):
        fit(network(make_optimizer, seed=1), keras.callbacks.BackupAndRestore(tmp_path / "b"), before, KillAt(*at))
    resumed = network(make_optimizer, seed=2)
    resumed_history = fit(resumed, keras.callbacks.BackupAndRestore(tmp_path / "b"), before)
    assert_same(everything(resumed), want)
    for name in ("loss", "ratio", "flip_rate"):
        assert resumed_history[name] == history[name][-len(resumed_history[name]) :]
    assert len(resumed_history["loss"]) == EPOCHS - at[0]


def test_without_the_backup_the_other_seed_ends_elsewhere(undisturbed):
    make_optimizer, want, _ = undisturbed
    model = network(make_optimizer, seed=2)
    fit(model)
    assert not np.array_equal(everything(model)[0], want[0])


def test_killed_twice(undisturbed, tmp_path):
    make_optimizer, want, _ = undisturbed
    jit_compile: bool | str = False
    if make_optimizer is adam:  # here with what `compile` takes where nobody says anything, which is XLA
        jit_compile = "auto"
        model = network(make_optimizer, 1, jit_compile)
        fit(model)
        want = everything(model)
    for seed, at in ((1, (3, 1)), (2, (6, 0))):
        model = network(make_optimizer, seed, jit_compile)
        with pytest.raises(Killed):
            fit(model, keras.callbacks.BackupAndRestore(tmp_path / "b"), True, KillAt(*at))
    model = network(make_optimizer, 3, jit_compile)
    fit(model, keras.callbacks.BackupAndRestore(tmp_path / "b"))
    assert_same(everything(model), want)


@pytest.mark.parametrize("before", [True, False], ids=["backup first", "backup last"])
def test_a_backup_from_inside_an_epoch_does_not_reset_the_optimizer(tmp_path, before):
    # Keras repeats the interrupted epoch from its first batch, so bits cannot be those of an undisturbed run;
    # but the stage has begun already and must not begin again.
    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "b", save_freq=2)

    with pytest.raises(Killed):
        fit(network(adam, seed=1), backup(), before, KillAt(2, 2))  # the first epoch of stage 2
    seen = []
    look = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: seen.append(state(model)))
    model = network(adam, seed=2)
    fit(model, backup(), before, look)
    # Backups after every second batch: the last one after batch 1 of epoch 2.
    assert seen[0] == (0.75, 2)
    assert seen[STEPS] == (0.75, 2 + STEPS)
    assert seen[2 * STEPS] == (0.875, 0)


def state(model):
    ratio = float(model.layers[1].kernel_host.state["ratio"])
    return ratio, int(model.optimizer.iterations)
