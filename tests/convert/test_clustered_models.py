"""Whole models with clustered weights: recipes and their options, errors of weights, fine-tuning, saving."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.quantizers import Clustered, DynamicFixedPoint, Ternary, Uniform
from tests.support.model_zoo import run

kl = keras.layers
RNG = np.random.default_rng(5)
IMAGES = RNG.normal(size=(64, 8, 8, 3)).astype("float32")


def network():
    keras.utils.set_random_seed(2)
    image = value = keras.Input((8, 8, 3))
    for layer in (
        kl.Conv2D(8, 3, padding="same", use_bias=False, name="stem"),
        kl.BatchNormalization(),
        kl.ReLU(),
        kl.DepthwiseConv2D(3, name="deep"),
        kl.Conv2D(12, 1, use_bias=False, name="point"),
        kl.BatchNormalization(name="norm"),
        kl.ReLU(6.0),
        kl.SeparableConv2D(10, 3, name="separable"),
        kl.GlobalAveragePooling2D(),
        kl.Dense(9, activation="relu", name="hidden"),
        kl.Dense(4, name="head"),
    ):
        value = layer(value)
    return keras.Model(image, value)


def kernels(recipe):
    model, _ = klb.quantize_model(network(), recipe)
    return {path: layer.kernel_quantizer for path, layer in klb.convert.weights.quantized_layers(model).items()}


def test_the_paper_keeps_first_last_and_depthwise_layers_at_8_bits():
    eight, clustered = DynamicFixedPoint(8, granularity="channel"), Clustered(Ternary(), 4)
    assert kernels("dfp-2w8a-n4") == {
        "stem": eight,
        "deep": eight,
        "point": clustered,
        "separable_depthwise": eight,
        "separable": clustered,
        "hidden": clustered,
        "head": eight,
    }
    assert set(kernels(klb.recipes.dfp(2, first=None, last=None, depthwise=None)).values()) == {clustered}
    found = kernels(klb.recipes.dfp(4, 16, calibration="mse", groups="weights", granularity="tensor", last=4))
    assert found["hidden"] == Clustered(Uniform(4), 16, "mse", "weights", granularity="tensor")
    assert found["head"] == DynamicFixedPoint(4, granularity="channel")


@pytest.mark.parametrize("name", ["dfp-2w8a-n4", "dfp-4w8a-n4", "dfp-2w8a-n64", "dfp-8w8a"])
def test_the_recipes_are_there_with_power_of_two_activations(name):
    recipe = klb.recipes.get(name)
    assert recipe.name == name
    assert recipe.activations == DynamicFixedPoint(8)
    assert klb.recipes.Recipe.from_json(recipe.to_json()) == recipe
    assert name not in ("dfp-2w8a-n64",) or recipe.plan[-1].kernel.cluster_size == 64


def test_other_widths_are_refused():
    with pytest.raises(ValueError, match="2, 3 or 4 bits, got weight_bits=8"):
        klb.recipes.dfp(8)


def test_calibration_freezes_exponents_and_reestimation_takes_statistics_anew():
    model, _ = klb.quantize_model(network(), "dfp-2w8a-n4")
    found = klb.calibrate(model, IMAGES, verbose=0)
    assert all(float(host.state["frozen"]) == 1 for _, host in klb.layers.hosts(model) if host.state)
    before = to_numpy(model.get_layer("norm").moving_variance)
    assert klb.reestimate_batch_norms(model, IMAGES, verbose=0) == 2
    assert not np.allclose(to_numpy(model.get_layer("norm").moving_variance), before)
    assert klb.calibrate(model, IMAGES, verbose=0).keys() == found.keys()


def test_weight_errors_equal_numpy_and_say_what_int8_costs():
    model, _ = klb.quantize_model(network(), "dfp-4w8a-n4")
    found = klb.weight_errors(model)
    rows, totals = {row.path: row for row in found.layers}, np.zeros(3)
    for path, weights in klb.quantized_weights(model).items():
        layer = klb.convert.weights.quantized_layers(model)[path]
        kernel, quantizer = to_numpy(layer.kernel).astype(np.float64), layer.kernel_quantizer
        error, norm = np.sum((kernel - weights.real) ** 2), np.sum(kernel**2)
        added = 0.0
        if isinstance(quantizer, Clustered):
            free = Clustered(Uniform(4), 4, int8_exact=False)
            added = error - np.sum((kernel - np.asarray(free(layer.kernel, {}, layer.filter_axes))) ** 2)
        assert rows[path].relative == pytest.approx(error / norm)
        assert rows[path].added == pytest.approx(added / norm, abs=1e-9)
        totals += error, added, norm
    assert found.relative == pytest.approx(totals[0] / totals[2])
    assert found.added == pytest.approx(totals[1] / totals[2])
    assert found.added > 0
    assert "of it to fit int8" in str(found)
    assert klb.weight_errors(klb.quantize_model(network(), "dfp-2w8a-n4")[0]).added == 0


@pytest.mark.parametrize(("recipe", "jit"), [("dfp-2w8a-n4", True), ("dfp-4w8a-n4", False)])
def test_fine_tuning_moves_shadow_weights_and_scales_follow(recipe, jit):
    model, _ = klb.quantize_model(network(), recipe)
    klb.calibrate(model, IMAGES, verbose=0)
    layer = model.get_layer("point")
    before, ranges = (
        klb.quantized_weights(model)["point"],
        {path: to_numpy(host.state["maximum"]) for path, host in klb.layers.hosts(model) if host.state},
    )
    targets = RNG.normal(size=(64, 4)).astype("float32")
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=jit)
    losses = model.fit(IMAGES, targets, batch_size=16, epochs=2, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    after = klb.quantized_weights(model)["point"]
    assert (after.codes != before.codes).any()
    np.testing.assert_array_equal(to_numpy(layer.quantized_kernel()), after.real)
    wanted = np.asarray(layer.kernel_quantizer(to_numpy(layer.kernel), {}, (-1,)))
    np.testing.assert_array_equal(after.real, wanted)  # a function of the float weights alone
    for path, host in klb.layers.hosts(model):
        assert not host.state or to_numpy(host.state["maximum"]) == ranges[path]


def test_saved_and_loaded_it_is_the_same_to_the_bit(tmp_path):
    model, _ = klb.quantize_model(network(), "dfp-2w8a-n4")
    klb.calibrate(model, IMAGES, verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(run(model, IMAGES)[0], run(again, IMAGES)[0])
    for path, weights in klb.quantized_weights(model).items():
        np.testing.assert_array_equal(weights.codes, klb.quantized_weights(again)[path].codes)
    assert again.get_layer("point").kernel_quantizer == Clustered(Ternary(), 4)
