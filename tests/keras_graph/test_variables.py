"""Models that Keras itself has quantized are refused before their codes are taken for weights."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.layers import QuantActivation, QuantDense

L = keras.layers
EVERY = {
    "quantize_model": klb.quantize_model,
    "fold_batch_norms": klb.fold_batch_norms,
    "equalize": klb.equalize,
    "rescale_depthwise": lambda model: klb.rescale_depthwise(model, np.ones((2, 8), "float32"), verbose=0),
    "dequantize": klb.dequantize,
    "lower": klb.deploy.lower,
}


def network(inside=False):
    row = keras.Input((8,))
    x = L.BatchNormalization()(L.Dense(8, name="first")(row))
    x = keras.Sequential([keras.Input((8,)), L.Dense(8)])(x) if inside else x
    return keras.Model(row, L.Dense(2, name="head")(x), name="net")


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")  # Keras' own
@pytest.mark.parametrize("function", EVERY)
@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_a_model_that_keras_has_quantized_is_refused_with_the_remedy(function, mode):
    model = network()
    model.quantize(mode)
    with pytest.raises(
        ValueError, match=rf"'net' was quantized by Keras: 2 layers, .*'first' \({mode}\).*Give the float"
    ):
        EVERY[function](model)


def test_one_layer_inside_a_nested_model_is_enough():
    model = network(inside=True)
    model.layers[-2].layers[-1].quantize("int8")
    with pytest.raises(ValueError, match="was quantized by Keras: 1 layer, "):
        klb.quantize_model(model)


def test_a_drop_in_layer_keeps_its_quantizer_under_no_policy_of_keras():
    for make in (lambda **options: QuantDense(4, kernel_quantizer="ternary", **options), QuantActivation):
        with pytest.raises(ValueError, match=r"dtype policy 'int8_from_float32'.*Give dtype='float32'"):
            make(dtype="int8_from_float32")
    layer = QuantDense(4, kernel_quantizer="ternary")
    layer.dtype_policy = "int8_from_float32"
    with pytest.raises(ValueError, match="dtype policy 'int8_from_float32'"):
        layer.build((None, 3))
    layer = QuantDense(4, kernel_quantizer="ternary")
    layer.build((None, 3))
    with pytest.raises(NotImplementedError, match=r"has quantizers of its own.*kernel_quantizer='uniform'"):
        layer.quantize("int8", type_check=False)
