"""Each copy is compared with its original once, and what differs is named."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.keras_graph.edits import LayerEdit, rewrite_model
from keras_lowbit.keras_graph.variables import to_numpy

L = keras.layers


class Remembers(L.Layer):
    """A class that finds its factor by the object, so that no copy has it."""

    def call(self, x):
        return x * FACTORS.get(id(self), 1.0)


FACTORS: dict = {}


class Counting(L.Layer):
    """Counts its calls, and draws random numbers in inference too."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")
        self.seed = keras.random.SeedGenerator(3)

    def call(self, x):
        self.count.assign_add(1.0)
        return x + keras.random.normal((4,), seed=self.seed) * 0


def around(layer, dtype="float32", shape=(4,)):
    row = keras.Input(shape, dtype=dtype, name="row")
    return keras.Model(row, L.Dense(2, name="head")(layer(row)), name="net")


def test_the_layer_that_differs_is_named():
    layer = Remembers(name="remembers")
    model = around(layer)
    FACTORS[id(layer)] = 3.0
    for function in (klb.quantize_model, klb.fold_batch_norms):
        with pytest.raises(
            ValueError, match=r"copy of layer 'remembers' \(Remembers\) .* they differ by .* get_config"
        ):
            function(model)


def test_a_method_set_on_a_layer_does_not_vanish_in_silence():
    model = around(L.Activation("relu"))
    layer = model.get_layer("head")
    stock = layer.call
    layer.call = lambda inputs, training=None: stock(inputs) + 1.0
    with pytest.raises(ValueError, match="copy of layer 'head'"):
        klb.quantize_model(model)


def test_nothing_of_the_original_changes_by_looking():
    model = around(Counting(name="counting"))
    before = [to_numpy(variable) for variable in model.variables]
    quantized, _ = klb.quantize_model(model)
    klb.fold_batch_norms(model)
    for wanted, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), wanted)
    assert float(quantized.get_layer("counting").count) == float(model.get_layer("counting").count)


class Drawing(L.Layer):
    """Draws in inference too, from the generator that all share."""

    def call(self, x):
        return x + keras.random.normal((4,))


def test_a_layer_that_draws_is_no_difference():
    model = around(Drawing())
    klb.quantize_model(model)
    head = model.get_layer("head")
    rewrite_model(model, {id(head): LayerEdit(weights={"kernel": to_numpy(head.kernel)})}, exact=True)


def test_exact_changes_are_compared_from_end_to_end():
    model = around(L.Activation("relu"))
    head = model.get_layer("head")
    wrong = {id(head): LayerEdit(weights={"kernel": to_numpy(head.kernel) + 0.1})}
    rewrite_model(model, wrong)
    with pytest.raises(ValueError, match=r"The copy of 'net' computes something else.*Changed were head"):
        rewrite_model(model, wrong, exact=True)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "float32", "float16", "bfloat16"])
def test_inputs_of_every_dtype_are_made(dtype):
    model = around(L.Lambda(lambda x: keras.ops.cast(x, "float32")), dtype)
    assert len(klb.fold_batch_norms(model).layers) == 3


def test_positions_in_a_table_and_open_sizes_are_no_obstacle():
    row = keras.Input((None,), name="row")  # positions as floats, as files of the field have them
    model = keras.Model(row, L.Dense(2)(L.GlobalAveragePooling1D()(L.Embedding(3, 4)(row))))
    klb.fold_batch_norms(model)
    image = keras.Input((None, None, 3))
    x = L.Conv2D(2, 40, name="large")(image)
    klb.fold_batch_norms(keras.Model(image, L.GlobalAveragePooling2D()(x)))


class OnlyLarge(L.Layer):
    """Runs on no input of this size."""

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)

    def call(self, x):
        raise RuntimeError("only large numbers")


def test_a_model_that_runs_on_no_random_input_is_converted_with_a_word():
    model = around(OnlyLarge())
    for function in (klb.fold_batch_norms, klb.quantize_model):
        with pytest.warns(UserWarning, match=r"'net' runs on no random input \(RuntimeError: .*so it is not compared"):
            function(model)


def test_a_quantized_copy_is_compared_as_if_nothing_were_quantized():
    model = around(L.Dense(4, activation="silu", name="gated"))
    quantized, _ = klb.quantize_model(model, "sq-bwn")  # far from the float weights, and no fault of the copy
    assert all(host.watch is None for _, host in klb.layers.hosts(quantized))
    assert isinstance(quantized.get_layer("gated"), klb.layers.QuantDense)
