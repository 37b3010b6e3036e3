"""pack: the packed model predicts what the quantized one does, on the ops and on the fallback alike, and reloads anywhere."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit.deploy import GraphBuilder, PackedTernaryConv2D, PackedTernaryDense, Range, run_reference
from tests.support.lowering_zoo import enliven, samples
from tests.support.model_zoo import run
from tests.support.process import run_python

kl = keras.layers


def network(channels=16, size=12):
    entry = keras.Input((size, size, 4), name="x")
    x = kl.Conv2D(channels, 3, padding="same", activation="relu", name="first")(entry)
    y = kl.Conv2D(channels, 3, strides=2, padding="same", use_bias=False, name="second")(x)
    y = kl.BatchNormalization(name="norm")(y)
    y = kl.DepthwiseConv2D(3, padding="same", name="deep")(kl.ReLU(6.0)(y))
    y = kl.Conv2D(channels, 1, groups=2, activation="relu6", name="grouped")(y)
    y = kl.GlobalAveragePooling2D()(y)
    model = keras.Model(entry, kl.Dense(5, activation="softmax", name="head")(y), name="net")
    enliven(model)
    return model


def quantized(recipe="twn", **arguments):
    model, _ = klb.quantize_model(network(), recipe, **arguments)
    images = samples(model, count=6)[0]
    klb.calibrate(model, images, verbose=0)
    return model, images


@pytest.fixture(scope="module", params=["twn", "bwn", "dfp-2w8a-n4"])
def packed(request):
    keras.utils.set_random_seed(0)
    model, images = quantized(request.param)
    return model, klb.pack(model), images


def packed_layers(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, klb.deploy.packed.PackedLayer)]


def test_what_is_packed(packed):
    _, packed_model, _ = packed
    names = {layer.name for layer in packed_layers(packed_model)}
    assert {"second", "grouped"} <= names <= {"first", "second", "grouped", "head"}
    assert isinstance(packed_model.get_layer("deep"), klb.layers.QuantDepthwiseConv2D)
    assert all(layer.input_range is not None and not layer.supports_jit for layer in packed_layers(packed_model))


def test_packed_weights_are_the_models_own(packed):
    model, packed_model, _ = packed
    weights = klb.quantized_weights(model)
    for layer in packed_layers(packed_model):
        got = klb.ops.unpack(layer.packed()) * np.asarray(keras.ops.convert_to_numpy(layer.scale.value))
        expected = weights[layer.name].codes * weights[layer.name].scale
        np.testing.assert_array_equal(got.astype(np.float32), expected)


def test_every_layer_computes_what_the_quantized_one_does(packed):
    """On inputs that lie on their grid; float sums of a few hundred products differ in the last bits."""
    model, packed_model, _ = packed
    rng = np.random.default_rng(1)
    for layer in packed_layers(packed_model):
        scale, zero = layer.input_range
        shape = model.get_layer(layer.name).input.shape
        x = (np.float32(scale) * (rng.integers(-128, 128, (2, *shape[1:])) - zero)).astype(np.float32)
        expected = keras.ops.convert_to_numpy(model.get_layer(layer.name)(x))
        got = keras.ops.convert_to_numpy(layer(x))
        step = np.abs(expected).max() / 100  # an output range may turn a last bit into one step of at most 1/255
        assert np.mean(np.abs(got - expected) > 1e-5 * np.abs(expected).max()) < 0.01
        assert np.abs(got - expected).max() <= step


def test_predictions_stay_close(packed):
    model, packed_model, images = packed
    np.testing.assert_allclose(run(packed_model, images)[0], run(model, images)[0], atol=0.05)


def test_prediction_on_the_ops_equals_the_fallback_bit_for_bit(packed):
    _, packed_model, images = packed
    results = []
    for row in klb.ops.available_kernels():
        with klb.ops.using_kernel(row):
            packed_model.make_predict_function(force=True)
            results.append(packed_model.predict(images, verbose=0))
    packed_model.make_predict_function(force=True)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


LOAD = """
import sys
import keras, numpy as np, keras_lowbit
np.save(sys.argv[3], keras.saving.load_model(sys.argv[1]).predict(np.load(sys.argv[2]), verbose=0))
"""


def test_reloads_without_a_scope_in_another_process(packed, tmp_path):
    _, packed_model, images = packed
    packed_model.save(tmp_path / "packed.keras")
    np.save(tmp_path / "images.npy", images)
    expected = packed_model.predict(images, verbose=0)
    again = keras.saving.load_model(tmp_path / "packed.keras")
    np.testing.assert_array_equal(again.predict(images, verbose=0), expected)


def test_reloads_in_another_process(tmp_path):
    model, images = quantized()
    packed_model = klb.pack(model)
    packed_model.save(tmp_path / "packed.keras")
    np.save(tmp_path / "images.npy", images)
    run_python(LOAD, tmp_path / "packed.keras", tmp_path / "images.npy", tmp_path / "out.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), packed_model.predict(images, verbose=0))


def test_file_is_a_sixteenth_on_packed_layers(tmp_path):
    entry = keras.Input((4, 4, 512))
    model = keras.Model(entry, kl.Conv2D(512, 3, name="conv")(entry))
    model.save(tmp_path / "float.keras")
    twn, _ = klb.quantize_model(model, "twn")
    klb.calibrate(twn, np.random.default_rng(0).normal(size=(2, 4, 4, 512)).astype(np.float32), verbose=0)
    klb.pack(twn).save(tmp_path / "packed.keras")
    ratio = (tmp_path / "float.keras").stat().st_size / (tmp_path / "packed.keras").stat().st_size
    assert 15 < ratio < 17


def test_gradients_pass_as_through_the_quantized_layer(packed):
    model, packed_model, _ = packed
    layer, stock = packed_model.get_layer("second"), model.get_layer("second")
    scale, zero = layer.input_range
    rng = np.random.default_rng(2)
    x = (np.float32(scale) * (rng.integers(-128, 128, (1, 12, 12, 16)) - zero)).astype(np.float32)
    x[0, 0, 0, 0], x[0, 5, 5, 3] = 1e3, -1e3  # saturate: no gradient
    upstream = None
    grads = []
    for one in (layer, stock):
        given = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(given)
            y = one(given)
        upstream = rng.normal(size=y.shape).astype(np.float32) if upstream is None else upstream
        grads.append(np.array(tape.gradient(y, given, upstream)))
    assert grads[0][0, 0, 0, 0] == grads[0][0, 5, 5, 3] == 0
    inside = np.abs(x) < 1e3
    np.testing.assert_allclose(grads[0][inside], grads[1][inside], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_int8_in_and_out_is_the_integer_graphs_layer(activation, kind):
    """A convolution rounds twice, as the file's; a dense layer's two roundings are those of a 1x1 convolution."""
    rng = np.random.default_rng(4)
    shape = (3, 3, 8, 12) if kind == "conv" else (8, 12)
    codes = rng.integers(-1, 2, shape)
    scale, bias = rng.uniform(0.01, 0.1, 12).astype(np.float32), rng.normal(0, 0.5, 12).astype(np.float32)
    grids = {"input_range": (0.05, 3), "output_range": (0.04, -20)}
    packed = klb.ops.pack_ternary(codes)
    cls = PackedTernaryConv2D if kind == "conv" else PackedTernaryDense
    layer = cls(packed.layout, **grids, activation=activation, **({"padding": "same"} if kind == "conv" else {}))
    x = rng.integers(-128, 128, (2, 5, 5, 8)).astype(np.int8)
    layer.build(x.shape)
    layer.load(packed, scale, bias)
    builder = GraphBuilder()
    source = builder.input("x", x.shape[1:], range=Range(0.05, 3))
    steps = np.round(bias.astype(np.float64) / (np.float32(0.05) * scale).astype(np.float64)).astype(np.int32)
    kernel = codes if kind == "conv" else codes[None, None]
    out = builder.conv2d(source, kernel, scale, steps, Range(0.04, -20), "y", padding="same", activation=activation)
    expected = run_reference(builder.build([out]), x)
    got = layer(x)
    assert got.dtype == tf.int8
    np.testing.assert_array_equal(got, expected)
    reals = (np.float32(0.05) * (x.astype(np.float32) - 3)).astype(np.float32)
    np.testing.assert_array_equal(layer(reals), expected)


def test_a_model_without_ranges_packs_its_weights_only():
    model, _ = klb.quantize_model(
        network(), klb.recipes.get("twn").__class__(**{**vars(klb.recipes.get("twn")), "activations": None})
    )
    images = samples(model, count=2)[0]
    small = klb.pack(model)
    assert all(layer.input_range is None for layer in packed_layers(small))
    np.testing.assert_allclose(run(small, images)[0], run(model, images)[0], rtol=1e-5, atol=1e-6)


def test_refusals():
    model, _ = klb.quantize_model(network(), "int8")
    klb.calibrate(model, samples(model)[0], verbose=0)
    with pytest.raises(ValueError, match="no convolution or dense layer with ternary weights"):
        klb.pack(model)
    with pytest.raises(ValueError, match="has seen no data"):
        klb.pack(klb.quantize_model(network(), "twn")[0])
    layout = klb.ops.pack_ternary(np.ones((4, 4))).layout
    with pytest.raises(ValueError, match="leave output_range out"):
        PackedTernaryDense(layout, input_range=(0.1, 0), output_range=(0.1, 0), activation="softmax")
    with pytest.raises(ValueError, match="input_range is"):
        PackedTernaryDense(layout, input_range=(0.1, 300))
    with pytest.raises(ValueError, match="expected 4 sizes"):
        PackedTernaryConv2D(layout)


def test_wide_int8_layers_are_left_alone_and_run():
    """70,000 weights of up to 127: what int32 could not hold if all were the largest."""
    keras.utils.set_random_seed(3)
    entry = keras.Input((70_000,), name="x")
    hidden = kl.Dense(8, activation="relu", name="ternary")(kl.Dense(2, name="wide")(entry))
    model = keras.Model(entry, kl.Dense(3, name="last")(hidden))
    model, _ = klb.quantize_model(model, "twn", overrides={"wide": klb.quantizers.Uniform(bits=8)})
    inputs = np.random.default_rng(3).normal(size=(4, 70_000)).astype(np.float32)
    klb.calibrate(model, inputs, verbose=0)
    names = [layer.name for layer in packed_layers(klb.pack(model))]
    assert "ternary" in names
    assert "wide" not in names
    graph = klb.deploy.lower(model)
    np.testing.assert_array_equal(klb.deploy.Runtime(graph)(inputs), run_reference(graph, inputs))


def test_a_summary_counts_packed_layers(packed):
    model, packed_model, _ = packed
    before = {row.path: row for row in klb.summary(model).layers}
    found = klb.summary(packed_model)
    assert {row.path for row in found.layers} == set(before)
    assert found.file_bytes is None
    assert "use the model that you packed" in found.no_file_because.lower()
    layers = {layer.name: layer for layer in packed_layers(packed_model)}
    for row in found.layers:
        was = before[row.path]
        counts = (row.parameters, row.macs, row.activation_bits)
        assert counts == (was.parameters, was.macs, was.activation_bits)
        if row.path in layers:
            assert row.layer.startswith("PackedTernary")
            assert row.weight_bits == 2
            assert row.memory_bytes == sum(weight.nbytes for weight in own(layers[row.path]))
            assert row.multiplications == was.multiplications
        else:
            assert row == dataclasses.replace(was, file_bytes=None)


def own(layer):
    """The layer's arrays, without the state of its quantizer."""
    arrays = [layer.packed_data, layer.packed_scales, layer.packed_sums, layer.scale, layer.bias]
    return [np.asarray(keras.ops.convert_to_numpy(array)) for array in arrays if array is not None]


def test_packed_models_are_refused_where_quantized_ones_are_needed(packed, tmp_path):
    for use in (lambda model: klb.export_litert(model, tmp_path / "q.tflite"), klb.pack, klb.deploy.lower):
        with pytest.raises(
            ValueError, match=r"cannot use 'net'.*\(packed: .*second.*\)\. Use the model that you packed"
        ):
            use(packed[1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda model: klb.export_litert("q.keras", "q.tflite"), "export_litert takes .*'q.keras': load it with"),
        (
            lambda model: klb.export_litert(klb.deploy.lower(model), "q.tflite"),
            "got IntegerGraph: give the model that it",
        ),
        (lambda model: klb.pack(None), "pack takes a Keras 3 model, got None"),
        (lambda model: klb.summary("q.keras"), "summary takes a Keras 3 model"),
        (lambda model: klb.deploy.lower(None), "lower takes a Keras 3 model, got None"),
        (lambda model: klb.verify("q.keras", "q.tflite", None), "verify takes .*'q.keras': load it with"),
        (
            lambda model: klb.deploy.Runtime(model),
            "Runtime takes an IntegerGraph, got Functional .*: make one with .*lower",
        ),
        (
            lambda model: run_reference(model, np.zeros((1, 12, 12, 4))),
            "run_reference takes an IntegerGraph, got Functional",
        ),
        (lambda model: klb.deploy.Runtime("q.keras"), "a .keras file is loaded and lowered"),
    ],
)
def test_things_of_another_kind_are_named(packed, use, words):
    with pytest.raises(TypeError, match=words):
        use(packed[0])
