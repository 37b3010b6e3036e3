"""quantize_model and quantize_apply where TFMOT's own layout gives up: operators, Lambda layers, nested parts."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

import keras_lowbit as klb
import keras_lowbit.tfmot as klt
from keras_lowbit.keras_graph.depth import recursion_for
from keras_lowbit.tfmot.operators import Operator, decode, encode
from tests.support.recursion import frames_left

L = tf_keras.layers
IMAGE = (8, 8, 3)
pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")


def images(samples=16):
    return np.random.default_rng(2).normal(size=(samples, *IMAGE)).astype(np.float32)


OPERATORS = {
    "add const": lambda x: x + 3.0,
    "mul const": lambda x: x * 0.5,
    "mul self": lambda x: x * L.ReLU(6.0)(x + 3.0) / 6.0,
    "two tensors": lambda x: x + L.Conv2D(4, 1)(x),
    "slice": lambda x: x[:, 1:, ..., ::-1] - 1,
    "concat": lambda x: tf.concat([x, tf.nn.relu6(x)], -1),
    "lambda": lambda x: L.Lambda(lambda z: z / 127.5 - 1.0, name="lambda")(x),
    "lambda of two": lambda x: L.Lambda(lambda pair: pair[0] * pair[1])([x, L.Conv2D(4, 1)(x)]),
}


def network(operator):
    inputs = L.Input(IMAGE)
    features = operator(L.Conv2D(4, 3, name="conv")(inputs))
    return tf_keras.Model(inputs, L.Dense(2, name="dense")(L.Flatten()(features)))


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_quantized_saved_and_translated(name, tmp_path):
    plain = network(OPERATORS[name])
    model = klt.quantize_model(plain, "int8")
    for _ in range(3):
        model(images(), training=True)
    float_results, results = np.asarray(plain(images())), np.asarray(model(images()))
    assert np.abs(results - float_results).max() < 0.05 * np.abs(float_results).max()
    model.save(tmp_path / "m.h5")
    with klt.scope():
        again = tf_keras.models.load_model(tmp_path / "m.h5")
    np.testing.assert_array_equal(np.asarray(again(images())), results)
    twin = klt.to_keras3(again)
    step = float(np.diff(np.unique(results)).min())
    assert (np.abs(np.asarray(twin(images())) - results) < 1.5 * step).all()


def test_skipped_operators_stay_float_and_the_model_is_left_alone():
    plain = network(lambda x: L.Lambda(lambda z: (z + 1.0) * 2.0, name="twice")(x) * 2.0)
    names, config = [layer.name for layer in plain.layers], plain.get_config()
    model = klt.quantize_model(plain, "int8", skip=["twice", r"tf\..*"])
    configs = {layer.layer.name: layer.quantize_config for layer in model.layers if hasattr(layer, "quantize_config")}
    operators = [name for name in configs if name.startswith(("tf.", "twice"))]
    assert [name.rstrip("_0123456789") for name in operators] == ["twice", "twice", "tf.math.multiply"]
    assert {configs[name] for name in operators} == {klt.NoOpQuantizeConfig()}
    assert [layer.name for layer in plain.layers] == names
    assert plain.get_config() == config
    assert all(len(layer._inbound_nodes) == 1 for layer in plain.layers)
    with pytest.raises(ValueError, match="'nothing' matches no layer"):
        klt.quantize_model(plain, "int8", skip="nothing")


def test_a_network_with_operators_goes_to_the_phone_in_int8(tmp_path):
    inputs = L.Input(IMAGE)
    x = L.Conv2D(4, 3, use_bias=False)(inputs / 255.0)
    x = L.BatchNormalization()(x)
    x = x * (L.ReLU(6.0)(x + 3.0) * (1.0 / 6.0))  # the hard swish of MobileNetV3
    model = klt.quantize_model(tf_keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(x))), "int8")
    data = 127.5 + 60 * images()
    for _ in range(3):
        model(data, training=True)
    twin = klt.to_keras3(model)
    assert klb.export_litert(twin, tmp_path / "m.tflite").float_fallbacks == ()
    assert klb.verify(twin, tmp_path / "m.tflite", data[:4]).max_layer_steps <= 1


def test_what_a_stock_layer_does_too_becomes_one_that_tfmots_layout_fuses():
    inputs = L.Input(IMAGE)
    x = L.Conv2D(4, 3, name="conv")(inputs)
    x = tf.nn.relu(x + L.Conv2D(4, 3, name="other")(inputs))
    model = klt.quantize_model(tf_keras.Model(inputs, tf.concat([x, x * x], -1)), "int8")
    kinds = {
        layer.layer.name: type(layer.layer).__name__ for layer in model.layers if hasattr(layer, "quantize_config")
    }
    configs = {layer.layer.name: layer.quantize_config for layer in model.layers if hasattr(layer, "quantize_config")}
    assert sorted(kinds.values()) == ["Add", "Concatenate", "Conv2D", "Conv2D", "Multiply", "ReLU"]
    add = next(name for name, kind in kinds.items() if kind == "Add")
    assert configs[add] == klt.NoOpQuantizeConfig()  # its range stands behind the relu


def test_arguments_of_operators_survive_json():
    tensor = tf_keras.Input((4,))
    given = (
        [tensor, 3.0, None],
        {
            "a": (slice(1, None, -1), Ellipsis, 0),
            "b": np.arange(3, dtype="int64"),
            "c": tf.float16,
            "d": {"e": [tensor]},
        },
    )
    tensors = []
    encoded = encode(given, tensors)
    args, kwargs = decode(encoded, ["x", "y"])
    assert [id(t) for t in tensors] == [id(tensor)] * 2
    assert args == ["x", 3.0, None]
    assert kwargs["a"] == (slice(1, None, -1), Ellipsis, 0)
    assert (kwargs["b"].tolist(), kwargs["b"].dtype) == ([0, 1, 2], np.int64)
    assert kwargs["c"] is tf.float16
    assert kwargs["d"] == {"e": ["y"]}
    layer = Operator("math.multiply", encode((("t",), {}), []))
    assert Operator.from_config(layer.get_config()).get_config() == layer.get_config()


def nested_part(nested):
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    return tf_keras.Sequential([nested, annotate(L.Dense(10, name="dense"), klt.SQQuantizeConfig())])


@pytest.mark.parametrize("scheme", ["sq-twn", "int8"])
def test_a_part_that_was_not_annotated_may_be_a_model(scheme):
    nested = tf_keras.Sequential([L.Dense(10, input_shape=(2,))], name="inner")
    with klt.scope():
        model = tfmot.quantization.keras.quantize_apply(nested_part(nested), scheme=klt.QuantizeScheme(scheme))
    data = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    model(data, training=True)
    twin = klt.to_keras3(model)
    np.testing.assert_allclose(np.asarray(twin(data)), np.asarray(model(data)), atol=1e-6)
    assert twin.get_layer("dense").kernel_quantizer == klb.quantizers.Stochastic("ternary")


def test_parts_that_get_nothing_are_not_wrapped():
    """A layer of several tensors, which TFMOT's wrapper cannot call."""
    inputs = tf_keras.Input((5, 4))
    mixed = L.MultiHeadAttention(2, 2, name="attention")(inputs, inputs)
    output = tfmot.quantization.keras.quantize_annotate_layer(L.Dense(3))(mixed)
    with klt.scope():
        model = tfmot.quantization.keras.quantize_apply(
            tf_keras.Model(inputs, output), scheme=klt.QuantizeScheme("int8")
        )
    assert type(model.get_layer("attention")).__name__ == "MultiHeadAttention"


def test_a_deep_network_is_quantized_and_translated():
    depth = 150
    inputs = features = L.Input((4,))
    for _ in range(depth):
        features = L.ReLU()(features)
    with recursion_for(depth):
        plain = tf_keras.Model(inputs, L.Dense(2)(features * 2.0))
    with frames_left(depth):
        twin = klt.to_keras3(klt.quantize_model(plain, "int8"))
    assert len(twin.layers) > depth
