"""Folded models compute what their batch norms computed, and what cannot be folded is left and named."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.convert import fold_report
from keras_lowbit.keras_graph.variables import to_numpy
from tests.support import model_zoo

L = keras.layers
# Weights of size 1 and sums of up to 100 products in float32, in another order: a few 1e-6.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

LAYERS = {
    "conv2d": ((7, 7, 3), lambda **o: L.Conv2D(4, 3, **o)),
    "conv2d-strided": ((8, 8, 3), lambda **o: L.Conv2D(4, 3, strides=2, **o)),
    "conv2d-groups": ((6, 6, 4), lambda **o: L.Conv2D(6, 3, groups=2, **o)),
    "conv2d-1x1": ((6, 6, 3), lambda **o: L.Conv2D(5, 1, **o)),
    "conv1d": ((9, 3), lambda **o: L.Conv1D(4, 3, **o)),
    "depthwise": ((7, 7, 3), lambda **o: L.DepthwiseConv2D(3, **o)),
    "depthwise-multiplier": ((7, 7, 3), lambda **o: L.DepthwiseConv2D(3, depth_multiplier=2, **o)),
    "transpose": ((5, 5, 3), lambda **o: L.Conv2DTranspose(4, 3, strides=2, **o)),
    "separable": ((7, 7, 3), lambda **o: L.SeparableConv2D(4, 3, depth_multiplier=2, **o)),
    "dense": ((5,), lambda **o: L.Dense(4, **o)),
}


def norm(**options):
    return L.BatchNormalization(epsilon=1e-3, **options)


def sequence(shape, *layers):
    """Random weights, with one gamma negative and one 0 in every batch norm."""
    model = model_zoo.randomize(keras.Sequential([keras.Input(shape), *layers], name="net"))
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization) and layer.scale:
            gamma = to_numpy(layer.gamma)
            gamma[:2] = (-0.7, 0.0)
            layer.gamma.assign(gamma)
    return model


def check_same(model, folded, **tolerance):
    inputs = model_zoo.inputs_of(model)
    for want, got in zip(model_zoo.run(model, inputs), model_zoo.run(folded, inputs), strict=True):
        np.testing.assert_allclose(got, want, **(CLOSE | tolerance))


def norms(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, L.BatchNormalization)]


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_norm_behind_a_layer_goes_into_it(name, use_bias):
    shape, make = LAYERS[name]
    model = sequence(shape, make(use_bias=use_bias), norm(), L.ReLU())
    before = [to_numpy(weight) for weight in model.weights]
    folded, report = klb.fold_batch_norms(model, return_report=True)
    assert norms(folded) == []
    assert [row.outcome for row in report.layers] == ["folded"]
    check_same(model, folded)
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, to_numpy(weight))
    assert not {id(w) for w in model.weights} & {id(w) for w in folded.weights}


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "transpose"])
def test_norm_in_front_of_an_unpadded_layer_goes_into_it(name, use_bias):
    shape, make = LAYERS[name]
    model = sequence(shape, norm(), make(use_bias=use_bias))
    folded = klb.fold_batch_norms(model)
    assert norms(folded) == []
    check_same(model, folded)


@pytest.mark.parametrize("name", ["conv2d", "depthwise", "conv1d", "transpose", "separable"])
def test_norm_in_front_of_a_padded_layer_stays_unless_its_offset_is_0(name):
    shape, make = LAYERS[name]
    options = {} if name == "transpose" else {"padding": "same"}
    model = sequence(shape, norm(), make(**options))
    folded, report = klb.fold_batch_norms(model, return_report=True)
    assert len(norms(folded)) == 1
    assert "pads with zeros" in report.layers[0].detail
    check_same(model, folded)
    only_factor = sequence(shape, norm(center=False), make(**options))
    only_factor.layers[0].moving_mean.assign(np.zeros(shape[-1]))
    folded = klb.fold_batch_norms(only_factor)
    assert norms(folded) == []
    check_same(only_factor, folded)


def test_weights_are_those_of_the_formula():
    model = sequence((6, 6, 3), L.Conv2D(4, 3), norm())
    conv, batch_norm = model.layers
    gamma, beta, mean, variance = (to_numpy(w).astype("float64") for w in batch_norm.weights)
    factor = gamma / np.sqrt(variance + 1e-3)
    folded = klb.fold_batch_norms(model).layers[-1]
    np.testing.assert_allclose(to_numpy(folded.kernel), to_numpy(conv.kernel) * factor, rtol=1e-6)
    np.testing.assert_allclose(
        to_numpy(folded.bias), (to_numpy(conv.bias) - mean) * factor + beta, rtol=1e-5, atol=1e-7
    )
    assert (to_numpy(folded.kernel)[..., 1] == 0).all()  # gamma = 0


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"scale": False, "center": False}])
def test_norm_without_gamma_or_beta(options):
    model = sequence((6, 6, 3), L.Conv2D(4, 3, use_bias=False), norm(**options))
    folded = klb.fold_batch_norms(model)
    assert norms(folded) == []
    check_same(model, folded)


def test_several_norms_around_one_layer_all_fold():
    model = sequence((6, 6, 3), norm(), L.Conv2D(4, 3), norm(), norm(), L.DepthwiseConv2D(3), norm())
    folded, report = klb.fold_batch_norms(model, return_report=True)
    assert norms(folded) == []
    assert len(report.outcomes("folded")) == 4
    check_same(model, folded, rtol=1e-4)


def many_reasons():
    image = keras.Input((6, 6, 3), name="image")
    first = L.BatchNormalization(name="on_input")(image)
    branch = L.Conv2D(3, 3, padding="same", name="read_twice")(first)
    after = L.BatchNormalization(name="of_read_twice")(branch)
    both = L.Add(name="sum")([branch, after])
    relu = L.Conv2D(3, 1, activation="relu", name="has_relu")(L.BatchNormalization(name="of_sum")(both))
    behind_relu = L.BatchNormalization(name="of_relu")(relu)
    twice = L.BatchNormalization(name="twice")
    shared = L.Conv2D(3, 1, name="shared")
    left, right = twice(shared(behind_relu)), twice(shared(relu))
    always = L.BatchNormalization(name="batch_statistics")(L.Conv2D(3, 1)(left), training=True)
    rows = L.BatchNormalization(axis=1, name="rows")(L.Conv2D(3, 1)(right))
    of_shared = L.BatchNormalization(name="of_shared")(shared(rows))
    out = L.BatchNormalization(name="out")(L.Concatenate()([always, of_shared]))
    return model_zoo.randomize(keras.Model(image, out, name="reasons"))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("on_input", "reads an input"),
        ("of_read_twice", "read_twice has other readers"),
        ("of_relu", "the activation relu of has_relu stands between"),
        ("twice", "shared: it runs 2 times"),
        ("batch_statistics", "training=True"),
        ("rows", "axis 1"),
        ("of_shared", "shared, which is shared: it runs 3 times"),
        ("out", "leaves the model"),
    ],
)
def test_what_cannot_be_folded_stays_with_its_reason(path, words):
    report = fold_report(many_reasons())
    assert report[path].outcome == "left"
    assert words in report[path].detail


def test_model_with_many_reasons_keeps_its_function_and_its_sharing():
    model = many_reasons()
    folded, report = klb.fold_batch_norms(model, return_report=True)
    assert report.outcomes("folded") == ["of_sum"]
    assert "after it" in report["of_sum"].detail
    assert len(norms(folded)) == len(norms(model)) - 1
    assert len([layer for layer in folded.layers if layer.name == "shared"]) == 1
    check_same(model, folded, rtol=1e-4, atol=1e-4)


def test_nested_models_fold_inside_and_across_their_border():
    image = keras.Input((6, 6, 4))
    inner = keras.Model(image, L.BatchNormalization(name="first")(image), name="starts_with_norm")
    body = keras.Sequential([keras.Input((6, 6, 4)), L.Conv2D(4, 3, use_bias=False), norm(name="own")], name="body")
    outer = keras.Input((6, 6, 4), name="image")
    hidden = inner(L.Conv2D(4, 1, name="outside")(outer))
    model = model_zoo.randomize(keras.Model(outer, L.ReLU()(body(hidden)), name="outer"))
    folded, report = klb.fold_batch_norms(model, return_report=True)
    assert set(report.outcomes("folded")) == {"starts_with_norm/first", "body/own"}
    assert [layer.name for layer in folded.layers] == [layer.name for layer in model.layers]
    check_same(model, folded)


def test_model_inside_that_runs_twice_keeps_its_norm():
    body = keras.Sequential([keras.Input((6, 6, 4)), L.Conv2D(4, 3, padding="same"), norm(name="own")], name="body")
    image = keras.Input((6, 6, 4), name="image")
    model = model_zoo.randomize(keras.Model(image, body(body(image))))
    folded, report = klb.fold_batch_norms(model, return_report=True)
    assert "it runs 2 times" in report["body/own"].detail
    check_same(model, folded)


@pytest.mark.parametrize(
    "make", [model_zoo.sequential, model_zoo.residual, model_zoo.nested_twice, model_zoo.many_ends]
)
def test_models_of_the_zoo_keep_their_function(make):
    model = model_zoo.randomize(make())
    check_same(model, klb.fold_batch_norms(model))


def test_quantized_layers_keep_their_norm_for_the_export_to_fold():
    model = sequence((6, 6, 3), L.Conv2D(4, 3), norm())
    quantized, _ = klb.quantize_model(model)
    report = fold_report(quantized)
    assert "quantized already" in report.layers[0].detail


def test_frozen_layers_stay_frozen_and_a_saved_model_reloads(tmp_path):
    model = sequence((6, 6, 3), L.Conv2D(4, 3, use_bias=False), norm(), L.Dense(2))
    model.layers[0].trainable = False
    folded = klb.fold_batch_norms(model)
    assert [layer.trainable for layer in folded.layers if layer.weights] == [False, True]
    folded.save(tmp_path / "folded.keras")
    check_same(folded, keras.saving.load_model(tmp_path / "folded.keras"), rtol=0, atol=0)


def test_subclassed_models_are_refused():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(TypeError, match="not a Functional or Sequential"):
        klb.fold_batch_norms(Own())
