"""Copies hold everything that their originals hold, share what those share among each other, and nothing with them."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.keras_graph.edits import rewrite_model
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.quantizers import Uniform
from keras_lowbit.recipes import Recipe, Rule

L = keras.layers
RNG = np.random.default_rng(60)
ROWS = RNG.normal(size=(64, 4)).astype("float32")
WEIGHTS = Recipe("weights", (Rule(Uniform(8)),))


class Residual(L.Layer):
    """Takes layers, and has no configuration."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def call(self, x, training=None):
        y = x
        for layer in self.body:
            y = layer(y, training=training) if isinstance(layer, L.BatchNormalization) else layer(y)
        return x + y


class FeatureScale(L.Layer):
    """Keeps what it adapts to in plain attributes that its constructor does not know."""

    mean, std = 0.0, 1.0

    def adapt(self, x):
        self.mean, self.std = x.mean(0), x.std(0)

    def call(self, x):
        return (x - self.mean) / self.std


class Mixed(L.Layer):
    """Variables in a dict and in no attribute, a random generator, nested models, a bound method."""

    def __init__(self, unnamed=2.0):
        super().__init__(name="mixed")
        self.unnamed = unnamed
        self.seed = keras.random.SeedGenerator(5)
        self.body = keras.Sequential([keras.Input((4,)), L.Dense(4), L.Dropout(0.5)])
        row = keras.Input((4,))
        self.graph = keras.Model(row, L.Dense(4, activation=lambda x: 3 * x)(row))
        self.step = self.one_step

    def build(self, shape):
        self.parts = {"scale": self.add_weight(shape=(4,), initializer="random_normal", name="scale")}
        self.add_weight(shape=(), initializer="ones", trainable=False, name="count")

    def one_step(self, x):
        for layer in self.body.layers:
            x = layer(x)
        return x

    def compute_output_shape(self, shape):
        return shape

    def call(self, x, training=None):
        y = self.graph(self.step(x)) * self.parts["scale"] * self.unnamed
        return y + keras.random.normal(x.shape[-1:], seed=self.seed) if training else y


class Tied(L.Layer):
    """A decoder with the transposed kernel of an encoder."""

    def __init__(self, encoder):
        super().__init__(name="tied")
        self.encoder = encoder

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.encoder.kernel))


def adapted(layer):
    layer.adapt(ROWS)
    return layer


def frozen_kernel():
    layer = L.EinsumDense("ab,bc->ac", output_shape=4)
    layer.build((None, 4))
    layer.kernel.trainable = False
    return layer


def without_weights(layer):
    layer.note = {"of": "the user"}
    return layer


LAYERS = {
    "no configuration": lambda: Residual([L.Dense(4), L.BatchNormalization(), L.ReLU()]),
    "attributes": lambda: adapted(FeatureScale()),
    "mixed": lambda: Mixed(),
    "in a wrapper": lambda: L.TimeDistributed(Mixed()),
    "discretization": lambda: adapted(L.Discretization(num_bins=8)),
    "multi-hot bins": lambda: adapted(L.Discretization(num_bins=8, output_mode="multi_hot")),
    "normalization": lambda: adapted(L.Normalization()),
    "frozen variable": frozen_kernel,
    "a note": lambda: without_weights(L.UnitNormalization()),
}


def around(make, dense=3):
    wrapped = isinstance(layer := make(), L.TimeDistributed)
    row = keras.Input((5, 4) if wrapped else (4,), name="row")
    x = layer(row)
    x = L.Flatten()(L.Embedding(9, 6)(x)) if "int" in x.dtype else x
    model = keras.Model(row, L.Dense(dense, name="head")(L.Flatten()(x) if wrapped else x))
    for variable in layer.trainable_variables:
        variable.assign(RNG.normal(size=variable.shape))
    return model, layer


def everything(layer):
    return [(v.path, v.trainable, v.dtype, to_numpy(v).tolist()) for v in layer.variables]


@pytest.mark.parametrize("name", LAYERS)
def test_a_kept_layer_is_copied_whole_and_shares_nothing(name):
    model, layer = around(LAYERS[name])
    before = everything(model)
    x = RNG.normal(size=(6, *model.input_shape[1:])).astype("float32")
    wanted = to_numpy(model(x))
    for copy in (
        klb.quantize_model(model, WEIGHTS, skip=["head"])[0],
        klb.fold_batch_norms(model),
        klb.dequantize(klb.quantize_model(model, WEIGHTS, skip=["head"])[0]),
    ):
        np.testing.assert_array_equal(to_numpy(copy(x)), wanted)
        theirs = copy.layers[1]
        assert theirs is not layer
        assert type(theirs) is type(layer)
        assert [value[1:] for value in everything(theirs)] == [value[1:] for value in everything(layer)]
        assert not {id(v) for v in copy.variables} & {id(v) for v in model.variables}
        copy.compile("sgd", "mse", run_eagerly=True)
        copy.fit(x, np.zeros((6, *copy.output_shape[1:])), verbose=0)
    assert everything(model) == before
    assert getattr(copy.layers[1], "note", None) == getattr(layer, "note", None)


def test_a_copy_of_a_layer_of_layers_draws_the_same_numbers():
    model, layer = around(LAYERS["mixed"])
    copy = klb.quantize_model(model, WEIGHTS, skip=["head"])[0].get_layer("mixed")
    assert copy.step.__self__ is copy
    assert isinstance(copy.body, keras.Sequential)
    x = keras.ops.ones((2, 4))
    np.testing.assert_array_equal(to_numpy(copy(x, training=True)), to_numpy(layer(x, training=True)))
    assert everything(copy) == everything(layer)


def test_a_layer_with_weights_that_cannot_be_copied_is_refused_by_name():
    class Stubborn(L.Dense):
        def __new__(cls, units):
            return super().__new__(cls, units)

        def __init__(self, units):
            super().__init__(units, name="stubborn")

        def get_config(self):
            raise NotImplementedError

    row = keras.Input((4,))
    model = keras.Model(row, L.Dense(2)(Stubborn(3)(row)))
    for function in (klb.quantize_model, klb.fold_batch_norms):
        with pytest.raises(
            ValueError, match=r"'stubborn' \(Stubborn\) cannot be copied.*change them in your model too"
        ):
            function(model)


def tied(second_first=False):
    row = keras.Input((4,), name="row")
    encoder = L.Dense(3, activation="relu", name="encoder")
    hidden = encoder(row)
    return keras.Model(row, [Tied(encoder)(hidden), L.Dense(2, name="head")(hidden)])


class Borrowing(L.Dense):
    """A dense layer with the kernel of another one."""

    def __init__(self, other, **options):
        super().__init__(other.units, use_bias=False, **options)
        self.other = [other]

    def build(self, shape):
        self._kernel, self.bias, self.built = self.other[0]._kernel, None, True


def borrowing():
    row = keras.Input((4,), name="row")
    first = L.Dense(4, name="encoder")
    hidden = first(row)
    return keras.Model(row, [Borrowing(first, name="tied")(hidden), L.Dense(2, name="head")(hidden)])


def stock_tied():
    """Two stock layers with one kernel, tied by hand."""
    row = keras.Input((4,), name="row")
    first, second = L.Dense(4, name="encoder"), L.Dense(4, name="tied")
    first.build((None, 4)), second.build((None, 4))
    klb.keras_graph.structural.rebind(second, second._kernel, first._kernel)
    return keras.Model(row, [second(first(row)), L.Dense(2, name="head")(first(row))])


@pytest.mark.parametrize("make", [tied, borrowing, stock_tied])
def test_ties_survive_every_conversion(make):
    model = make()
    weights = len(model.weights)
    quantized = klb.quantize_model(model, WEIGHTS)[0]
    for copy in (
        quantized,
        klb.fold_batch_norms(model),
        klb.dequantize(klb.quantize_model(model, WEIGHTS, skip=[".*"])[0]),
    ):
        assert len(copy.weights) == weights
        copy.get_layer("encoder").kernel.assign(np.ones(model.get_layer("encoder").kernel.shape))
        got = copy.get_layer("tied")
        np.testing.assert_array_equal(to_numpy(getattr(got, "encoder", got).kernel), 1.0)
    assert isinstance(quantized.get_layer("encoder"), klb.layers.QuantDense)
    assert float(np.abs(to_numpy(model.get_layer("encoder").kernel) - 1).max()) > 0


def test_tied_weights_are_not_changed_for_one_of_their_layers():
    row = keras.Input((4,), name="row")
    first = L.Dense(4, name="encoder")
    hidden = L.BatchNormalization(name="norm")(first(row))
    model = keras.Model(row, Tied(first)(hidden))
    model.get_layer("norm").moving_variance.assign([4.0, 3.0, 2.0, 1.0])
    folded, report = klb.fold_batch_norms(model, return_report=True)
    assert "encoder, which is shared: it runs 2 times" in report["norm"].detail
    np.testing.assert_allclose(to_numpy(folded(ROWS)), to_numpy(model(ROWS)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["Dense", "Conv2D", "Conv1D", "EinsumDense", "Embedding"])
def test_lora_is_merged_where_the_kernel_is_taken(kind):
    make = {
        "Dense": (lambda: L.Dense(4, name="l"), (6,)),
        "Conv2D": (lambda: L.Conv2D(4, 3, name="l"), (6, 6, 2)),
        "Conv1D": (lambda: L.Conv1D(4, 3, name="l"), (6, 2)),
        "EinsumDense": (lambda: L.EinsumDense("abc,cd->abd", output_shape=(3, 4), name="l"), (3, 6)),
        "Embedding": (lambda: L.Embedding(2, 4, name="l"), (5,)),
    }
    layer, shape = make[kind][0](), make[kind][1]
    symbolic = keras.Input(shape, name="input")
    model = keras.Model(symbolic, L.BatchNormalization(name="norm")(layer(symbolic)))
    layer.enable_lora(2)
    delta = layer.lora_embeddings_b if kind == "Embedding" else layer.lora_kernel_b
    delta.assign(RNG.normal(size=delta.shape))
    model.get_layer("norm").moving_variance.assign([4.0, 2.0, 1.0, 0.5])
    x = RNG.integers(0, 2, (8, *shape)).astype("float32")
    wanted = to_numpy(model(x))
    np.testing.assert_allclose(to_numpy(klb.fold_batch_norms(model)(x)), wanted, rtol=1e-4, atol=1e-5)
    quantized, report = klb.quantize_model(model, WEIGHTS)
    np.testing.assert_allclose(to_numpy(quantized(x)), wanted, atol=0.05 * np.abs(wanted).max())
    taken = kind in ("Dense", "Conv2D", "Conv1D")
    assert ("LoRA merged" in report["l"].detail) == taken
    assert quantized.get_layer("l").lora_enabled != taken
    assert quantized.get_layer("l").bias is None or quantized.get_layer("l").bias.trainable if taken else True
    np.testing.assert_allclose(to_numpy(klb.dequantize(quantized)(x)), to_numpy(quantized(x)), rtol=1e-4, atol=1e-5)


def test_rewriting_leaves_the_original_as_it_is():
    model, layer = around(LAYERS["no configuration"])
    rewrite_model(model, {})
    before = everything(model)
    copy = rewrite_model(model, {})
    assert everything(model) == before
    assert copy.layers[1].body[0] is not layer.body[0]
