"""Training sees what the phone computes: bilinear resizing, which rounds inside the range of its input.

That every operation's Keras simulation is within a step of the integer graph is walked in test_lower.py.
"""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.deploy.lowering.lower import lower_model

L = keras.layers
SHAPE = (4, 6, 3)


def up(**options):
    return L.UpSampling2D(2, interpolation="bilinear", **options)


def behind_a_layer(x):
    return up(name="up")(L.Conv2D(4, 1, name="conv")(x))


def behind_moves(x):
    return up(name="up")(L.Reshape((6, 4, 3))(L.Dropout(0.5)(L.MaxPooling2D(1)(x))))


def twice(x):
    return up(name="second")(up(name="up")(x))


def inside_a_model(x):
    entry = keras.Input(SHAPE)
    return keras.Model(entry, L.Dropout(0.5)(up(name="up")(entry)), name="inner")(x)


def behind_a_model(x):
    entry = keras.Input(SHAPE)
    return up(name="up")(keras.Model(entry, L.Conv2D(2, 1)(entry), name="inner")(x))


def between_concatenations(x):
    first = L.Concatenate(name="first")([L.Conv2D(2, 1)(x), x])
    return L.Concatenate(name="second")([up(name="up")(first), up(name="other")(x)])


def behind_a_named_output(x):
    conv = L.Conv2D(2, 1, name="conv")(x)
    return [conv, up(name="up")(conv)]


CASES = (
    *(behind_a_layer, behind_moves, twice, inside_a_model, behind_a_model, between_concatenations),
    behind_a_named_output,
)


def data(count=8, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype("float32")


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.__name__)
def resized(request):
    keras.utils.set_random_seed(0)
    x = keras.Input(SHAPE, name="x")
    quantized, _ = klb.quantize_model(keras.Model(x, request.param(x)), "int8")
    klb.calibrate(quantized, data(), verbose=0)
    return quantized


def test_the_whole_model_is_the_integer_graph_but_for_ties(resized):
    """No rounding is missing in Keras: elements differ only where half a step decides."""
    lowered = lower_model(resized)
    assert lowered.unrounded == {}
    images = data(seed=1)
    outputs = resized(images)
    codes = klb.deploy.run_reference(lowered.graph, images)
    for name, real, got in zip(lowered.graph.outputs, keras.tree.flatten(outputs), as_list(codes), strict=True):
        grid = lowered.graph.tensors[name].range
        steps = np.asarray(real) / grid.scale + grid.zero_point
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
        differing = np.round(steps) != got
        assert np.abs(np.round(steps) - got).max() <= 1
        assert differing.mean() < 0.15  # a bilinear weight is a multiple of 1/16: ties abound


def as_list(value):
    return value if isinstance(value, list) else [value]


def test_it_survives_its_file(resized, tmp_path):
    resized.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    for ours, theirs in zip(as_list(resized(data())), as_list(again(data())), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert lower_model(again).graph.equals(lower_model(resized).graph)


def test_a_range_that_only_rounds_does_not_move():
    layer = klb.layers.QuantActivation()
    layer(np.float32([[-1.0, 2.0]]), training=True)
    before = {name: float(value) for name, value in layer.output_host.state.items()}
    got = layer(np.float32([[-9.0, 0.1]]), training=True, observe=False)
    assert {name: float(value) for name, value in layer.output_host.state.items()} == before
    np.testing.assert_allclose(got, [[-1.0, 0.1]], atol=0.012)


def test_calibrate_does_not_count_the_resized_values():
    x = keras.Input(SHAPE, name="x")
    plain = klb.layers.QuantActivation(name="range")
    value = plain(x)
    model = keras.Model(x, plain(up()(value), observe=False))
    alone = keras.Model(x, klb.layers.QuantActivation(name="range")(x))
    for calibration in ("max", "percentile", "mse"):
        found = [klb.calibrate(m, data(), calibration=calibration, percentile=95.0, verbose=0) for m in (model, alone)]
        assert found[0] == found[1]


def test_without_its_range_behind_it_a_warning_says_so():
    x = keras.Input(SHAPE, name="x")
    value = up(name="up")(klb.layers.QuantActivation()(x))
    model = keras.Model(x, klb.layers.QuantConv2D(2, 1, output_quantizer="activation", name="conv")(value))
    klb.calibrate(model, data(), verbose=0)
    with pytest.warns(UserWarning, match=r"Only the file rounds.*'up' \(read by 'conv'\).*observe=False"):
        klb.deploy.lower(model)


def test_an_activation_of_fixed_range_without_it_too():
    x = keras.Input(SHAPE, name="x")
    value = L.Activation("sigmoid", name="gate")(klb.layers.QuantActivation()(x))
    model = keras.Model(x, klb.layers.QuantConv2D(2, 1, output_quantizer="activation", name="conv")(value))
    klb.calibrate(model, data(), verbose=0)
    with pytest.warns(UserWarning, match=r"'gate' \(read by 'conv'\)"):
        klb.deploy.lower(model)


def test_a_model_that_is_quantized_already_keeps_what_it_has():
    x = keras.Input(SHAPE, name="x")
    once, _ = klb.quantize_model(keras.Model(x, behind_a_layer(x)), "int8")
    again, _ = klb.quantize_model(once, "int8")
    assert [layer.name for layer in again.layers] == [layer.name for layer in once.layers]
    assert len(again.get_layer("conv_range")._inbound_nodes) == 2
