import keras
import numpy as np
import pytest

from keras_lowbit import layers
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import QuantActivation, QuantConv2D, QuantDense, QuantizerHost
from keras_lowbit.quantizers import ActivationRange, Binary, Stochastic, Ternary, Uniform
from tests.support.layer_zoo import ZOO

RNG = np.random.default_rng(20)
QUANTIZERS = {"kernel_quantizer": Ternary(), "bias_quantizer": Uniform(8, "tensor")}
FILTER_AXES = {"depthwise": (2, 3), "transpose": (2,)}


def inputs_for(shape, batch=3):
    return RNG.normal(size=(batch, *shape)).astype("float32")


def built(name, **quantizers):
    make, stock, shape = ZOO[name]
    layer, values = make(**quantizers), inputs_for(shape)
    layer(values)
    if layer.bias is not None:
        layer.bias.assign(RNG.normal(size=layer.bias.shape))
    return layer, stock(), values


@pytest.mark.parametrize("name", ZOO)
def test_forward_is_the_stock_layer_with_the_quantized_weights(name):
    layer, stock, values = built(name, **QUANTIZERS)
    stock.build(values.shape)
    axes = FILTER_AXES.get(name.split()[0], (-1,))
    stock.kernel.assign(Ternary().encode(layer.kernel, {}, axes).real)
    if layer.bias is not None:
        stock.bias.assign(layer.bias_host.encode(layer.bias).real)
    np.testing.assert_array_equal(layer(values), stock(values))


@pytest.mark.parametrize("name", ZOO)
def test_without_quantizers_it_is_the_stock_layer(name):
    layer, stock, values = built(name)
    stock.build(values.shape)
    stock.set_weights(layer.get_weights())
    np.testing.assert_array_equal(layer(values), stock(values))
    assert [weight.path.split("/")[-1] for weight in layer.weights] == [
        weight.path.split("/")[-1] for weight in stock.weights
    ]


@pytest.mark.parametrize("name", ZOO)
def test_functional_and_eager_values_agree(name):
    make, _, shape = ZOO[name]
    quantizers = {**QUANTIZERS, "output_quantizer": ActivationRange(minimum=-4.0, maximum=4.0)}
    layer, values = make(**quantizers), inputs_for(shape)
    symbolic = keras.Input(shape)
    model = keras.Model(symbolic, layer(symbolic))
    if layer.bias is not None:
        layer.bias.assign(RNG.normal(size=layer.bias.shape))
    step = 8.0 / 255
    # A graph may fuse convolution, bias and activation: a sum next to a rounding tie may then move one step.
    difference = np.abs(model.predict(values, verbose=0) - np.asarray(layer(values)))
    assert difference.max() <= step * 1.001
    assert np.mean(difference > 1e-6) < 0.01
    assert model.output_shape == (None, *layer(values).shape[1:])


@pytest.mark.parametrize("name", ZOO)
def test_configuration_round_trip(name):
    layer, stock, values = built(name, kernel_quantizer=Stochastic(Binary()), output_quantizer="activation")
    config = layer.get_config()
    again = type(layer).from_config(config)
    assert again.get_config() == config
    assert (again.kernel_quantizer, again.bias_quantizer, again.output_quantizer) == (
        Stochastic(Binary()),
        None,
        ActivationRange(),
    )
    assert set(stock.get_config()) < set(config)
    assert again(values).shape == layer(values).shape


def test_output_is_quantized_after_the_activation():
    fixed = ActivationRange(minimum=0.0, maximum=6.0)
    layer, stock = QuantDense(6, activation="relu", output_quantizer=fixed), keras.layers.Dense(6, activation="relu")
    values = inputs_for((11,)) * 3
    layer(values)
    stock.build(values.shape)
    stock.set_weights(layer.get_weights())
    np.testing.assert_array_equal(layer(values), fixed(stock(values)))
    assert len(np.unique(layer(values))) > 5


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid", keras.layers.ReLU(6.0)])
def test_quant_activation_is_activation_then_range(activation):
    values = inputs_for((4, 5))
    layer = QuantActivation(activation, ActivationRange(minimum=-1.0, maximum=2.0))
    plain = layer.activation(values) if activation is not None else values
    np.testing.assert_array_equal(layer(values), layer.quantizer(plain))
    again = QuantActivation.from_config(layer.get_config())
    np.testing.assert_array_equal(again(values), layer(values))


def test_ranges_are_observed_in_training_only():
    layer, values = QuantActivation(), inputs_for((4,))
    np.testing.assert_array_equal(layer(values), values)
    assert to_numpy(layer.output_host.state["count"]) == 0
    layer(values, training=True)
    state = {name: float(value) for name, value in layer.output_host.state.items()}
    assert state == {"minimum": values.min(), "maximum": values.max(), "count": 1.0, "frozen": 0.0}
    on_grid = np.asarray(layer(values))
    step = (max(values.max(), 0) - min(values.min(), 0)) / 255
    # Half a step, plus the zero point's own rounding at the ends of the range.
    assert np.abs(on_grid - values).max() <= 1.01 * step


def test_a_watcher_sees_floats_and_nothing_is_quantized():
    layer, values, seen = QuantActivation(quantizer=ActivationRange(minimum=0.0, maximum=1.0)), inputs_for((4,)), []
    layer.output_host.watch = seen.append
    np.testing.assert_array_equal(layer(values), values)
    np.testing.assert_array_equal(seen[0], values)


def test_a_training_step_moves_float_weights_by_the_gradient_of_the_quantized_ones():
    values, targets = inputs_for((11,)), inputs_for((6,))
    layer, stock = QuantDense(6, kernel_quantizer="ternary"), keras.layers.Dense(6)
    models = []
    for dense in (layer, stock):
        symbolic = keras.Input((11,))
        model = keras.Model(symbolic, dense(symbolic))
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        models.append(model)
    before, on_grid = to_numpy(layer.kernel), Ternary().encode(layer.kernel, {}, (-1,)).real
    stock.kernel.assign(on_grid)
    for model in models:
        model.train_on_batch(values, targets)
    # One subtraction in float32 on each side.
    np.testing.assert_allclose(to_numpy(layer.kernel) - before, to_numpy(stock.kernel) - on_grid, atol=1e-6)


def test_shared_layer_has_one_state():
    layer = QuantConv2D(4, 1, kernel_quantizer=Stochastic(), output_quantizer="activation")
    symbolic = keras.Input((5, 5, 4))
    model = keras.Model(symbolic, layer(layer(symbolic)))
    assert len(layers.hosts(model)) == 2
    model(inputs_for((5, 5, 4)), training=True)
    assert to_numpy(layer.output_host.state["count"]) == 2


def test_two_layers_may_share_one_quantizer_value():
    quantizer = Stochastic(seed=5)
    first, second = QuantDense(4, kernel_quantizer=quantizer), QuantDense(4, kernel_quantizer=quantizer)
    for layer in (first, second):
        layer.build((None, 3))
    assert first.kernel_quantizer is second.kernel_quantizer
    assert first.kernel_host.state["ratio"] is not second.kernel_host.state["ratio"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: QuantDense(4, kernel_quantizer="ternari"), "Known names"),
        (lambda: QuantDense(4, format_version=99), "format version 99; this keras_lowbit reads up to 2"),
        (lambda: QuantActivation(format_version=99), "format version 99"),
        (lambda: QuantizerHost(None), "needs a quantizer, got None"),
        (lambda: QuantizerHost.from_config({"quantizer": "ternary", "format_version": "2"}), "format version '2'"),
    ],
)
def test_wrong_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_bias_quantizer_without_a_bias_is_harmless():
    layer = QuantDense(4, use_bias=False, bias_quantizer=Stochastic())
    assert layer(inputs_for((3,))).shape == (3, 4)


def test_variable_height_and_width():
    symbolic = keras.Input((None, None, 4))
    make = [QuantConv2D(4, 3, kernel_quantizer="ternary", output_quantizer="activation")]
    make += [layers.QuantConv2DTranspose(4, 3, strides=2, kernel_quantizer="binary", output_quantizer="activation")]
    make += [layers.QuantDepthwiseConv2D(3, kernel_quantizer="uniform", output_quantizer="activation")]
    hidden = symbolic
    for layer in make:
        hidden = layer(hidden)
    model = keras.Model(symbolic, hidden)
    for size in (8, 11):
        assert model(inputs_for((size, size, 4))).shape[-1] == 4


@pytest.mark.parametrize("quantizer", [Stochastic(), Stochastic(Binary(), "element", "softmax", "keep_error")])
def test_jit_compiled_training_runs_and_ends_in_eager_values(quantizer):
    symbolic = keras.Input((8, 8, 4))
    hidden = QuantConv2D(6, 3, kernel_quantizer=quantizer, output_quantizer="activation")(symbolic)
    hidden = layers.QuantDepthwiseConv2D(3, kernel_quantizer=Uniform(4))(QuantActivation("relu")(hidden))
    hidden = layers.QuantConv2DTranspose(3, 2, kernel_quantizer="binary")(hidden)
    model = keras.Model(symbolic, QuantDense(2, kernel_quantizer=quantizer)(keras.layers.Flatten()(hidden)))
    layers.set_ratio(model, 0.5)
    model.compile("sgd", "mse", jit_compile=True)
    values, before = inputs_for((8, 8, 4), 8), [to_numpy(weight) for weight in model.trainable_weights]
    seed = to_numpy(model.layers[1].kernel_host.seed_generator.state)
    model.fit(values, inputs_for((2,), 8), batch_size=4, verbose=0)
    assert all(np.any(to_numpy(now) != old) for now, old in zip(model.trainable_weights, before, strict=True))
    np.testing.assert_array_equal(to_numpy(model.layers[1].kernel_host.seed_generator.state) - seed, [0, 2])
    assert to_numpy(model.layers[1].output_host.state["count"]) == 2
    # XLA sums in another order; a value next to a rounding tie may move one step of 8 bits.
    difference = np.abs(model.predict(values, verbose=0) - np.asarray(model(values)))
    assert difference.max() < 0.1 * np.abs(np.asarray(model(values))).max()


@pytest.mark.parametrize("strides", [1, 2, (1, 2)], ids=str)
@pytest.mark.parametrize(
    "options", [{"padding": "same"}, {"dilation_rate": 2}, {"filters": 24, "use_bias": False}], ids=str
)
def test_a_group_for_each_channel_is_the_stock_layer(strides, options):
    """It may run as a depthwise convolution, which adds up in another order."""
    if strides != 1 and "dilation_rate" in options:
        strides = 1
    arguments = {"filters": 8, "kernel_size": 3, "strides": strides, "groups": 8, **options}
    layer, stock, values = QuantConv2D(**arguments), keras.layers.Conv2D(**arguments), inputs_for((11, 10, 8))
    layer(values)
    stock.build(values.shape)
    stock.set_weights(layer.get_weights())
    np.testing.assert_allclose(layer(values), stock(values), atol=2e-6)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="compiles nothing")
def test_a_group_for_each_channel_is_not_compiled_in_each_call(monkeypatch):
    layer, values = QuantConv2D(8, 3, groups=8), inputs_for((11, 10, 8))
    layer(values)
    monkeypatch.setattr(keras.ops, "conv", None)
    assert layer(values).shape == (3, 9, 8, 8)
