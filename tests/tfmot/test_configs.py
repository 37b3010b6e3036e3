"""QuantizeConfigs and the adapter: what TFMOT expects of them, for every kind of layer."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

import keras_lowbit.tfmot as klt
from keras_lowbit import quantizers
from keras_lowbit.quantizers import ActivationRange, Clustered, Incremental, PowerOfTwo, Stochastic, Ternary, Uniform
from keras_lowbit.tfmot.wrappers import WrappedModel, kernels_in, ranges_in

annotate = tfmot.quantization.keras.quantize_annotate_layer
layers = tf_keras.layers

KERNEL_LAYERS = {
    "Conv1D": (lambda: layers.Conv1D(4, 3), (8, 3), {"kernel": (3, 3, 4)}),
    "Conv2D": (lambda: layers.Conv2D(4, 3), (8, 8, 3), {"kernel": (3, 3, 3, 4)}),
    "DepthwiseConv2D": (lambda: layers.DepthwiseConv2D(3), (8, 8, 3), {"depthwise_kernel": (3, 3, 3, 1)}),
    "SeparableConv2D": (
        lambda: layers.SeparableConv2D(4, 3),
        (8, 8, 3),
        {"depthwise_kernel": (3, 3, 3, 1), "pointwise_kernel": (1, 1, 3, 4)},
    ),
    "Conv2DTranspose": (lambda: layers.Conv2DTranspose(4, 3), (8, 8, 3), {"kernel": (3, 3, 4, 3)}),
    "Dense": (lambda: layers.Dense(4), (6,), {"kernel": (6, 4)}),
}
CONFIGS = [
    klt.SQQuantizeConfig("binary", granularity="element", seed=7),
    klt.INQQuantizeConfig(bits=3, partition="random"),
    klt.ClusteredQuantizeConfig(cluster_size=2, calibration="mse"),
    klt.FATQuantizeConfig(bits=4, limits=(0.4, 1.2)),
    klt.KernelQuantizeConfig(Uniform(4), None),
    klt.OutputQuantizeConfig(ActivationRange(minimum=0.0, maximum=6.0)),
    klt.NoOpQuantizeConfig(),
]


def applied(layer, config, shape, scheme=None):
    """The wrapper of one annotated layer after quantize_apply."""
    model = tf_keras.Sequential([layers.Input(shape), annotate(layer, config)])
    with klt.scope():
        model = tfmot.quantization.keras.quantize_apply(model, **({"scheme": scheme} if scheme else {}))
    return model, model.layers[-1]


@pytest.mark.parametrize("kind", KERNEL_LAYERS)
def test_the_forward_pass_multiplies_with_the_quantized_kernels(kind):
    make, shape, shapes = KERNEL_LAYERS[kind]
    model, wrapper = applied(make(), klt.KernelQuantizeConfig(Ternary(), None), shape)
    kernels = kernels_in(wrapper)
    assert [tuple(kernel.kernel.shape) for kernel in kernels] == list(shapes.values())
    images = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    found = model(images)
    plain = make()
    plain.build((None, *shape))
    for name, kernel in zip(shapes, kernels, strict=True):
        on_grid = Ternary()(kernel.kernel, {}, kernel.kernel_host.filter_axes).numpy()
        axes = tuple(axis for axis in range(on_grid.ndim) if axis - on_grid.ndim not in _last(kernel, on_grid))
        magnitudes = np.moveaxis(np.abs(on_grid), axes, range(len(axes))).reshape(
            int(np.prod([on_grid.shape[axis] for axis in axes])), -1
        )
        for filter_ in magnitudes.T:  # one magnitude beside 0 in every filter
            assert len(set(filter_.tolist()) - {0.0}) <= 1
        getattr(plain, name).assign(on_grid)
    inputs = model.layers[0](images)  # TFMOT's range of the input
    np.testing.assert_array_equal(np.asarray(found), np.asarray(plain(inputs)))


def _last(kernel, array):
    """Filter axes as negative numbers."""
    return [axis if axis < 0 else axis - array.ndim for axis in kernel.kernel_host.filter_axes]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_config_survives_serialization(config):
    legacy = tf_keras.utils.legacy
    text = legacy.serialize_keras_object(config)
    again = legacy.deserialize_keras_object(text)
    assert again == config
    assert type(again) is type(config)
    assert hash(again) == hash(config)
    assert again != klt.KernelQuantizeConfig("binary", None)


def test_ready_made_configs_hold_the_quantizers_they_name():
    assert klt.SQQuantizeConfig().kernel_quantizer == Stochastic(Ternary())
    assert klt.SQQuantizeConfig("binary", seed=3).kernel_quantizer == Stochastic("binary", seed=3)
    assert klt.INQQuantizeConfig(bits=2).kernel_quantizer == Incremental(PowerOfTwo(2))
    assert klt.INQQuantizeConfig(base=Uniform(4)).kernel_quantizer == Incremental(Uniform(4))
    assert klt.ClusteredQuantizeConfig(Uniform(4), 64).kernel_quantizer == Clustered(Uniform(4), 64)
    fat = klt.FATQuantizeConfig(bits=4, granularity="tensor")
    assert fat.kernel_quantizer == quantizers.AdjustableThreshold(Uniform(4, "tensor"))
    assert fat.activation_quantizer.quantizer.mode == "asymmetric"


@pytest.mark.parametrize(
    ("activation", "places"),
    [
        (None, ["post_activation"]),
        ("relu", ["post_activation"]),
        ("softmax", ["pre_activation"]),
        ("gelu", ["pre_activation", "post_activation"]),
        ("elu", ["output"]),  # TFMOT knows no place for it: behind everything
        (tf.nn.relu6, ["output"]),
    ],
)
def test_ranges_stand_where_the_integer_operation_ends(activation, places):
    _, wrapper = applied(layers.Dense(3, activation=activation), klt.KernelQuantizeConfig("uniform"), (4,))
    assert [place for place, *_ in ranges_in(wrapper)] == places


def test_output_only_and_no_op_leave_the_kernel_alone():
    for config, places in ((klt.OutputQuantizeConfig(), ["output"]), (klt.NoOpQuantizeConfig(), [])):
        _, wrapper = applied(layers.Dense(3), config, (4,))
        assert kernels_in(wrapper) == []
        assert [place for place, *_ in ranges_in(wrapper)] == places


@pytest.mark.parametrize("layer", [layers.ReLU(), layers.Activation("tanh"), layers.Add()])
def test_a_kernel_config_on_a_layer_without_kernel_is_refused(layer):
    with pytest.raises(ValueError, match=r"has no kernel known here.*OutputQuantizeConfig"):
        klt.KernelQuantizeConfig("ternary").get_weights_and_quantizers(layer)


def test_a_config_without_a_kernel_quantizer_is_refused():
    with pytest.raises(ValueError, match="use OutputQuantizeConfig"):
        klt.KernelQuantizeConfig(None)
    with pytest.raises(ValueError, match="needs a quantizer, got None"):
        klt.LowbitQuantizer(None)


def test_set_quantize_weights_checks_number_and_shape():
    config, dense = klt.KernelQuantizeConfig("ternary"), layers.Dense(3)
    dense.build((None, 4))
    with pytest.raises(ValueError, match=r"has the kernels \['kernel'\], got 2 tensors"):
        config.set_quantize_weights(dense, [tf.zeros((4, 3))] * 2)
    with pytest.raises(ValueError, match=r"has shape \(4, 3\), the quantized tensor \(4, 2\)"):
        config.set_quantize_weights(dense, [tf.zeros((4, 2))])


def test_gradients_reach_the_float_kernel_and_trained_thresholds():
    _, wrapper = applied(layers.Dense(3, use_bias=False), klt.FATQuantizeConfig(bits=3, activation=None), (4,))
    names = [variable.name for variable in wrapper.trainable_variables]
    assert names == ["dense/kernel:0", f"{wrapper.name}/kernel_factor:0"] or len(names) == 2
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(wrapper(tf.ones((2, 4)), training=True) ** 2)
    gradients = tape.gradient(loss, wrapper.trainable_variables)
    assert all(np.abs(gradient.numpy()).sum() > 0 for gradient in gradients)


def test_trained_thresholds_are_brought_back_into_their_limits():
    model, wrapper = applied(layers.Dense(3), klt.FATQuantizeConfig(limits=(0.5, 1.0)), (4,))
    model.compile(tf_keras.optimizers.SGD(1e3), "mse")
    rng = np.random.default_rng(0)
    model.fit(rng.normal(size=(8, 4)), rng.normal(size=(8, 3)), verbose=0)
    factor = kernels_in(wrapper)[0].kernel_host.state["factor"].numpy()
    assert (factor >= 0.5).all()
    assert (factor <= 1.0).all()


def test_ranges_follow_training_batches_and_no_others():
    model, _ = applied(layers.Dense(3), klt.KernelQuantizeConfig("uniform"), (4,))
    (state,) = [host.state for path, host in WrappedModel(model).quantizer_hosts() if "activation" in path]
    images = np.ones((2, 4), np.float32)
    model(images, training=False)
    assert float(state["count"]) == 0
    model(images, training=True)
    assert float(state["count"]) == 1
    assert float(state["maximum"]) == np.max(np.asarray(model.layers[-1].layer(model.layers[0](images))))


def test_the_adapter_hands_back_what_it_was_given():
    adapter = klt.LowbitQuantizer(Stochastic(Uniform(4), seed=5), (-1,))
    again = tf_keras.utils.legacy.deserialize_keras_object(tf_keras.utils.legacy.serialize_keras_object(adapter))
    assert again == adapter
    assert again != klt.LowbitQuantizer(Stochastic(Uniform(4), seed=6), (-1,))
    with pytest.raises(ValueError, match=r"format version 99; this keras_lowbit reads up to 2"):
        klt.LowbitQuantizer.from_config(adapter.get_config() | {"format_version": 99})
