"""Weights and files of whole stock networks go into the same network written with drop-in layers, or say why not."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.layers import QuantActivation, QuantConv2D, QuantDense, load_model, set_weights, to_numpy
from keras_lowbit.quantizers import AdjustableThreshold, Stochastic, Ternary

L = keras.layers
QUANTIZERS = [
    {},
    {"kernel_quantizer": "ternary"},
    {"kernel_quantizer": "ternary", "bias_quantizer": "uniform", "output_quantizer": "activation"},
    {"kernel_quantizer": Stochastic(Ternary()), "output_quantizer": AdjustableThreshold("activation")},
]
X = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")


class TernaryConv2D(QuantConv2D):
    """What a user gives to bring quantizers: the configuration of a stock layer has none."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"kernel_quantizer": "ternary", "output_quantizer": "activation"} | kwargs)


def network(conv=L.Conv2D, dense=L.Dense, **quantizers):
    """A nested part, a batch norm, a frozen layer, a branch, a shared layer; shapes that would take each other's weights."""
    inner = keras.Sequential([keras.Input((6, 6, 3)), conv(3, 3, padding="same", **quantizers), L.BatchNormalization()])
    inner.layers[0].trainable = False
    shared = conv(3, 3, padding="same", **quantizers)
    inputs = keras.Input((6, 6, 3))
    x = L.Add()([inner(inputs), shared(inputs), conv(3, 3, padding="same", activation="relu", **quantizers)(inputs)])
    x = shared(QuantActivation("relu")(x) if conv is QuantConv2D else L.ReLU()(x))
    model = keras.Model(inputs, dense(3, **quantizers)(dense(3, **quantizers)(L.GlobalAveragePooling2D()(x))))
    rng = np.random.default_rng(7)
    model.set_weights([rng.uniform(0.5, 1.5, value.shape) for value in model.get_weights()])
    return model


def fresh(**quantizers):
    model = network(QuantConv2D, QuantDense, **quantizers)
    return keras.Model.from_config(model.get_config())


def floats(model):
    inside = {id(variable) for _, host in klb.layers.hosts(model) for variable in host.weights}
    return [to_numpy(variable) for variable in model.weights if id(variable) not in inside]


def assert_same(wanted, found):
    assert len(wanted) == len(found)
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("quantizers", QUANTIZERS)
def test_the_weights_of_the_stock_network_and_its_own(quantizers):
    stock, model = network(), fresh(**quantizers)
    set_weights(model, stock.get_weights())
    assert_same(stock.get_weights(), floats(model))
    if not quantizers:
        np.testing.assert_allclose(np.asarray(model(X)), np.asarray(stock(X)), rtol=1e-5)
    model(X, training=True)
    again = fresh(**quantizers)
    set_weights(again, model.get_weights())
    assert_same(model.get_weights(), again.get_weights())
    np.testing.assert_array_equal(np.asarray(again(X)), np.asarray(model(X)))


def test_nothing_is_taken_that_does_not_fit():
    stock, model = network(), fresh(**QUANTIZERS[2])
    before = model.get_weights()
    weights = stock.get_weights()
    number = f"got {len(weights) - 1} weights. Its stock network has {len(weights)}, .* it has {len(before)}: give"
    with pytest.raises(ValueError, match=number):
        set_weights(model, weights[:-1])
    with pytest.raises(
        ValueError, match=r"has shape \(3,\), the value in its place \(3, 3\). Both networks need the same"
    ):
        set_weights(model, [*weights[:-2], weights[-2], weights[-2]])
    assert_same(before, model.get_weights())
    model(X, training=True)
    with pytest.raises(ValueError, match=r"weights of stock layers.*has a 'minimum' of other weights already"):
        set_weights(model, weights)
    with pytest.raises(TypeError, match="A Keras 3 model is needed"):
        set_weights("model.keras", weights)


def test_kerass_own_list_keeps_all_state():
    """Why Keras' `set_weights` cannot take the shorter list: EarlyStopping keeps a model by its own two functions."""
    model = fresh(**QUANTIZERS[2])
    model(X, training=True)
    best = model.get_weights()
    result = np.asarray(model(X))
    model(10 * X, training=True)
    assert (np.asarray(model(X)) != result).any()
    model.set_weights(best)
    np.testing.assert_array_equal(np.asarray(model(X)), result)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("name", ["stock.keras", "stock.h5"])
@pytest.mark.parametrize("conv", [QuantConv2D, TernaryConv2D])
def test_custom_objects_replace_stock_layers_of_a_file(tmp_path, name, conv):
    stock = network()
    stock.compile("adam", keras.losses.MeanSquaredError(), jit_compile=False)  # h5 files of "mse" do not load in Keras
    stock.fit(X, np.zeros((2, 3)), verbose=0)
    stock.save(tmp_path / name)
    model = load_model(tmp_path / name, custom_objects={"Conv2D": conv, "Dense": QuantDense})
    kinds = [type(layer).__name__ for layer in model._flatten_layers(include_self=False)]
    assert kinds.count(conv.__name__) == 3
    assert kinds.count("QuantDense") == 2
    assert "Conv2D" not in kinds
    assert_same(stock.get_weights(), floats(model))
    assert [v.name for v in model.trainable_variables] == [v.name for v in stock.trainable_variables]
    if name.endswith(".keras"):
        assert int(model.optimizer.iterations) == 1
    else:
        model.compile("adam", "mse", jit_compile=False)
    if conv is QuantConv2D:  # no quantizer: the same function
        np.testing.assert_allclose(np.asarray(model(X)), np.asarray(stock(X)), rtol=1e-5)
    else:
        assert {host.quantizer.name for _, host in klb.layers.hosts(model)} == {"ternary", "activation"}
    model.fit(X, np.zeros((2, 3)), verbose=0)


def test_custom_objects_of_keras_itself_never_see_a_stock_class(tmp_path):
    """The reason for `load_model`; if this fails, Keras has learnt it."""
    network().save(tmp_path / "stock.keras")
    found = keras.saving.load_model(tmp_path / "stock.keras", custom_objects={"Conv2D": QuantConv2D})
    assert not klb.layers.find_layers(found, QuantConv2D)


@keras.saving.register_keras_serializable("tests")
class Net(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = L.Conv2D(3, 3), Scaled(factor=2.0)

    def call(self, x):
        return self.second(self.first(x))


class Scaled(L.Layer):
    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return super().get_config() | {"factor": self.factor}


def test_other_custom_classes_go_on_to_keras_and_what_replaces_nothing_is_refused(tmp_path):
    inputs = keras.Input((6, 6, 3))
    stock = keras.Model(inputs, Scaled(3.0)(L.Conv2D(3, 3)(inputs)))
    stock.save(tmp_path / "stock.keras")
    model = load_model(tmp_path / "stock.keras", {"Conv2D": QuantConv2D, "Scaled": Scaled})
    assert [type(layer) for layer in model.layers[1:]] == [QuantConv2D, Scaled]
    np.testing.assert_allclose(np.asarray(model(X)), np.asarray(stock(X)), rtol=1e-5)
    with pytest.raises(ValueError, match=r"no layer of the stock classes \['Conv1D'\].*It has: Conv2D, InputLayer"):
        load_model(tmp_path / "stock.keras", {"Conv1D": QuantConv2D, "Scaled": Scaled})
    with pytest.raises(ValueError, match=r"no layer of the stock classes \[\], given as .*\['Scaled', 'conv2d'\]"):
        load_model(tmp_path / "stock.keras", {"conv2d": QuantConv2D, "Scaled": Scaled})
    model.save(tmp_path / "drop_in.keras")
    with pytest.raises(ValueError, match=r"has drop-in layers already, the first is 'conv2d.*quantize_model"):
        load_model(tmp_path / "drop_in.keras", {"Dense": QuantDense, "Scaled": Scaled})


def test_layers_that_a_subclassed_model_makes_itself_are_not_replaced_in_silence(tmp_path):
    net = Net()
    net(X)
    net.save(tmp_path / "net.keras")
    with pytest.raises(ValueError, match="no layer of the stock classes"):
        load_model(tmp_path / "net.keras", {"Conv2D": QuantConv2D, "Scaled": Scaled})
