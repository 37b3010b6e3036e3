"""to_keras3 of models that TFMOT's own quantization-aware training made: float weights, learnt ranges, the same results."""

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras

import keras_lowbit as klb
import keras_lowbit.tfmot as klt
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import QuantActivation
from keras_lowbit.quantizers import ActivationRange, KeptScale, Uniform
from tests.support.process import run_python

L = tf_keras.layers
TFMOT = tfmot.quantization.keras
IMAGE = (8, 8, 3)
# tf_keras warns that .h5 is an older format, which is the point here.
pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")


def images(samples=64):
    return np.random.default_rng(2).normal(size=(samples, *IMAGE)).astype(np.float32)


def network():
    """Every kind of operation that TFMOT's default scheme quantizes, and every place where it puts a range."""
    inputs = L.Input(IMAGE)
    x = L.ReLU(6.0)(L.BatchNormalization()(L.Conv2D(6, 3, use_bias=False, name="conv")(inputs)))
    y = L.Activation("relu")(L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same", name="depthwise")(x)))
    y = L.SeparableConv2D(6, 3, padding="same", activation="relu")(y)
    x = L.Concatenate()([L.MaxPooling2D()(L.ReLU()(L.Add()([x, y]))), L.AveragePooling2D()(x)])
    x = L.LeakyReLU()(L.Conv2DTranspose(4, 2, strides=2, name="transpose")(x))
    x = L.GlobalAveragePooling2D()(L.Conv2D(5, 1, activation="swish", name="swish")(L.ZeroPadding2D()(x)))
    x = L.Dropout(0.2)(L.Dense(7, activation="tanh", name="tanh")(x))
    return tf_keras.Model(inputs, [L.Dense(4, activation="softmax", name="classes")(x), L.Dense(2, name="boxes")(x)])


def fit(model, rate=1e-2):
    """Trained for a few steps, enough for every range and for weights that move several codes away from TFMOT's scales."""
    model.compile(tf_keras.optimizers.Adam(rate), "mse", run_eagerly=False)
    rng = np.random.default_rng(3)
    targets = [rng.random((64, 4), dtype=np.float32), rng.random((64, 2), dtype=np.float32)]
    model.fit(images(), targets[: len(model.outputs)], batch_size=16, epochs=2, verbose=0)
    return model


@pytest.fixture(scope="module")
def trained():
    plain = network()
    return fit(TFMOT.quantize_model(plain)), plain


def rounding(model, twin):
    """Root mean square of what the two differ by, for each output, in units of the output's own deviation."""
    results = [found(images()) for found in (model, twin)]
    pairs = zip(*(map(np.asarray, side if isinstance(side, list) else [side]) for side in results), strict=True)
    return [float(np.sqrt(np.mean((one - other) ** 2)) / one.std()) for one, other in pairs]


def test_kernels_stay_float_under_the_same_scales_and_ranges_are_those_learnt(trained):
    model, _ = trained
    twin = klt.to_keras3(model)
    granularity = {
        "conv": "channel",
        "depthwise": "tensor",
        "transpose": "tensor",
        "classes": "tensor",
        "swish": "channel",
    }
    for name, expected in granularity.items():
        assert twin.get_layer(name).kernel_quantizer == KeptScale(8, expected)
        ((kernel, quantizer, variables),) = model.get_layer(f"quant_{name}")._weight_vars
        np.testing.assert_array_equal(to_numpy(twin.get_layer(name).kernel), kernel.numpy())
        wanted = quantizer(kernel, False, variables).numpy()
        np.testing.assert_allclose(to_numpy(twin.get_layer(name).quantized_kernel()), wanted, atol=1e-6)
    learnt = model.get_layer("quant_swish")._quantize_activations[0]._post_activation_vars
    state = twin.get_layer("swish_range").output_host.state
    assert [float(state[key]) for key in ("minimum", "maximum")] == [
        float(learnt[k].numpy()) for k in ("min_var", "max_var")
    ]


@pytest.mark.parametrize("file", [None, "model.h5", "model.keras"])
def test_results_agree_within_tfmots_own_rounding(trained, file, tmp_path):
    model, _ = trained
    if file:
        model.save(tmp_path / file)
        with klt.scope():
            model = tf_keras.models.load_model(tmp_path / file)
    assert max(rounding(model, klt.to_keras3(model))) < 1e-5


def test_the_next_training_step_takes_the_scales_of_the_weights_as_tfmots_does(trained):
    """TFMOT's inference has the scales of before the last step, its training those of the weights: so has the copy."""
    model, _ = trained
    before = model.get_weights()
    twin = klt.to_keras3(model)
    layer, wrapper = twin.get_layer("conv"), model.get_layer("quant_conv")
    ((kernel, quantizer, variables),) = wrapper._weight_vars
    try:
        inference, training = (quantizer(kernel, mode, variables).numpy() for mode in (False, True))
    finally:
        model.set_weights(before)
    assert np.abs(inference - training).max() > 1e-3
    np.testing.assert_allclose(to_numpy(layer.quantized_kernel(training=True)), training, atol=1e-6)
    np.testing.assert_allclose(to_numpy(layer.quantized_kernel()), inference, atol=1e-6)
    layer.kernel.assign(to_numpy(layer.kernel) * 1.5)  # other weights: no scale of others meets them
    np.testing.assert_allclose(to_numpy(layer.quantized_kernel()), training * 1.5, atol=1e-6)


def test_the_file_for_the_phone_is_the_model(tmp_path):
    inputs = L.Input(IMAGE)
    x = L.ReLU(6.0)(L.BatchNormalization()(L.Conv2D(6, 3, use_bias=False)(inputs)))
    x = L.ReLU()(L.Add()([x, L.DepthwiseConv2D(3, padding="same")(x)]))
    plain = tf_keras.Model(inputs, L.Dense(4, activation="softmax")(L.Flatten()(L.MaxPooling2D()(x))))
    twin = klt.to_keras3(fit(TFMOT.quantize_model(plain)))
    report = klb.export_litert(twin, tmp_path / "m.tflite")
    assert report.float_fallbacks == ()
    assert klb.verify(twin, tmp_path / "m.tflite", images(8)).max_layer_steps <= 1


def test_parts_that_were_not_annotated_and_fewer_bits():
    inputs = L.Input(IMAGE)
    x = L.Conv2D(4, 3, name="float")(inputs)
    x = TFMOT.quantize_annotate_layer(L.Dense(3, name="four"), _Weights("four bits"))(L.Flatten()(x))
    with klt.scope({"_Weights": _Weights}):
        model = TFMOT.quantize_apply(tf_keras.Model(inputs, x))
    model(images(), training=True)
    twin = klt.to_keras3(model)
    assert twin.get_layer("four").kernel_quantizer == twin.get_layer("four").bias_quantizer == KeptScale(4, "tensor")
    assert type(twin.get_layer("float")).__name__ == "Conv2D"
    np.testing.assert_allclose(np.asarray(twin(images())), np.asarray(model(images())), atol=1e-4)


def test_a_float_layer_in_front_of_annotated_ones_keeps_the_range_before_its_activation():
    layers = [L.Input((6,)), L.Dense(5, "tanh", name="front"), TFMOT.quantize_annotate_layer(L.Dense(3))]
    with klt.scope():
        model = TFMOT.quantize_apply(tf_keras.Sequential(layers))
    data = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    model(data, training=True)
    twin = klt.to_keras3(model)
    front = twin.get_layer("front")
    assert (front.kernel_quantizer, front.output_quantizer) == (None, ActivationRange())
    np.testing.assert_allclose(np.asarray(twin(data)), np.asarray(model(data)), atol=1e-5)


@pytest.mark.parametrize("kind", ["PrunePreserve", "ClusterPreserve", "NBit"])
def test_other_schemes_of_tfmot(kind):
    plain = tf_keras.Sequential([L.Input(IMAGE), L.Conv2D(4, 3, name="conv"), L.Flatten(), L.Dense(2, name="dense")])
    kernel = plain.get_layer("dense").kernel
    kernel.assign(np.round(kernel.numpy() * 6) / 6)  # few values, and zeros
    schemes = {
        "PrunePreserve": tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme,
        "ClusterPreserve": tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme,
        "NBit": lambda: _n_bit_scheme(num_bits_weight=4, num_bits_activation=8),
    }
    with klt.scope():
        model = TFMOT.quantize_apply(TFMOT.quantize_annotate_model(plain), scheme=schemes[kind]())
    for weight in model.trainable_weights:
        if "dense/kernel" in weight.name:
            weight.assign_add(np.full(weight.shape, 1e-3))  # training moves zeros: the mask holds them
    model.compile(tf_keras.optimizers.Adam(1e-2), "mse", run_eagerly=True)
    model.fit(images(), np.ones((64, 2)), verbose=0)
    twin = klt.to_keras3(model)
    assert twin.get_layer("dense").kernel_quantizer == KeptScale(4 if kind == "NBit" else 8, "tensor")
    assert max(rounding(model, twin)) < 1e-5


def _n_bit_scheme(**bits):
    from tensorflow_model_optimization.python.core.quantization.keras.experimental.default_n_bit import (
        default_n_bit_quantize_scheme,
    )

    return default_n_bit_quantize_scheme.DefaultNBitQuantizeScheme(**bits)


def _last_value(bits, symmetric):
    return TFMOT.quantizers.LastValueQuantizer(bits, per_axis=False, symmetric=symmetric, narrow_range=symmetric)


_KINDS = {
    "four bits": lambda: {"kernel": _last_value(4, True), "bias": _last_value(4, True)},
    "asymmetric": lambda: {"kernel": _last_value(8, False)},
    "signs": lambda: {"kernel": _Signs()},
}


class _Weights(TFMOT.QuantizeConfig):
    """Quantizes weights by attribute and nothing else. TFMOT makes it anew from its configuration."""

    def __init__(self, kind):
        self.kind, self.quantizers = kind, _KINDS[kind]()

    def get_weights_and_quantizers(self, layer):
        return [(getattr(layer, name), quantizer) for name, quantizer in self.quantizers.items()]

    def set_quantize_weights(self, layer, quantize_weights):
        for name, value in zip(self.quantizers, quantize_weights, strict=True):
            setattr(layer, name, value)

    def get_activations_and_quantizers(self, layer):
        return []

    def set_quantize_activations(self, layer, quantize_activations):
        return

    def get_output_quantizers(self, layer):
        return []

    def get_config(self):
        return {"kind": self.kind}


class _Signs(TFMOT.quantizers.Quantizer):
    def build(self, tensor_shape, name, layer):
        return {}

    def __call__(self, inputs, training, weights, **kwargs):
        return inputs

    def get_config(self):
        return {}


def one_layer(kind):
    layer = TFMOT.quantize_annotate_layer(L.Dense(3, name="dense"), _Weights(kind))
    with klt.scope({"_Weights": _Weights}):
        return TFMOT.quantize_apply(tf_keras.Sequential([L.Input((4,)), layer]))


def test_quantizers_of_others_are_named_and_asymmetric_weights_warned_of():
    with pytest.raises(
        ValueError, match=r"The weight 'kernel' of layer 'quant_dense' .*_Signs, which to_keras3 does not"
    ):
        klt.to_keras3(one_layer("signs"))
    with pytest.warns(UserWarning, match="'quant_dense' have an asymmetric grid in TFMOT. They become symmetric"):
        klt.to_keras3(one_layer("asymmetric"))


def test_a_model_that_never_trained_has_no_ranges_yet(tmp_path):
    twin = klt.to_keras3(TFMOT.quantize_model(tf_keras.Sequential([L.Input(IMAGE), L.Conv2D(4, 3, name="conv")])))
    counts = [float(layer.output_host.state["count"]) for layer in twin.layers if isinstance(layer, QuantActivation)]
    assert counts == [0.0, 0.0]
    assert twin.get_layer("conv").kernel_quantizer == Uniform(8)
    klb.calibrate(twin, images())
    assert klb.export_litert(twin, tmp_path / "m.tflite").float_fallbacks == ()


# ---------------------------------------------------------------- fixed ranges


@pytest.mark.parametrize("scheme", [None, "int8"])
@pytest.mark.parametrize("functional", [True, False])
def test_fixed_ranges_of_input_and_output(scheme, functional, tmp_path):
    dense = L.Dense(10, name="dense")
    inputs = tf_keras.Input((5,))
    plain = tf_keras.Model(inputs, dense(inputs)) if functional else tf_keras.Sequential([L.Input((5,)), dense])
    with klt.scope():
        given = {} if scheme is None else {"scheme": klt.QuantizeScheme(scheme)}
        model = TFMOT.quantize_apply(TFMOT.quantize_annotate_model(plain), **given)
        model = _fix(
            model, num_bits=8, input_min=0, input_max=1, output_min=-2, output_max=3, narrow_range=scheme is None
        )
    data = np.random.default_rng(0).random((64, 5), dtype=np.float32)
    model(data, training=True)
    twin = klt.to_keras3(model)
    fixed = [layer.quantizer for layer in twin.layers if type(layer).__name__ == "QuantActivation"]
    assert [type(quantizer) for quantizer in fixed] == [ActivationRange] * 2
    assert all(quantizer.has_static_range for quantizer in fixed)
    step = 5 / (254 if scheme is None else 255)
    steps = np.abs(np.asarray(twin(data)) - np.asarray(model(data))) / step
    assert (steps < 1.01).all()
    assert (steps < 0.01).mean() > 0.95
    model.save(tmp_path / "m.h5")
    with klt.scope():
        again = klt.to_keras3(tf_keras.models.load_model(tmp_path / "m.h5"))
    np.testing.assert_array_equal(np.asarray(again(data)), np.asarray(twin(data)))


def _fix(model, **arguments):
    from tensorflow_model_optimization.python.core.quantization.keras import quantize

    return quantize.fix_input_output_range(model, **arguments)


def test_a_fixed_range_beside_zero_is_shifted_as_tensorflow_shifts_it():
    from keras_lowbit.tfmot.ranges import range_of
    from keras_lowbit.tfmot.scope import tfmot_class

    quantizer = tfmot_class("FixedQuantizer")(8, 0.5, 2.5, False)
    data = np.random.default_rng(0).uniform(-1, 4, 500).astype(np.float32)
    found = range_of(quantizer, {}).quantizer(data)
    np.testing.assert_allclose(np.asarray(found), np.asarray(quantizer(data, False, {})), atol=1e-6)


# ---------------------------------------------------------------- quantized twice

AGAIN = """
import faulthandler, os, tf_keras, tensorflow_model_optimization as tfmot, keras_lowbit.tfmot as klt, numpy as np
faulthandler.dump_traceback_later(150, exit=True)
L = tf_keras.layers
tfmot.quantization.keras.quantize_model(tf_keras.Sequential([L.Input((8, 8, 3)), L.Conv2D(4, 3)])).save("qat.h5")
layers = [L.Conv2D(4, 3, name="conv2d"), L.SeparableConv2D(4, 3), L.DepthwiseConv2D(2, name="depthwise_conv2d")]
layers += [L.Conv2D(3, 1, name="conv2d_2"), L.ReLU(name="quantize_layer"), L.Flatten()]
tf_keras.Sequential([L.Input((8, 8, 3)), *layers]).save("float.h5")
tf_keras.backend.clear_session()  # the counters of names begin anew, as in a new process
with klt.scope(): model = tf_keras.models.load_model("qat.h5")
try: klt.quantize_model(model, "int8")
except ValueError as error: print(error)
found = klt.quantize_model(tf_keras.models.load_model("float.h5"), "int8")
x = np.ones((1, 8, 8, 3), "float32")
found(x, training=True)
print(len({layer.name for layer in found.layers}) == len(found.layers), np.isfinite(np.asarray(found(x))).all())
"""


def test_from_disk_a_quantized_model_is_refused_and_names_do_not_run_in_circles(tmp_path, monkeypatch):
    """In a new process TFMOT's layout makes layers with names that a model from a file has."""
    monkeypatch.chdir(tmp_path)
    lines = run_python(AGAIN).strip().splitlines()
    assert "is quantized already: its layer 'quantize_layer' is a QuantizeLayer" in lines[-2]
    assert "keras_lowbit.tfmot.to_keras3(model) takes it as it is" in lines[-2]
    assert lines[-1] == "True True"


def test_quantized_models_are_refused_by_the_scheme_too():
    model = TFMOT.quantize_model(tf_keras.Sequential([L.Input(IMAGE), L.Conv2D(4, 3)]))
    with klt.scope(), pytest.raises(ValueError, match="is quantized already"):
        TFMOT.quantize_apply(TFMOT.quantize_annotate_model(model), scheme=klt.QuantizeScheme("int8"))
    for quantized in (model, klt.quantize_model(tf_keras.Sequential([L.Input((4,)), L.Dense(3)]), "int8")):
        with pytest.raises(ValueError, match="is quantized already"):
            klt.quantize_model(quantized, "twn")
