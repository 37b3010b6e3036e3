import keras
import numpy as np
import pytest
from keras import ops

from keras_lowbit import layers
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import QuantActivation
from keras_lowbit.quantizers import Binary, Stochastic, Ternary, Uniform
from tests.support.layer_zoo import ZOO

RNG = np.random.default_rng(30)
POLICIES = {"mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}
NAMES = ["conv1d causal", "conv2d", "depthwise x2", "transpose", "dense"]
FILTER_AXES = {"depthwise x2": (2, 3), "transpose": (2,)}


@pytest.fixture(params=POLICIES)
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("quantizer", [Binary(), Ternary(), Uniform(8)])
@pytest.mark.parametrize("name", NAMES)
def test_kernel_is_quantized_from_float32_and_only_the_result_is_cast(policy, name, quantizer):
    make, stock, shape = ZOO[name]
    layer, stock = make(kernel_quantizer=quantizer), stock()
    values = ops.cast(RNG.normal(size=(3, *shape)), POLICIES[policy])
    outputs = layer(values)
    assert layer.kernel.dtype == "float32"
    on_grid = quantizer.encode(layer.kernel, {}, FILTER_AXES.get(name, (-1,))).real
    hosted = layer.kernel_host(layer.kernel)
    assert ops.dtype(hosted) == "float32"
    np.testing.assert_array_equal(hosted, on_grid)
    stock.build(values.shape)
    stock.kernel.assign(on_grid)  # the stock layer casts it
    if layer.bias is not None:
        stock.bias.assign(layer.bias)
    assert ops.dtype(outputs) == POLICIES[policy]
    np.testing.assert_array_equal(ops.cast(outputs, "float32"), ops.cast(stock(values), "float32"))


def test_inside_a_call_the_quantizer_sees_the_float32_kernel(policy):
    seen = []
    layer = layers.QuantDense(6, kernel_quantizer=Uniform(8), bias_quantizer=Uniform(8, "tensor"))
    layer.build((None, 200))
    layer.bias.assign(RNG.normal(size=6))
    for host in (layer.kernel_host, layer.bias_host):
        host.watch = seen.append
    layer(ops.cast(RNG.normal(size=(2, 200)), POLICIES[policy]))
    for got, variable in zip(seen, (layer.kernel, layer.bias), strict=True):
        assert ops.dtype(got) == "float32"
        np.testing.assert_array_equal(to_numpy(got), to_numpy(variable))
    # Not vacuous: rounded to half precision first, some codes would be others.
    half = ops.cast(ops.cast(layer.kernel, POLICIES[policy]), "float32")
    assert np.any(
        to_numpy(Uniform(8).encode(half, {}, (-1,)).codes != Uniform(8).encode(layer.kernel, {}, (-1,)).codes)
    )


def test_training_works_and_keeps_state_in_float32(policy):
    symbolic = keras.Input((8, 8, 4))
    hidden = QuantActivation(None)(symbolic)
    for name in ("conv2d", "depthwise", "transpose"):
        hidden = ZOO[name][0](kernel_quantizer=Stochastic(), output_quantizer="activation")(hidden)
    outputs = layers.QuantDense(2, kernel_quantizer=Stochastic(Binary()))(keras.layers.Flatten()(hidden))
    model = keras.Model(symbolic, keras.layers.Activation("linear", dtype="float32")(outputs))
    layers.set_ratio(model, 0.5)
    model.compile(keras.optimizers.SGD(0.001), "mse", jit_compile=False)
    before = [to_numpy(weight) for weight in model.trainable_weights]
    values, targets = RNG.normal(size=(16, 8, 8, 4)).astype("float32"), RNG.normal(size=(16, 2)).astype("float32")
    history = model.fit(values, targets, batch_size=4, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.any(to_numpy(now) != old) for now, old in zip(model.trainable_weights, before, strict=True))
    for path, host in layers.hosts(model):
        assert all(variable.dtype == "float32" for variable in host.state.values()), path
        if "count" in host.state:
            assert float(host.state["count"]) == 8


def test_activations_are_put_on_the_grid_in_float32_then_cast(policy):
    layer = QuantActivation(quantizer={"name": "activation", "minimum": -1.0, "maximum": 2.0})
    values = ops.cast(RNG.normal(size=(100,)), POLICIES[policy])
    want = ops.cast(layer.quantizer(ops.cast(values, "float32")), POLICIES[policy])
    assert ops.dtype(layer(values)) == POLICIES[policy]
    np.testing.assert_array_equal(ops.cast(layer(values), "float32"), ops.cast(want, "float32"))
