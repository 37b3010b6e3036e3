"""correct_biases takes the mean error out of what leaves each layer's activation, where that helps, and nowhere else."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.keras_graph.variables import to_numpy
from tests.support.model_zoo import randomize

L = keras.layers
RNG = np.random.default_rng(41)
IMAGES = RNG.normal(size=(24, 6, 6, 3)).astype("float32")


def network():
    """Linear layers, and layers with an activation of their own or one behind them."""
    keras.utils.set_random_seed(5)
    image = keras.Input((6, 6, 3), name="image")
    hidden = L.ReLU(name="clip")(L.Conv2D(5, 3, padding="same", name="conv")(image))
    hidden = L.DepthwiseConv2D(3, padding="same", activation="relu6", name="dw")(hidden)
    hidden = L.Conv2D(4, 1, name="project")(hidden)
    hidden = L.Conv2D(6, 1, activation="silu", name="expand")(hidden)
    return randomize(keras.Model(image, L.Dense(3, name="head")(L.GlobalAveragePooling2D()(hidden))))


def quantized_network(bits=3):
    model = network()
    quantized, _ = klb.quantize_model(model, "int8", overrides={".*": klb.quantizers.Uniform(bits)})
    klb.calibrate(quantized, IMAGES, verbose=0)
    return model, quantized


def outputs(model, images=IMAGES):
    return to_numpy(model(images)).astype(np.float64)


def decibels(model, quantized, images):
    wanted = outputs(model, images)
    return 10 * np.log10(np.square(wanted).sum() / np.square(outputs(quantized, images) - wanted).sum())


def means(model, name, images=IMAGES):
    """Mean of every channel of what a layer gives, by Keras' own graph; the quantized model's without the range behind it."""
    values = to_numpy(keras.Model(model.input, model.get_layer(name).output)(images))
    return values.reshape(-1, values.shape[-1]).astype("float64").mean(axis=0)


def kernels(model):
    return [to_numpy(layer.kernel) for layer in model.layers if hasattr(layer, "kernel_host")]


def corrected(quantized, model, data=IMAGES, **options):
    return klb.correct_biases(quantized, model, data, verbose=0, **options)


def test_unchecked_every_channel_has_the_mean_of_the_float_model_behind_its_activation():
    model, quantized = quantized_network()
    before, fixed = {name: means(quantized, name) for name in ("dw", "project", "head")}, kernels(quantized)
    found = corrected(quantized, model, batch_size=5, check=False)
    assert list(found) == ["conv", "dw", "project", "expand", "head"]
    assert "not checked" in str(found)
    for name, old in before.items():
        wanted, off = means(model, name), np.abs(old - means(model, name)).max()
        # Behind an activation the search stops at a thousandth of the spread, and the head reads a range.
        assert np.abs(means(quantized, name) - wanted).max() < (
            1e-5 * (1 + np.abs(wanted).max()) if name != "dw" else 0.02
        )
        assert np.abs(means(quantized, name) - wanted).max() < 0.2 * off
    for old, new in zip(fixed, kernels(quantized), strict=True):
        np.testing.assert_array_equal(old, new)
    again = corrected(quantized, model, batch_size=5, check=False)
    assert all(again[name] < 0.05 * max(found.values()) for name in ("conv", "dw", "project", "head"))


def nested(sums):
    inner = keras.Input((4,))
    return keras.Model(inner, L.ReLU()(inner))(sums)


FORMS = {
    "own": None,
    "ReLU": L.ReLU,
    "Activation": lambda: L.Activation("relu"),
    "operation": lambda: keras.ops.relu,
    "nested": lambda: nested,
    "dropout between": lambda: lambda sums: L.ReLU()(L.Dropout(0.5)(sums)),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_leaves_a_relu_counts_not_what_enters_it(form):
    """15 % of the sums are positive: their mean says little of what the next layer reads."""
    keras.utils.set_random_seed(1)
    row = keras.Input((16,))
    dense = L.Dense(4, activation="relu" if FORMS[form] is None else None, name="d")
    model = keras.Model(row, dense(row) if FORMS[form] is None else FORMS[form]()(dense(row)))
    model.get_layer("d").bias.assign(np.full(4, -3.0))
    quantized, _ = klb.quantize_model(model, "int8", overrides={".*": klb.quantizers.Uniform(2)})
    rows = np.random.default_rng(2).normal(size=(4000, 16)).astype("float32") * 2
    klb.calibrate(quantized, rows, batch_size=1000, verbose=0)
    wanted = outputs(model, rows)
    off = np.abs(outputs(quantized, rows).mean(0) - wanted.mean(0)).max()
    kernels = to_numpy(model.get_layer("d").kernel), to_numpy(quantized.get_layer("d").quantized_kernel())
    sums = [rows @ kernel for kernel in kernels]
    by_sums = np.maximum(sums[1] + (sums[0] - sums[1]).mean(0) - 3, 0)
    assert np.abs(by_sums.mean(0) - wanted.mean(0)).max() > 0.5 * off
    corrected(quantized, model, rows, batch_size=1000, check=False)
    assert np.abs(outputs(quantized, rows).mean(0) - wanted.mean(0)).max() < 0.05 * off


def inhibited(inhibition, channels=32, depth=14):
    """Sparse relus behind kernels that subtract the mean of all channels, as in a trained SqueezeNet: a shift before a relu,
    where most values are negative, grows layer by layer."""
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).normal(size=(96, 8, 8, channels)).astype("float32")
    value = image = keras.Input((8, 8, channels))
    for k in range(depth):
        value = L.ReLU()(L.Conv2D(channels, 1, name=f"c{k}")(value))
    model, rng = keras.Model(image, L.Conv2D(4, 1)(value)), np.random.default_rng(1)
    for k in range(depth):
        layer = model.get_layer(f"c{k}")
        layer.kernel.assign((np.eye(channels)[rng.permutation(channels)] - inhibition / channels)[None, None])
        sums = to_numpy(keras.Model(image, layer.output)(images[:64]))
        t = np.quantile(sums, 0.75, axis=(0, 1, 2))
        gain = 1 / np.maximum(sums - t, 0).std((0, 1, 2))
        layer.kernel.assign(to_numpy(layer.kernel) * gain)
        layer.bias.assign(-t * gain)
    return model, images[:64], images[64:]


@pytest.mark.parametrize("inhibition", [2.0, 8.0])
def test_sparse_relus_gain_where_the_mean_before_them_destroyed_the_output(inhibition):
    model, images, fresh = inhibited(inhibition)
    quantized, _ = klb.quantize_model(model, "int8")
    klb.calibrate(quantized, images, verbose=0)
    before = decibels(model, quantized, fresh)
    found = corrected(quantized, model, images)
    assert decibels(model, quantized, fresh) >= before - 0.1
    assert found.report.verdict.kept
    assert found.report.verdict.samples == 16
    assert "on 16 held-back samples" in str(found)


def test_checked_on_fresh_images_it_brings_outputs_closer():
    model, quantized = quantized_network()
    fresh = RNG.normal(size=(64, 6, 6, 3)).astype("float32")
    before = decibels(model, quantized, fresh)
    found = corrected(quantized, model)
    assert decibels(model, quantized, fresh) > before + 1
    for row in found.report.layers:
        before, after = (float(part) for part in row.detail.split(",")[0].removeprefix("error ").split(" -> "))
        assert after <= before, row


def test_a_shift_that_does_not_help_on_held_back_data_is_taken_back_layer_by_layer_and_said():
    model, quantized = quantized_network(8)
    start = [to_numpy(weight) for weight in quantized.weights]
    unlike = 30 + IMAGES  # what they say of the means is wrong for the others
    found = corrected(quantized, model, unlike, validation_data=IMAGES)
    assert "channels as they were" in str(found) or found.report.outcomes("left")
    for row in found.report.layers:
        assert (row.outcome == "left") == (found[row.path] == 0)
    before = decibels_of(start, model)
    assert decibels(model, quantized, IMAGES) >= before
    _, free = quantized_network(8)
    corrected(free, model, unlike, check=False)
    assert decibels(model, free, IMAGES) < before - 3


def decibels_of(weights, model):
    _, quantized = quantized_network(8)
    quantized.set_weights(weights)
    return decibels(model, quantized, IMAGES)


def test_a_layer_alone_may_gain_but_the_whole_model_decides(monkeypatch):
    """Layers are judged one by one; if their sum makes the outputs worse, nothing stays."""
    from keras_lowbit.convert.post_training import correct_biases as module

    model, quantized = quantized_network()
    before = [to_numpy(weight) for weight in quantized.weights]

    def harmful(step, wanted):
        step.call.operation.bias.assign_add(np.full(step.call.operation.bias.shape, 3.0))
        return np.full(step.call.operation.bias.shape, 3.0), "error 1 -> 0"

    monkeypatch.setattr(module, "corrected_bias", harmful)
    with pytest.warns(
        UserWarning, match=r"correct_biases left .* as it was: it did not help \(error .* on 6 held-back"
    ):
        found = corrected(quantized, model)
    assert set(found.values()) == {0.0}
    assert not found.report.verdict.kept
    assert found.report.outcomes("left") == list(found)
    for old, weight in zip(before, quantized.weights, strict=True):
        np.testing.assert_array_equal(old, to_numpy(weight))


def test_a_failure_in_the_middle_changes_nothing(monkeypatch):
    model, quantized = quantized_network()
    before = [to_numpy(weight) for weight in quantized.weights]
    broken = IMAGES.copy()
    broken[-1] = np.nan
    with pytest.raises(ValueError, match="not all finite"):
        corrected(quantized, model, IMAGES, validation_data=broken)
    for old, weight in zip(before, quantized.weights, strict=True):
        np.testing.assert_array_equal(old, to_numpy(weight))


def separable(**options):
    image = keras.Input((8, 8, 3), name="image")
    hidden = L.SeparableConv2D(6, 3, padding="same", activation="relu", name="separable", **options)(image)
    hidden = L.SeparableConv2D(4, 3, use_bias=False, name="bare", **options)(hidden)
    head = L.Dense(3, name="head", **options)(L.GlobalAveragePooling2D(**options)(hidden))
    return randomize(keras.Model(image, head))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_separable_layers_are_corrected_as_a_whole_at_every_precision(policy):
    images = RNG.normal(1.0, size=(12, 8, 8, 3)).astype(
        "float32"
    )  # of mean 0 there would be next to nothing to correct
    model = separable(dtype=policy)
    quantized, _ = klb.quantize_model(model, "int8", overrides={".*": klb.quantizers.Uniform(3)})
    klb.calibrate(quantized, images, verbose=0)
    found = corrected(quantized, model, images, check=False)
    assert set(found) == {"separable", "head"}
    again = corrected(quantized, model, images, check=False)
    # What is left is rounding of biases and sums to the 24, 11 or 8 bits of the policy.
    step = {"float32": 2.0**-23, "mixed_float16": 2.0**-10, "mixed_bfloat16": 2.0**-7}[policy]
    assert again["head"] < min(4 * step * (1 + np.abs(means(model, "head", images)).max()), 0.5 * found["head"])
    assert again["separable"] < 0.3 * found["separable"]


def test_models_without_a_common_layer_are_refused():
    _, quantized = quantized_network()
    other = keras.Sequential([keras.Input((6, 6, 3)), L.Conv2D(2, 1, name="stranger")])
    with pytest.raises(ValueError, match="the same path"):
        corrected(quantized, other)
