"""INQ's wrapper: exact nested partitions, and frozen values no optimizer reaches."""

import keras
import numpy as np
import pytest

from keras_lowbit.callbacks import PartitionSchedule
from keras_lowbit.callbacks.partition import freeze_portion
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import QuantConv2D, QuantDense, QuantDepthwiseConv2D
from keras_lowbit.quantizers import ActivationRange, Binary, Incremental, PowerOfTwo, Stochastic, Ternary, Uniform, get

BASES = (
    PowerOfTwo(5),
    PowerOfTwo(2, "channel"),
    Ternary(),
    Uniform(4),
    Uniform(4, "tensor"),
    Binary(),
    PowerOfTwo(3, calibration="mse"),
)
PORTIONS = (0.3, 0.5, 0.8, 0.95, 1.0)
every_base = pytest.mark.parametrize("base", BASES, ids=repr)
both_ways = pytest.mark.parametrize("partition", ["magnitude", "random"])
RNG = np.random.default_rng(17)
ROWS = RNG.normal(size=(16, 6)).astype("float32")
LABELS = RNG.integers(0, 3, 16)


def fresh_state(quantizer, shape, axes=(-1,)):
    return {
        name: np.full(spec.shape, spec.initial, np.float32) for name, spec in quantizer.state_specs(shape, axes).items()
    }


def pruned_kernel(seed=1, shape=(3, 3, 4, 5)):
    kernel = np.random.default_rng(seed).normal(size=shape).astype("float32")
    kernel[np.abs(kernel) < 0.5] = 0
    return kernel


def states(quantizer, kernel, portions=PORTIONS, seed=0, drift=0.0):
    """The state after each partition; between them the free weights move and the kernel takes the frozen values."""
    state, rng, found = fresh_state(quantizer, kernel.shape), np.random.default_rng(seed), []
    for portion in portions:
        state = quantizer.partitioned(kernel, state, portion, (-1,), rng)
        moved = kernel + drift * rng.normal(size=kernel.shape).astype("float32")
        kernel = np.where(state["mask"] > 0, state["codes"] * state["scale"], moved).astype("float32")
        found.append(state)
    return found


@every_base
@both_ways
def test_masks_are_nested_counts_exact_and_frozen_values_stay(base, partition):
    kernel = pruned_kernel()
    zeros, nonzero = int((kernel == 0).sum()), int((kernel != 0).sum())
    assert zeros > 20
    frozen, values = kernel == 0, np.zeros_like(kernel)
    for portion, state in zip(PORTIONS, states(Incremental(base, partition), kernel, drift=0.3), strict=True):
        mask = state["mask"] > 0
        assert set(np.unique(state["mask"])) <= {0.0, 1.0}
        assert mask.sum() - zeros == round(portion * nonzero)
        assert mask[frozen].all()
        now = (state["codes"] * state["scale"])[frozen]
        np.testing.assert_array_equal(now, values[frozen])
        assert not now[(kernel == 0)[frozen]].any()
        frozen, values = mask, state["codes"] * state["scale"]
        assert (state["zeros"], state["portion"]) == (zeros, np.float32(portion))
    assert frozen.all()


@every_base
def test_at_portion_one_all_weights_are_the_frozen_ones_whatever_the_kernel_is(base):
    kernel, quantizer = pruned_kernel(), Incremental(base)
    state = states(quantizer, kernel)[-1]
    want = state["codes"] * state["scale"]
    for real in (kernel, np.zeros_like(kernel), 100 * kernel):
        for training in (True, False):
            np.testing.assert_array_equal(quantizer(real, state, (-1,), training), want)


def test_magnitude_freezes_the_largest_of_the_free():
    kernel = pruned_kernel(2)
    before = (kernel == 0) | False
    for state in states(Incremental("power_of_two"), kernel):
        mask = state["mask"] > 0
        new = mask & ~before
        if not mask.all():
            assert np.abs(kernel[new]).min() >= np.abs(kernel[~mask]).max()
        before = mask


def test_random_is_seeded_uniform_and_not_the_largest():
    kernel = RNG.normal(size=(8, 5)).astype("float32")
    quantizer = Incremental("power_of_two", "random")
    first, again, other = (states(quantizer, kernel, (0.5,), seed)[0]["mask"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    draws = 400
    counts = sum(states(quantizer, kernel, (0.25,), seed)[0]["mask"] for seed in range(draws))
    assert counts.sum() == draws * 10
    # Each count is binomial(400, 1/4): sd 8.7; the chi-square of 40 dependent cells has mean 39.
    chi_square = float(np.sum((counts - draws / 4) ** 2) / (draws / 4 * 0.75)) * 39 / 40
    assert 15 < chi_square < 75


@every_base
def test_the_grid_is_that_of_the_first_partition(base):
    kernel, quantizer = pruned_kernel(), Incremental(base)
    state = states(quantizer, kernel, (0.3,))[0]
    later = quantizer.partitioned(50 * kernel, state, 1.0, (-1,), np.random.default_rng(0))
    np.testing.assert_array_equal(later["scale"], state["scale"])
    np.testing.assert_array_equal(
        state["scale"], np.broadcast_to(base.encode(kernel, {}, (-1,)).scale, state["scale"].shape)
    )
    if isinstance(base, PowerOfTwo):
        assert np.abs(later["codes"]).max() == 2 ** (base.magnitudes - 1)  # saturates, not zero
        grown = (state["mask"] == 0) & (np.abs(kernel) > 0.5)
        assert (np.abs(later["codes"][grown]) == 2 ** (base.magnitudes - 1)).all()


def test_portions_lie_above_zero_and_never_shrink():
    quantizer, kernel = Incremental("ternary"), pruned_kernel()
    state = states(quantizer, kernel, (0.8,))[0]
    for portion in (0.5, 0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"frozen a portion of 0\.8.*cannot go to .*frozen weights stay frozen"):
            quantizer.partitioned(kernel, state, portion, (-1,), np.random.default_rng(0))
    with pytest.raises(ValueError, match="cannot go to 0"):
        quantizer.partitioned(kernel, fresh_state(quantizer, kernel.shape), 0.0, (-1,), np.random.default_rng(0))
    same = quantizer.partitioned(kernel, state, 0.8, (-1,), np.random.default_rng(0))
    for name, value in state.items():
        np.testing.assert_array_equal(same[name], value)


@every_base
def test_training_sees_frozen_and_float_weights_inference_only_the_grid(base):
    kernel = pruned_kernel()
    quantizer, hybrid = Incremental(base), Incremental(base, hybrid_evaluation=True)
    state = states(quantizer, kernel, (0.5,))[0]
    frozen = state["mask"] > 0
    mixed = np.where(frozen, state["codes"] * state["scale"], kernel)
    np.testing.assert_array_equal(quantizer(kernel, state, (-1,), True), mixed)
    np.testing.assert_array_equal(hybrid(kernel, state, (-1,), False), mixed)
    snapped = np.where(frozen, state["codes"], np.asarray(base.snap(kernel, state["scale"]))) * state["scale"]
    np.testing.assert_array_equal(quantizer(kernel, state, (-1,), False), snapped)
    np.testing.assert_array_equal(quantizer.encode(kernel, state, (-1,)).real, snapped)


@every_base
def test_before_the_first_partition_training_is_float_and_inference_the_base(base):
    kernel, quantizer = pruned_kernel(), Incremental(base)
    state = fresh_state(quantizer, kernel.shape)
    np.testing.assert_array_equal(quantizer(kernel, state, (-1,), True), kernel)
    np.testing.assert_array_equal(quantizer(kernel, state, (-1,), False), base(kernel, {}, (-1,)))


def network(base=None, partition="magnitude", seed=5, **compiled):
    keras.utils.set_random_seed(seed)
    quantizer = Incremental(base or PowerOfTwo(4), partition)
    inputs = keras.Input((6,))
    hidden = QuantDense(8, kernel_quantizer=quantizer, activation="tanh", name="hidden")(inputs)
    model = keras.Model(inputs, QuantDense(3, kernel_quantizer=quantizer, name="head")(hidden))
    arguments = {"optimizer": "sgd", "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    model.compile(**(arguments | compiled))
    return model


def freeze(model, portion):
    for index, layer in enumerate(model.layers[1:]):
        freeze_portion(layer, portion, np.random.default_rng(index))


def frozen_values(model):
    found = []
    for layer in model.layers[1:]:
        mask = to_numpy(layer.kernel_host.state["mask"]) > 0
        for training in (True, False):
            found.append(np.where(mask, np.asarray(layer.quantized_kernel(training)), 0))
    return found


def train(model, epochs):
    model.fit(ROWS, LABELS, batch_size=4, shuffle=False, epochs=epochs, verbose=0)


OPTIMIZERS = {
    "sgd+momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "ema": lambda: keras.optimizers.SGD(0.05, 0.9, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_values_keep_their_bits_under_every_optimizer(name):
    model = network(optimizer=OPTIMIZERS[name]())
    train(model, 5)  # slots are full of momentum when the freeze comes
    freeze(model, 0.5)
    before, kernels = frozen_values(model), [to_numpy(layer.kernel) for layer in model.layers[1:]]
    train(model, 25)  # 100 steps
    for left, right in zip(before, frozen_values(model), strict=True):
        np.testing.assert_array_equal(left, right)
    for layer, kernel in zip(model.layers[1:], kernels, strict=True):
        free = to_numpy(layer.kernel_host.state["mask"]) == 0
        assert (to_numpy(layer.kernel)[free] != kernel[free]).all()
    freeze(model, 0.75)
    for left, right in zip(before, frozen_values(model), strict=True):
        np.testing.assert_array_equal(left[left != 0], right[left != 0])


@pytest.mark.parametrize("base", BASES[:1] + BASES[2:4], ids=repr)
def test_saved_in_the_middle_of_a_step_and_loaded_the_training_goes_on_with_the_same_bits(tmp_path, base):
    model = network(base, optimizer=keras.optimizers.Adam(0.01))
    freeze(model, 0.5)
    train(model, 2)
    model.save(tmp_path / "half.keras")
    loaded = keras.saving.load_model(tmp_path / "half.keras")
    for _ in range(2):
        for left, right in zip(model.variables, loaded.variables, strict=True):
            np.testing.assert_array_equal(to_numpy(left), to_numpy(right), err_msg=left.path)
        for left, right in zip(frozen_values(model), frozen_values(loaded), strict=True):
            np.testing.assert_array_equal(left, right)
        for one in (model, loaded):
            train(one, 2)
            freeze(one, 0.75)


@every_base
def test_the_gradient_is_zero_on_frozen_and_upstream_on_free_weights(base):
    import tensorflow as tf

    kernel, upstream = pruned_kernel(), RNG.normal(size=(3, 3, 4, 5)).astype("float32")
    quantizer = Incremental(base)
    state = states(quantizer, kernel, (0.5,))[0]
    variable = tf.Variable(kernel)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantizer(variable, state, (-1,), True) * upstream)
    np.testing.assert_array_equal(tape.gradient(loss, variable), np.where(state["mask"] > 0, 0, upstream))


def test_after_the_last_partition_training_changes_no_weight():
    model = network(optimizer=keras.optimizers.AdamW(0.01))
    freeze(model, 1.0)
    before = frozen_values(model)
    train(model, 3)
    for layer, value in zip(model.layers[1:], before[::2], strict=True):
        np.testing.assert_array_equal(np.asarray(layer.quantized_kernel(True)), value)
        codes = to_numpy(layer.kernel_host.encode(layer.kernel).codes)
        assert set(np.abs(np.unique(codes))) <= {0, 1, 2, 4, 8}


@pytest.mark.parametrize("base", BASES, ids=repr)
def test_in_layers_of_other_layouts(base):
    inputs = keras.Input((5, 5, 3))
    hidden = QuantDepthwiseConv2D(3, depth_multiplier=2, kernel_quantizer=Incremental(base))(inputs)
    model = keras.Model(inputs, QuantConv2D(4, 1, kernel_quantizer=Incremental(base), dtype="mixed_float16")(hidden))
    for layer in model.layers[1:]:
        freeze_portion(layer, 0.5, np.random.default_rng(0))
        state = {name: to_numpy(value) for name, value in layer.kernel_host.state.items()}
        frozen = state["mask"] > 0
        assert frozen.sum() == round(0.5 * frozen.size)
        want = base.encode(layer.kernel, {}, layer.filter_axes).scale.shape
        assert np.broadcast_shapes(want, state["scale"].shape) == state["scale"].shape
    assert model(np.ones((1, 5, 5, 3), np.float32)).shape == (1, 3, 3, 4)


def test_config_name_and_refusals():
    quantizer = Incremental(Ternary(factor=0.6), "random", hybrid_evaluation=True)
    assert get(quantizer.get_config()) == quantizer
    assert get("incremental") == Incremental(PowerOfTwo(5))
    assert [Incremental(base).bits for base in BASES] == [base.bits for base in BASES]
    for base in (None, ActivationRange(), Stochastic(), Incremental()):
        with pytest.raises(ValueError, match="needs a base grid such as PowerOfTwo"):
            Incremental(base)
    with pytest.raises(ValueError, match="choose one of 'magnitude', 'random'"):
        Incremental("ternary", "smallest")


def test_a_host_passes_masks_on():
    host = network().layers[1].kernel_host
    assert host.supports_masking
    assert PartitionSchedule(4).values[-1] == 1.0
