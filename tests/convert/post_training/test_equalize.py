"""equalize against a NumPy oracle and its promises; correct_biases takes the mean error out of every channel."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.keras_graph.variables import to_numpy
from tests.support.model_zoo import randomize

L = keras.layers
RNG = np.random.default_rng(41)
IMAGES = RNG.normal(size=(24, 6, 6, 3)).astype("float32")


def spread(layer):
    """Weights whose output channels have very different ranges, biases that matter."""
    kernel = RNG.uniform(-1, 1, layer.kernel.shape)
    channels = layer.kernel.shape[2:] if isinstance(layer, L.DepthwiseConv2D) else layer.kernel.shape[-1:]
    layer.kernel.assign(kernel * 2.0 ** RNG.uniform(-4, 1, channels))
    layer.bias.assign(RNG.uniform(-0.5, 0.5, layer.bias.shape))


def network(relu="relu"):
    image = keras.Input((6, 6, 3), name="image")
    hidden = L.Conv2D(5, 3, padding="same", name="conv")(image)
    hidden = (L.ReLU(name="clip1") if relu == "relu" else L.ReLU(6.0, name="clip1"))(hidden)
    hidden = L.DepthwiseConv2D(3, padding="same", activation=relu, name="dw")(hidden)
    hidden = L.Conv2D(4, 1, name="project")(hidden)
    hidden = L.Conv2D(4, 1, activation="relu", name="expand")(hidden)
    model = keras.Model(image, L.Dense(3, name="head")(L.GlobalAveragePooling2D()(hidden)))
    for layer in model.layers:
        if layer.weights:
            spread(layer)
    return model


def outputs(model, images=IMAGES):
    return model.predict(images, verbose=0)


def ranges(model):
    """(max |w| of the first's filter, max |w| of the second's input channel) of every pair, by hand."""
    kernel = {layer.name: np.abs(to_numpy(layer.kernel)).astype("float64") for layer in model.layers if layer.weights}
    return [
        (kernel["conv"].max((0, 1, 2)), kernel["dw"].max((0, 1, 3))),
        (kernel["dw"].max((0, 1, 3)), kernel["project"].max((0, 1, 3))),
        (kernel["project"].max((0, 1, 2)), kernel["expand"].max((0, 1, 3))),
        (kernel["expand"].max((0, 1, 2)), kernel["head"].max(1)),
    ]


def test_one_pair_gets_the_factors_of_the_formula():
    image = keras.Input((5,))
    first, second = L.Dense(4, activation="relu", name="a"), L.Dense(3, name="b")
    model = keras.Model(image, second(first(image)))
    spread(first)
    spread(second)
    changed, report = klb.equalize(model, return_report=True)
    w1, w2 = to_numpy(first.kernel).astype("float64"), to_numpy(second.kernel).astype("float64")
    s = np.sqrt(np.abs(w1).max(0) * np.abs(w2).max(1)) / np.abs(w2).max(1)
    np.testing.assert_allclose(to_numpy(changed.get_layer("a").kernel), w1 / s, rtol=1e-6)
    np.testing.assert_allclose(to_numpy(changed.get_layer("a").bias), to_numpy(first.bias) / s, rtol=1e-6)
    np.testing.assert_allclose(to_numpy(changed.get_layer("b").kernel), w2 * s[:, None], rtol=1e-6)
    assert report.outcomes("equalized") == ["a"]


def test_chain_of_pairs_meets_and_keeps_its_function_on_any_data():
    model = network()
    changed = klb.equalize(model)
    for r1, r2 in ranges(changed):
        np.testing.assert_allclose(r1, r2, rtol=5e-3)  # it stops at a thousandth
    assert any(np.abs(np.log(r1 / r2)).max() > 1 for r1, r2 in ranges(model))
    for images in (IMAGES, 20 * IMAGES):
        want = outputs(model, images)
        np.testing.assert_allclose(outputs(changed, images), want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_relu6_is_kept_unless_told():
    model = network("relu6")
    changed, report = klb.equalize(model, return_report=True)
    assert report.outcomes("equalized") == ["project", "expand"]
    assert "give data" in report["conv"].detail
    np.testing.assert_allclose(outputs(changed), outputs(model), rtol=1e-4, atol=1e-5)
    replaced = klb.equalize(model, relu6="relu")
    assert replaced.get_layer("clip1").max_value is None
    assert keras.activations.serialize(replaced.get_layer("dw").activation) == "relu"
    assert model.get_layer("clip1").max_value == 6.0
    small = 0.1 * IMAGES  # nothing reaches 6
    np.testing.assert_allclose(outputs(replaced, small), outputs(model, small), rtol=1e-4, atol=1e-5)


def test_with_data_channels_below_the_clip_of_relu6_are_equalized_too():
    model = network("relu6")
    model.get_layer("conv").kernel.assign(to_numpy(model.get_layer("conv").kernel) * [1, 1, 1, 1, 30])
    changed, report = klb.equalize(model, IMAGES, verbose=0, return_report=True)
    assert " of 5 locked" in report["conv"].detail
    largest = keras.Model(model.input, model.get_layer("conv").output).predict(IMAGES, verbose=0).max((0, 1, 2))
    locked = largest > 5.9
    assert 0 < locked.sum() < 5
    old, new = (to_numpy(m.get_layer("conv").kernel) for m in (model, changed))
    np.testing.assert_array_equal(old[..., locked], new[..., locked])
    assert not np.isclose(old[..., ~locked], new[..., ~locked]).all()
    np.testing.assert_allclose(outputs(changed), outputs(model), rtol=1e-4, atol=1e-4)


def test_equal_ranges_help_scalar_quantizers_and_the_original_is_untouched():
    scalar = klb.recipes.get("int8").replace(plan=[klb.recipes.Rule(klb.quantizers.Uniform(4, granularity="tensor"))])
    errors = np.ones(2)  # geometric means of the networks, whose errors differ a thousandfold
    for _ in range(4):
        model = network()
        model.get_layer("conv").kernel.assign(to_numpy(model.get_layer("conv").kernel) * [1e-3, 1, 1, 1, 30])
        before = [to_numpy(weight) for weight in model.weights]
        for index, base in enumerate((model, klb.equalize(model))):
            quantized, _ = klb.quantize_model(base, scalar.replace(activations=None))
            errors[index] *= np.square(outputs(quantized) - outputs(model)).mean() ** 0.25
        for old, weight in zip(before, model.weights, strict=True):
            np.testing.assert_array_equal(old, to_numpy(weight))
    assert errors[1] < 0.5 * errors[0]


def test_channel_without_weights_stays_and_bad_words_are_refused():
    model = network()
    kernel = to_numpy(model.get_layer("conv").kernel)
    kernel[..., 2] = 0
    model.get_layer("conv").kernel.assign(kernel)
    changed = klb.equalize(model)
    assert (to_numpy(changed.get_layer("conv").kernel)[..., 2] == 0).all()
    np.testing.assert_allclose(outputs(changed), outputs(model), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="relu6='drop'"):
        klb.equalize(model, relu6="drop")


# ------------------------------------------------------------------------------------------------ bias correction


def quantized_network(bits=3):
    model = network()
    quantized, _ = klb.quantize_model(model, "int8", overrides={".*": klb.quantizers.Uniform(bits)})
    klb.calibrate(quantized, IMAGES, verbose=0)
    return model, quantized


def means(model, name, images=IMAGES):
    """Mean of every channel of a layer's output, by Keras' own graph."""
    values = keras.Model(model.input, model.get_layer(name).output).predict(images, verbose=0)
    return values.reshape(-1, values.shape[-1]).astype("float64").mean(axis=0)


def test_corrected_layers_have_the_means_of_the_float_model():
    model, quantized = quantized_network()
    linear = ("conv", "project", "head")  # what these give is what their activation, if any, reads
    kernels = [to_numpy(layer.kernel) for layer in quantized.layers if hasattr(layer, "kernel_host")]
    before = {name: np.abs(means(quantized, name) - means(model, name)).max() for name in linear}
    found = klb.correct_biases(quantized, model, IMAGES, batch_size=5, verbose=0)
    assert set(found) == {"conv", "dw", "project", "expand", "head"}
    for name in linear:
        after = np.abs(means(quantized, name) - means(model, name)).max()
        # What is left is the range behind the layer ("conv" has one behind its relu only) and float32.
        assert after < 1e-5 * (1 + np.abs(means(model, name)).max())
        assert before[name] > 10 * after
    for old, layer in zip(kernels, (x for x in quantized.layers if hasattr(x, "kernel_host")), strict=True):
        np.testing.assert_array_equal(old, to_numpy(layer.kernel))
    again = klb.correct_biases(quantized, model, IMAGES, batch_size=5, verbose=0)
    assert max(again.values()) < 1e-3 * max(found.values())


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
    found = klb.correct_biases(quantized, model, images, verbose=0)
    assert set(found) == {"separable", "head"}
    again = klb.correct_biases(quantized, model, images, verbose=0)
    # What is left is rounding of biases and sums to the 24, 11 or 8 bits of the policy.
    step = {"float32": 2.0**-23, "mixed_float16": 2.0**-10, "mixed_bfloat16": 2.0**-7}[policy]
    for path, shift in again.items():
        assert shift < min(4 * step * (1 + np.abs(means(model, path, images)).max()), 0.5 * found[path])


def test_correction_brings_outputs_closer():
    model, quantized = quantized_network()
    fresh = IMAGES[::-1] + 0.1
    before = np.square(outputs(quantized, fresh) - outputs(model, fresh)).mean()
    klb.correct_biases(quantized, model, IMAGES, verbose=0)
    assert np.square(outputs(quantized, fresh) - outputs(model, fresh)).mean() < 0.5 * before


def test_models_without_a_common_layer_are_refused():
    _, quantized = quantized_network()
    other = keras.Sequential([keras.Input((6, 6, 3)), L.Conv2D(2, 1, name="stranger")])
    with pytest.raises(ValueError, match="the same path"):
        klb.correct_biases(quantized, other, IMAGES, verbose=0)
