"""The recipes lsq-4, lsq-3 and lsq-2: which ranges have few bits, and files whose codes are those of the integer graph."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_lowbit as klb
from keras_lowbit.deploy.reference.interpreter import trace
from keras_lowbit.quantizers import ActivationRange

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(32, 12, 12, 3)).astype("float32")
LABELS = RNG.integers(0, 5, 32)


def network():
    """Relus of all kinds: a layer, an activation, relu6; read by products, by a sum, through padding, by an average."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(x)
    x = layers.ReLU(name="to_depthwise")(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.ZeroPadding2D(name="pad")(layers.ReLU(6.0, name="through_padding")(x))
    y = layers.Conv2D(8, 3, activation="relu", name="to_a_sum_too")(x)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="to_one_layer")(y)
    x = layers.Conv2D(8, 3, padding="same", name="linear")(x)
    x = layers.ReLU(name="to_an_average")(layers.Add(name="sum")([x, y]))
    return keras.Model(inputs, layers.Dense(5, name="last")(layers.GlobalAveragePooling2D(name="average")(x)))


def bits_of(model):
    hosts = {layer.name: getattr(layer, "output_host", None) for layer in model.layers}
    return {name: host.quantizer.bits for name, host in hosts.items() if host is not None}


@pytest.mark.parametrize("recipe", ["lsq-4", klb.recipes.get("int8").replace(activations=ActivationRange(3))])
def test_between_a_relu_and_products_there_are_few_bits_elsewhere_eight(recipe):
    bits = bits_of(klb.quantize_model(network(), recipe)[0])
    few = {name for name, count in bits.items() if count < 8}
    assert few == {"to_depthwise_range", "through_padding_range", "to_one_layer_range"}
    assert set(bits.values()) == {8, 4 if recipe == "lsq-4" else 3}


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_a_trained_model_becomes_a_file_of_exact_codes(bits, tmp_path):
    model, _ = klb.quantize_model(network(), f"lsq-{bits}")
    assert {layer.kernel_quantizer.bits for layer in model.layers if hasattr(layer, "kernel_quantizer")} == {8, bits}
    klb.calibrate(model, IMAGES, verbose=0)
    before = [float(host.state["factor"]) for _, host in klb.layers.hosts(model) if host.activation_range is not None]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, jit_compile=False)
    model.fit(IMAGES, LABELS, batch_size=8, epochs=1, verbose=0)
    after = [float(host.state["factor"]) for _, host in klb.layers.hosts(model) if host.activation_range is not None]
    assert all(old != new for old, new in zip(before, after, strict=True))
    path = tmp_path / "m.tflite"
    klb.export_litert(model, path, verbose=0)
    parity = klb.verify(model, path, IMAGES[:8], verbose=0)
    assert parity.ok
    assert "NumPy reference: 0 of " in str(parity)  # elements that differ from the file run by LiteRT
    graph = klb.deploy.lower(model)
    lowest = 127 - (2**bits - 1)
    narrow = {
        name for name, tensor in graph.tensors.items() if name not in graph.inputs and tensor.zero_point == lowest
    }
    seen = [codes for name, codes in trace(graph, IMAGES[:8]).items() if name in narrow]
    assert len(seen) == 4  # three ranges, one of them on both sides of the padding
    assert {(int(codes.min()), int(codes.max()) <= 127) for codes in seen} == {(lowest, True)}


def test_few_bits_below_zero_are_refused():
    inputs = keras.Input((6, 6, 3))
    x = klb.layers.QuantConv2D(4, 3, kernel_quantizer="uniform", name="conv")(
        klb.layers.QuantActivation(quantizer=ActivationRange(4), name="range")(inputs)
    )
    model = keras.Model(inputs, klb.layers.QuantActivation(name="end")(x))
    klb.calibrate(model, IMAGES[:, :6, :6], verbose=0)
    with pytest.raises(ValueError, match=r"The range of 'range' has 4 bits and codes for values below 0"):
        klb.deploy.lower(model)
