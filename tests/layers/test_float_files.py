"""A float checkpoint of stock layers loads into the same network written with drop-in layers; nothing else is taken for one."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.layers import QuantActivation, QuantConv1D, QuantConv2D, QuantConv2DTranspose, QuantDense
from keras_lowbit.layers import QuantDepthwiseConv2D as QuantDepthwise
from keras_lowbit.layers.float_files import snake_case
from keras_lowbit.quantizers import AdjustableThreshold, Incremental, PowerOfTwo, Stochastic, Ternary
from tests.support.model_zoo import run

L = keras.layers
QUANTIZERS = [
    {},
    {"kernel_quantizer": "ternary"},
    {"kernel_quantizer": "ternary", "bias_quantizer": "uniform", "output_quantizer": "activation"},
    {"kernel_quantizer": Stochastic(Ternary()), "output_quantizer": AdjustableThreshold("activation")},
    {"kernel_quantizer": Incremental(PowerOfTwo(5))},
]


def sequential(drop_in=(), **quantizers):
    """Convolutions of one shape, so that a wrong address would load without an error; those in `drop_in` are drop-in."""

    def layer(number, stock, quant, *args, **options):
        return quant(*args, **options, **quantizers) if number in drop_in else stock(*args, **options)

    parts = [layer(number, L.Conv2D, QuantConv2D, 3, 3, padding="same") for number in range(4)]
    parts.insert(2, L.BatchNormalization())
    parts += [QuantActivation("relu") if drop_in else L.ReLU(), L.GlobalAveragePooling2D()]
    parts += [layer(number, L.Dense, QuantDense, 3) for number in (4, 5, 6)]
    return keras.Sequential([keras.Input((5, 5, 3)), *parts])


def every_kind(drop_in, **quantizers):
    image = keras.Input((6, 6, 2))
    conv, deep, back, dense, row = (
        (QuantConv2D, QuantDepthwise, QuantConv2DTranspose, QuantDense, QuantConv1D)
        if drop_in
        else (L.Conv2D, L.DepthwiseConv2D, L.Conv2DTranspose, L.Dense, L.Conv1D)
    )
    inner = keras.Sequential(
        [keras.Input((6, 6, 2)), conv(2, 3, padding="same", **quantizers), deep(3, **quantizers)], name="inner"
    )
    joined = L.Add()([inner(image), deep(3, use_bias=False, **quantizers)(image)])
    x = back(2, 2, **quantizers)(joined)
    x = row(3, 2, padding="causal", **quantizers)(L.Reshape((25, 2))(x))
    return keras.Model(image, dense(2, **quantizers)(x))


def filled(model):
    rng = np.random.default_rng(7)
    for variable in model.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def stock_weights(model):
    """What a stock network has too, in its order."""
    inside = {id(v) for _, host in klb.layers.hosts(model) for v in host.weights}
    return [keras.ops.convert_to_numpy(v.value) for v in model.weights if id(v) not in inside]


def assert_same(stock, model):
    want, got = stock.get_weights(), stock_weights(model)
    assert len(want) == len(got)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("quantizers", QUANTIZERS)
@pytest.mark.parametrize("name", ["f.weights.h5", "f.keras", "f.weights.json"])
def test_every_kind_of_drop_in_layer_loads_the_file_of_its_stock_layer(tmp_path, quantizers, name):
    stock, model = filled(every_kind(drop_in=False)), every_kind(drop_in=True, **quantizers)
    if name.endswith(".json"):
        stock.save_weights(tmp_path / name, max_shard_size=1e-6)
    else:
        stock.save(tmp_path / name) if name.endswith(".keras") else stock.save_weights(tmp_path / name)
    model.load_weights(tmp_path / name)
    assert_same(stock, model)


MIXED = [(0,), (3,), (1, 2), (0, 2), (0, 1, 2, 3, 4, 5, 6), (1, 2, 3, 5), (3, 4), (2, 6)]


# The statistics of the batch norm are random numbers, of no data.
@pytest.mark.filterwarnings("ignore:The calibration data do not fit")
@pytest.mark.parametrize("drop_in", MIXED)
def test_stock_layers_beside_drop_in_ones_read_their_own_entries(tmp_path, drop_in):
    stock = filled(sequential())
    stock.save_weights(tmp_path / "f.weights.h5")
    model = sequential(drop_in, kernel_quantizer="ternary", output_quantizer="activation")
    model.load_weights(tmp_path / "f.weights.h5")
    assert_same(stock, model)
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 3)).astype("float32")
    klb.calibrate(model, x, verbose=0)
    model.save_weights(tmp_path / "q.weights.h5")  # and a file of its own loads as ever
    again = sequential(drop_in, kernel_quantizer="ternary", output_quantizer="activation")
    again.load_weights(tmp_path / "q.weights.h5")
    np.testing.assert_array_equal(run(again, x)[0], run(model, x)[0])


def test_a_subclass_and_a_model_of_attributes_load_too(tmp_path):
    class Own(QuantConv2D):
        pass

    class Net(keras.Model):
        def __init__(self, conv, dense, **quantizers):
            super().__init__()
            self.first, self.head = conv(3, 3, **quantizers), dense(2, **quantizers)
            self.pool = L.GlobalAveragePooling2D()

        def call(self, x, training=None):
            return self.head(self.pool(self.first(x, training=training)), training=training)

    x = np.ones((1, 5, 5, 3), "float32")
    stock, model = (
        Net(L.Conv2D, L.Dense),
        Net(Own, QuantDense, kernel_quantizer="ternary", output_quantizer="activation"),
    )
    stock(x), model(x)
    filled(stock).save_weights(tmp_path / "f.weights.h5")
    model.load_weights(tmp_path / "f.weights.h5")
    assert_same(stock, model)


@pytest.mark.filterwarnings("ignore:Skipping nested container")  # Keras', once a layer has failed
def test_where_the_graph_does_not_say_which_layer_it_is_nothing_is_guessed(tmp_path):
    def beside(conv, **quantizers):
        image = keras.Input((5, 5, 3))
        return keras.Model(image, L.Add()([L.Conv2D(3, 3)(image), conv(3, 3, **quantizers)(image)]))

    filled(beside(L.Conv2D)).save_weights(tmp_path / "f.weights.h5")
    with pytest.raises(ValueError, match=r"which of its Conv2D layers .* cannot be told.*layers.set_weights"):
        beside(QuantConv2D, kernel_quantizer="ternary").load_weights(tmp_path / "f.weights.h5")


@pytest.mark.parametrize("quantizers", QUANTIZERS)
def test_a_layer_takes_the_weights_of_its_stock_layer(quantizers):
    stock, model = filled(sequential()), sequential(range(7), **quantizers)
    for old, new in zip(stock.layers, model.layers, strict=True):
        if old.weights:
            new.set_weights(old.get_weights())
    assert_same(stock, model)
    x = np.ones((2, 5, 5, 3), "float32")
    for layer in model.layers:  # and its own, state included
        layer.set_weights(layer.get_weights())
    with pytest.raises(ValueError, match="weight list of length 1"):
        model.layers[0].set_weights([model.layers[0].get_weights()[0]])
    model(x)


def test_float_weights_do_not_slip_under_state_that_belongs_to_others(tmp_path):
    stock = filled(sequential())
    stock.save_weights(tmp_path / "f.weights.h5")
    model = sequential(range(7), kernel_quantizer="ternary", output_quantizer="activation")
    klb.calibrate(model, np.ones((2, 5, 5, 3), "float32"), verbose=0)
    with pytest.raises(ValueError, match=r"has a 'minimum' of other weights already.*before it is calibrated"):
        model.load_weights(tmp_path / "f.weights.h5")
    with pytest.raises(ValueError, match=r"got the 2 weights of stock layers.*has a 'm"):
        model.layers[0].set_weights(stock.layers[0].get_weights())
    model = sequential(range(7), kernel_quantizer=Stochastic(Ternary()))
    klb.layers.set_ratio(model, 0.5)  # a setting, found from nothing
    model.load_weights(tmp_path / "f.weights.h5")
    assert_same(stock, model)


def test_a_file_of_another_recipe_is_not_taken_for_a_float_one(tmp_path):
    sequential(range(7), output_quantizer="activation").save_weights(tmp_path / "q.weights.h5")
    with pytest.raises(ValueError, match=r"holds \[\].*needs \['ratio', 'seed'\]"):
        sequential(range(7), kernel_quantizer=Stochastic(Ternary())).load_weights(tmp_path / "q.weights.h5")


def test_a_clone_of_a_stock_network_with_drop_in_layers_takes_all_its_weights():
    stock = filled(sequential())

    def drop_in(layer):
        made = {L.Conv2D: QuantConv2D, L.Dense: QuantDense}.get(type(layer), type(layer))
        return made.from_config(layer.get_config())

    model = keras.models.clone_model(stock, clone_function=drop_in)
    model.set_weights(stock.get_weights())
    assert_same(stock, model)


def test_classes_are_spelled_as_keras_spells_them():
    names = {"Conv1D": "conv1d", "DepthwiseConv2D": "depthwise_conv2d", "Conv2DTranspose": "conv2d_transpose"}
    assert {name: snake_case(name) for name in names} == names
