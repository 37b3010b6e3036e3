"""equalize against a NumPy oracle, and its promises."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.keras_graph.variables import to_numpy
from tests.support.model_zoo import run

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
    return run(model, images)[0]


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
    changed, report = klb.equalize(model, IMAGES, check=False, verbose=0, return_report=True)
    assert " of 5 locked" in report["conv"].detail
    largest = run(keras.Model(model.input, model.get_layer("conv").output), IMAGES)[0].max((0, 1, 2))
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


# ------------------------------------------------------------------------------------------------ whether they stay


def test_without_data_nothing_is_judged_and_the_report_says_so():
    _, report = klb.equalize(network(), return_report=True)
    assert report.verdict.before is None
    assert str(report).endswith("whole model: not checked")


@pytest.mark.parametrize("options", [{"data": IMAGES}, {"data": None, "validation_data": IMAGES}])
def test_with_data_it_stays_where_the_recipe_gains(options):
    model = network()
    model.get_layer("conv").kernel.assign(to_numpy(model.get_layer("conv").kernel) * [1e-3, 1, 1, 1, 30])
    changed, report = klb.equalize(model, verbose=0, return_report=True, **options)
    assert report.verdict.kept
    assert report.verdict.after < 0.5 * report.verdict.before
    assert report.verdict.samples == (6 if options["data"] is not None else 24)
    assert not np.allclose(to_numpy(changed.get_layer("conv").kernel), to_numpy(model.get_layer("conv").kernel))


def test_a_relu_in_place_of_a_relu6_is_left_out_where_it_changes_the_outputs():
    model = network("relu6")
    images = 20 * IMAGES  # everything is clipped
    with pytest.warns(UserWarning, match=r"equalize left .* as it was, quantized by 'int8' and 'fat-scalar'"):
        changed, report = klb.equalize(model, images, relu6="relu", verbose=0, return_report=True)
    assert not report.outcomes("equalized")
    np.testing.assert_array_equal(outputs(changed, images), outputs(model, images))
