"""16-bit activations (LiteRT's 16x8 mode), from a Keras model to a verified file; what has no int16 kernel runs in float."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_lowbit as klb
from keras_lowbit import deploy
from keras_lowbit.deploy.interpreters import make_interpreter
from keras_lowbit.deploy.litert.reader import LiteRTFile
from tests.support.lowering_zoo import ZOO, trained
from tests.support.model_zoo import run

SHAPE = (12, 12, 3)


def network():
    """Every kind of operation with an int16 kernel that a model of images has, and a gelu."""
    image, ids = keras.Input(SHAPE, name="image"), keras.Input((5,), dtype="int32", name="ids")
    x = kl.ReLU(6.0)(kl.BatchNormalization()(kl.Conv2D(8, 3, padding="same", name="conv")(image)))
    y = kl.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
    y = kl.Conv2D(8, 1, activation="silu", name="pointwise")(y)
    x = kl.MaxPooling2D()(kl.Add(name="add")([x, y]))
    x = kl.Conv2DTranspose(4, 3, strides=2, padding="same", activation="hard_silu", name="transposed")(x)
    x = kl.UpSampling2D(interpolation="bilinear", name="up")(kl.ZeroPadding2D()(kl.AveragePooling2D(3)(x)))
    gate = kl.Dense(4, activation="sigmoid", name="gate")(kl.GlobalAveragePooling2D(keepdims=True)(x))
    x = kl.Flatten()(kl.Cropping2D()(kl.LeakyReLU()(kl.Multiply()([x, gate]))))
    words = kl.GlobalAveragePooling1D()(kl.Embedding(9, 6, name="words")(ids))
    x = kl.Concatenate()([kl.Dense(6, activation="tanh", name="dense")(x), kl.Dense(6, name="word")(words)])
    x = kl.Dense(8, activation="gelu", name="gelu")(x)
    return keras.Model([image, ids], kl.Softmax(name="shares")(kl.Dense(4, name="logits")(x)))


def data(count=8):
    random = np.random.default_rng(4)
    return {
        "image": random.normal(size=(count, *SHAPE)).astype(np.float32),
        "ids": random.integers(0, 9, (count, 5), dtype=np.int32),
    }


@pytest.fixture(scope="module")
def quantized():
    keras.utils.set_random_seed(7)
    model = network()
    found, report = klb.quantize_model(model, "int16x8")
    klb.calibrate(found, data(), verbose=0)
    return model, found, report


def test_the_file_is_the_model_and_equals_the_reference_on_every_element(quantized, tmp_path):
    model, wide, _ = quantized
    report = klb.export_litert(wide, tmp_path / "wide.tflite")
    parity = klb.verify(wide, tmp_path / "wide.tflite", data(), reference=model)
    assert parity.problems == ()
    assert parity.reference_equal is True
    assert {layer.codes for layer in parity.layers} == {"int16"}
    narrow, _ = klb.quantize_model(model, "int8")
    klb.calibrate(narrow, data(), verbose=0)
    klb.export_litert(narrow, tmp_path / "narrow.tflite")
    with_int8 = klb.verify(narrow, tmp_path / "narrow.tflite", data(), reference=model)
    assert parity.outputs[0].reference_snr_db > with_int8.outputs[0].reference_snr_db + 3
    assert report.float_fallbacks == ()
    # Sums that int32 holds are in int32, which LiteRT has fast kernels for; its depthwise kernel takes int64 alone.
    file = LiteRTFile(tmp_path / "wide.tflite")
    assert {name: file.tensors[f"{name}/bias"].type for name in ("conv", "depthwise", "pointwise", "logits")} == {
        "conv": "INT32",
        "depthwise": "INT64",
        "pointwise": "INT32",
        "logits": "INT32",
    }


def test_weights_in_the_file_are_those_of_the_int8_recipe(quantized):
    model, wide, _ = quantized
    narrow, _ = klb.quantize_model(model, "int8")
    codes = [klb.quantized_weights(each) for each in (wide, narrow)]
    assert codes[0].keys() == codes[1].keys()
    for path in codes[0]:
        np.testing.assert_array_equal(codes[0][path].codes, codes[1][path].codes)


def test_ends_are_int16_or_float32_and_no_narrower(quantized, tmp_path):
    _, wide, _ = quantized
    types = {}
    for io in (None, "int16", "float32", ("float32", "int16")):
        klb.export_litert(wide, tmp_path / "ends.tflite", io=io)
        found = make_interpreter("reference", model_content=(tmp_path / "ends.tflite").read_bytes())
        ends = found.get_input_details()[0], found.get_output_details()[0]
        types[io] = [np.dtype(end["dtype"]).name for end in ends]
    assert types == {
        None: ["int16", "int16"],
        "int16": ["int16", "int16"],
        "float32": ["float32", "float32"],
        ("float32", "int16"): ["float32", "int16"],
    }
    assert klb.verify(wide, tmp_path / "ends.tflite", data(2)).ok
    with pytest.raises(ValueError, match="io='int8' for 'image', whose codes have 16 bits: expected 'int16'"):
        klb.export_litert(wide, tmp_path / "ends.tflite", io="int8")


def test_what_takes_int8_alone_says_so(quantized, tmp_path):
    _, wide, _ = quantized
    graph = deploy.lower(wide)
    with pytest.raises(ValueError, match=r"has 16-bit codes .* Runtime's kernels take int8"):
        deploy.Runtime(graph)
    with pytest.raises(ValueError, match="activations are int16, edgetpu takes int8"):
        klb.export_litert(wide, tmp_path / "edge.tflite", target="edgetpu")
    assert not (tmp_path / "edge.tflite").exists()
    report = klb.export_litert(wide, tmp_path / "int4.tflite", weights="int4")
    assert {row.weight_type for row in report.rows} == {"int8"}
    assert all("beside 16-bit activations weights are int8" in row.why for row in report.rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("transformer", "lstm", "squeeze and excite", "conv1d causal", "concat unequal", "prelu"),
        # Its means are rounding errors alone, of values that 16 bits hold finer than float32 forms their sum.
        "layer normalization of what is normalized",
    ],
)
def test_models_of_the_zoo_are_verified(name, tmp_path):
    wide, images = trained(dataclasses.replace(ZOO[name], recipe="int16x8"))
    klb.export_litert(wide, tmp_path / "m.tflite")
    parity = klb.verify(wide, tmp_path / "m.tflite", images)
    assert parity.problems == ()
    assert parity.reference_equal is True


def test_a_packed_layer_on_sixteen_bits_computes_in_float():
    x = entry = keras.Input((6, 6, 8))
    model = keras.Model(entry, kl.Conv2D(8, 3)(x))
    recipe = klb.recipes.get("twn").replace(activations=16)
    wide, _ = klb.quantize_model(model, recipe)
    images = np.random.default_rng(0).normal(size=(4, 6, 6, 8)).astype(np.float32)
    klb.calibrate(wide, images, verbose=0)
    packed = klb.pack(wide)
    np.testing.assert_allclose(run(packed, images)[0], run(wide, images)[0], atol=1e-3)


FUNCTIONS = {
    **{name: kl.Activation(name) for name in ("gelu", "elu", "selu", "softplus", "mish", "exponential", "softsign")},
    "log": lambda x: keras.ops.log(keras.ops.abs(x) + 0.1),
    "rsqrt": lambda x: keras.ops.rsqrt(keras.ops.square(x) + 1.0),
    "a function of the user's": kl.Lambda(lambda x: keras.ops.sin(x) * x),
    "layer normalization": kl.LayerNormalization(),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_are_tables_of_all_codes(function, tmp_path):
    entry = keras.Input((6, 8), name="x")
    model = keras.Model(entry, kl.Dense(3, name="head")(FUNCTIONS[function](kl.Dense(8, name="dense")(entry))))
    values = np.random.default_rng(3).normal(size=(16, 6, 8)).astype(np.float32)
    wide, _ = klb.quantize_model(model, "int16x8")
    klb.calibrate(wide, values, verbose=0)
    assert klb.export_litert(wide, tmp_path / "m.tflite").float_fallbacks == ()
    parity = klb.verify(wide, tmp_path / "m.tflite", values, reference=model)
    assert parity.problems == ()
    assert parity.reference_equal is True
    assert parity.outputs[0].reference_snr_db > 35  # what 8-bit weights leave


def test_every_code_of_a_table_is_the_nearest_of_the_function():
    entry = keras.Input((4,), name="x")
    wide, _ = klb.quantize_model(
        keras.Model(entry, kl.Dense(2, name="head")(keras.ops.exp(kl.Dense(3, name="dense")(entry)))), "int16x8"
    )
    klb.calibrate(wide, np.random.default_rng(5).normal(size=(64, 4)).astype(np.float32), verbose=0)
    graph = deploy.lower(wide)
    [node] = [node for node in graph.nodes if node.op == "table"]
    source, table = (graph.tensors[name] for name in node.inputs)
    real = np.exp(np.arange(-(2**15), 2**15) * np.float64(source.scale))
    steps = np.clip(real / np.float64(table.scale), -(2**15), 2**15 - 1)
    assert np.abs(table.data - steps).max() <= 0.51  # half a step, and float32 in front of it


def test_places_run_in_float_and_the_reports_say_why(tmp_path):
    entry = keras.Input((6, 6, 3), name="x")
    x = kl.Flatten()(kl.Conv2D(3, 3, name="conv")(entry))
    model = keras.Model(entry, keras.ops.argmax(kl.Dense(4, name="dense")(x), axis=-1))
    images = np.random.default_rng(1).normal(size=(6, 6, 6, 3)).astype(np.float32)
    wide, report = klb.quantize_model(model, "int16x8")
    klb.calibrate(wide, images, verbose=0)
    assert "ARG_MAX takes no int16" in report["argmax"].detail
    exported = klb.export_litert(wide, tmp_path / "m.tflite")
    assert {found.path for found in exported.float_fallbacks} == {"argmax"}
    parity = klb.verify(wide, tmp_path / "m.tflite", images)
    assert parity.ok
    assert parity.reference_equal is True


def test_thresholds_of_weights_train_beside_sixteen_bit_activations():
    x = entry = keras.Input((6, 6, 3))
    model = keras.Model(entry, kl.Dense(3)(kl.Flatten()(kl.Conv2D(4, 3, activation="relu")(x))))
    images = np.random.default_rng(2).normal(size=(32, 6, 6, 3)).astype(np.float32)
    wide, _ = klb.quantize_model(model, klb.recipes.get("fat-w4").replace(activations=16))
    klb.calibrate(wide, images, verbose=0)
    before = klb.quantized_weights(wide)
    klb.distill(wide, model, images, epochs=1, batch_size=8, check=False, verbose=0)
    after = klb.quantized_weights(wide)
    assert any((before[path].scale != after[path].scale).any() for path in before)
    graph = deploy.lower(wide)
    assert {graph.tensors[name].dtype for name in graph.outputs} == {"int16"}


def test_what_lies_far_below_the_largest_has_a_share_of_a_softmax_of_16_bits_and_that_is_no_fault(tmp_path):
    """Keys that a causal query does not see, and classes far from the first: LiteRT gives them exp(-10)."""
    keras.utils.set_random_seed(0)
    entry = keras.Input((24, 8), name="x")
    seen = kl.MultiHeadAttention(2, 4, name="heads")(entry, entry, use_causal_mask=True)
    logits = kl.Dense(80, kernel_initializer=keras.initializers.RandomNormal(stddev=6.0))(kl.Flatten()(seen))
    model = keras.Model(entry, kl.Softmax(name="classes")(logits))
    sequences = np.random.default_rng(0).normal(size=(8, 24, 8)).astype("float32")
    wide, _ = klb.quantize_model(model, "int16x8")
    klb.calibrate(wide, sequences, verbose=0)
    assert klb.export_litert(wide, tmp_path / "m.tflite").float_fallbacks == ()
    parity = klb.verify(wide, tmp_path / "m.tflite", sequences)
    assert parity.problems == ()
    steps = {layer.name: layer.max_steps for layer in parity.layers if layer.op == "SOFTMAX"}
    assert max(steps.values()) > 16  # more than tables alone explain
