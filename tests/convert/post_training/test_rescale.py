"""rescale_depthwise against a NumPy float64 oracle, and its promises: same output, locked filters, ranges that meet."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.keras_graph.variables import to_numpy
from tests.support.model_zoo import run

L = keras.layers
CHANNELS = 6
RNG = np.random.default_rng(31)
IMAGES = RNG.normal(size=(40, 8, 8, CHANNELS)).astype("float32")


def network(relu="relu6", own=False, depth_multiplier=1):
    """DWS, clip, 1x1: filters of very different ranges, some channels over 6."""
    image = keras.Input((8, 8, CHANNELS), name="image")
    activation = {"relu6": L.ReLU(6.0, name="clip"), "relu": L.ReLU(name="clip"), "linear": L.Identity()}[relu]
    depthwise = L.DepthwiseConv2D(
        3, padding="same", activation=relu if own else None, depth_multiplier=depth_multiplier, name="dw"
    )
    hidden = depthwise(image)
    hidden = hidden if own else activation(hidden)
    model = keras.Model(image, L.Conv2D(4, 1, name="pw")(hidden))
    spread = np.array([0.01, 0.1, 0.4, 1.0, 2.0, 0.0]).repeat(depth_multiplier).reshape(CHANNELS, depth_multiplier)
    depthwise.kernel.assign(RNG.uniform(-1, 1, depthwise.kernel.shape) * spread)
    depthwise.bias.assign(RNG.uniform(-0.2, 0.4, CHANNELS * depth_multiplier))
    return model


def oracle(kernel, largest, relu6):
    """S_k from methods.md 4.2, float64."""
    ranges = np.abs(kernel.astype("float64")).max(axis=(0, 1)).ravel()
    locked = (largest > 5.9) & relu6
    target = ranges[locked].mean() if locked.any() else ranges.mean()
    scales = []
    for m, x, fixed in zip(ranges, largest.astype("float64"), locked, strict=True):
        s = 1.0 if fixed or m == 0 else min(target / m, 1e3)
        if relu6 and not fixed and x > 0:
            s = min(s, 6 / x)
        scales.append(s)
    return np.array(scales), ranges, locked, target


def rescaled(model, data=IMAGES, **options):
    """Unchecked: what the factors are is one thing, whether they help a recipe another (see the end)."""
    return klb.rescale_depthwise(model, data, **{"verbose": 0, "check": False} | options)


def maxima(model, images=IMAGES):
    probe = keras.Model(model.input, model.get_layer("dw").output)
    return run(probe, images)[0].max(axis=(0, 1, 2))


def outputs(model, images=IMAGES):
    return run(model, images)[0]


@pytest.mark.parametrize(("relu", "own"), [("relu6", False), ("relu6", True), ("relu", False), ("linear", False)])
@pytest.mark.parametrize("depth_multiplier", [1, 2])
def test_scales_are_those_of_the_paper_and_the_output_stays(relu, own, depth_multiplier):
    model = network(relu, own, depth_multiplier)
    scales, ranges, locked, target = oracle(to_numpy(model.get_layer("dw").kernel), maxima(model), relu == "relu6")
    assert locked.any() == (relu == "relu6")
    changed = rescaled(model, IMAGES, verbose=0)
    old, new = model.get_layer("dw"), changed.get_layer("dw")
    shape = (CHANNELS, depth_multiplier)
    np.testing.assert_allclose(to_numpy(new.kernel), to_numpy(old.kernel) * scales.reshape(shape), rtol=1e-6)
    np.testing.assert_allclose(to_numpy(new.bias), to_numpy(old.bias) * scales, rtol=1e-6)
    old, new = model.get_layer("pw"), changed.get_layer("pw")
    np.testing.assert_allclose(to_numpy(new.kernel), to_numpy(old.kernel) / scales[:, None], rtol=1e-6)
    # Sums of 6 or 12 products; a channel scaled by 1000 rounds no worse than before.
    np.testing.assert_allclose(outputs(changed), outputs(model), rtol=1e-5, atol=1e-5)
    towards = np.abs(ranges * scales - target) <= np.abs(ranges - target) + 1e-12
    assert (towards | (ranges == 0)).all()
    assert (scales > 0).all()


def test_locked_filters_stay_to_the_bit_and_no_other_channel_comes_over_6():
    model = network()
    locked = maxima(model) > 5.9
    assert 0 < locked.sum() < CHANNELS
    changed = rescaled(model, IMAGES, verbose=0)
    for name in ("kernel", "bias"):
        old, new = (to_numpy(getattr(m.get_layer("dw"), name)).reshape(-1, CHANNELS) for m in (model, changed))
        np.testing.assert_array_equal(old[:, locked], new[:, locked])
        assert not np.array_equal(old[:, ~locked], new[:, ~locked])
    assert maxima(changed)[~locked].max() <= 6 * (1 + 1e-6)


def test_behind_a_plain_relu_the_output_stays_on_any_data():
    model = network("relu")
    changed = rescaled(model, IMAGES[:2], verbose=0)
    other = 10 * np.random.default_rng(5).normal(size=IMAGES.shape).astype("float32")
    np.testing.assert_allclose(outputs(changed, other), outputs(model, other), rtol=1e-5, atol=1e-4)


def test_scalar_quantizer_of_weights_gains():
    scalar = {"dw": klb.quantizers.Uniform(4, granularity="tensor"), "pw": None}
    errors = np.ones(2)  # geometric means of the networks, whose errors differ a thousandfold
    for _ in range(4):
        model = network("relu")
        changed, report = rescaled(model, IMAGES, verbose=0, return_report=True)
        assert report.outcomes("rescaled") == ["dw"]
        assert "0 of 6 channels locked" in report["dw"].detail
        for index, base in enumerate((model, changed)):
            quantized, _ = klb.quantize_model(base, klb.recipes.get("int8").replace(activations=None), overrides=scalar)
            errors[index] *= np.square(outputs(quantized) - outputs(model)).mean() ** 0.25
    assert errors[1] < 0.5 * errors[0]


def test_pools_and_padding_may_stand_between():
    image = keras.Input((8, 8, 3))
    hidden = L.ZeroPadding2D(1)(L.ReLU()(L.MaxPooling2D(2)(L.DepthwiseConv2D(3, name="dw")(image))))
    model = keras.Model(image, L.Dense(2)(L.GlobalAveragePooling2D()(L.Conv2D(4, 3, name="next")(hidden))))
    images = IMAGES[..., :3]
    changed, report = rescaled(model, images, verbose=0, return_report=True)
    assert report.outcomes("rescaled") == ["dw"]
    np.testing.assert_allclose(outputs(changed, images), outputs(model, images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("between", "words"),
    [
        (lambda x: L.Activation("silu")(x), "Activation"),
        (lambda x: L.BatchNormalization(name="norm")(x), "norm (BatchNormalization)"),
        (lambda x: L.Add(name="add")([x, L.ReLU()(x)]), "several readers"),
        (lambda x: L.ReLU(negative_slope=0.1, name="leaky")(x), "leaky"),
        (lambda x: L.Conv2D(6, 1, groups=2, name="grouped")(x), "groups"),
    ],
)
def test_other_patterns_are_left_with_the_reason(between, words):
    image = keras.Input((8, 8, CHANNELS))
    model = keras.Model(image, L.Conv2D(2, 1)(between(L.DepthwiseConv2D(3, name="dw")(image))))
    changed, report = rescaled(model, IMAGES[:4], verbose=0, return_report=True)
    assert report["dw"].outcome == "left"
    assert words in report["dw"].detail
    np.testing.assert_array_equal(outputs(changed), outputs(model))


def test_original_is_untouched_and_bad_arguments_are_refused():
    model = network()
    before = [to_numpy(weight) for weight in model.weights]
    rescaled(model, IMAGES, verbose=0)
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, to_numpy(weight))
    with pytest.raises(ValueError, match="between 0 and 6"):
        rescaled(model, IMAGES, locked_above=6.5)
    with pytest.raises(ValueError, match="No data"):
        rescaled(model, IMAGES[:0], verbose=0)


# ------------------------------------------------------------------------------------------------ whether they stay


def spread_network(spread):
    """Depthwise filters whose ranges differ up to `spread` times, read by weights that make up for it: a folded network."""
    keras.utils.set_random_seed(3)
    image = keras.Input((8, 8, CHANNELS), name="image")
    first, second = L.DepthwiseConv2D(3, padding="same", name="dw"), L.Conv2D(4, 1, name="pw")
    model = keras.Model(image, second(L.ReLU(name="clip")(first(image))))
    factors = np.geomspace(1, spread, CHANNELS)
    first.kernel.assign(to_numpy(first.kernel) * factors[:, None])
    second.kernel.assign(to_numpy(second.kernel) / factors[:, None])
    return model


def judged(model, data=IMAGES, **options):
    return klb.rescale_depthwise(model, data, verbose=0, return_report=True, **options)


def test_it_stays_where_the_recipe_gains_and_the_report_says_by_how_much():
    model = spread_network(1000)
    _, report = judged(model)
    assert report.outcomes("rescaled") == ["dw"]
    assert report.verdict.kept
    assert report.verdict.after < 0.5 * report.verdict.before
    assert "whole model: error" in str(report)
    assert "on 10 held-back samples, kept" in str(report)


def test_it_is_left_out_where_the_model_loses_and_a_copy_of_it_returned():
    model = network("relu6")
    # Channels are scaled up to the clip, which those of other images then reach.
    options = {"data": 0.001 * IMAGES, "validation_data": 10 * IMAGES}
    with pytest.warns(UserWarning, match=r"rescale_depthwise left .* by 'int8' and 'fat-scalar': it did not help"):
        changed, report = judged(model, **options)
    assert changed is not model
    assert report.outcomes("left") == ["dw"]
    assert not report.verdict.kept
    np.testing.assert_array_equal(outputs(changed), outputs(model))
    assert judged(model, **options, check=False)[1].outcomes("rescaled") == ["dw"]


def test_the_recipe_it_is_for_decides():
    model = spread_network(1000)
    errors = {recipe: judged(model, recipe=recipe)[1].verdict.before for recipe in ("int8", "fat-scalar")}
    assert judged(model)[1].verdict.before == pytest.approx(np.sqrt(errors["int8"] * errors["fat-scalar"]), rel=1e-6)
    assert errors["int8"] != pytest.approx(errors["fat-scalar"], rel=0.05)
