"""to_keras3 of models that TFMOT's own quantization-aware training made: float weights, learnt ranges, the same results."""

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras

import keras_lowbit as klb
import keras_lowbit.tfmot as klt
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.quantizers import ActivationRange, Uniform
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
    """Trained for a few steps, enough for every range and for weights that move away from TFMOT's scales."""
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
    pairs = zip(*(map(np.asarray, found(images())) for found in (model, twin)), strict=True)
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
        assert twin.get_layer(name).kernel_quantizer == Uniform(8, expected)
        (kernel,) = (weight for weight, _, _ in model.get_layer(f"quant_{name}")._weight_vars)
        np.testing.assert_array_equal(to_numpy(twin.get_layer(name).kernel), kernel.numpy())
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
    twin = klt.to_keras3(model)
    assert max(rounding(model, twin)) < 0.05


def test_only_the_scale_of_the_last_training_step_tells_the_two_apart(trained):
    """With the scales brought up to date, TFMOT's results are ours but for a code here and there."""
    model, _ = trained
    before = model.get_weights()
    try:
        for wrapper in model.layers:
            for weight, quantizer, variables in getattr(wrapper, "_weight_vars", []):
                quantizer(weight, True, variables)  # as the next training step would begin
        assert max(rounding(model, klt.to_keras3(model))) < 0.01
    finally:
        model.set_weights(before)


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
    four = TFMOT.quantizers.LastValueQuantizer(num_bits=4, per_axis=False, symmetric=True, narrow_range=True)
    inputs = L.Input(IMAGE)
    x = L.Conv2D(4, 3, name="float")(inputs)
    x = TFMOT.quantize_annotate_layer(L.Dense(3, name="four"), _Weights(kernel=four, bias=four))(L.Flatten()(x))
    with klt.scope({"_Weights": _Weights}):
        model = TFMOT.quantize_apply(tf_keras.Model(inputs, x))
    model(images(), training=True)
    twin = klt.to_keras3(model)
    assert twin.get_layer("four").kernel_quantizer == twin.get_layer("four").bias_quantizer == Uniform(4, "tensor")
    assert type(twin.get_layer("float")).__name__ == "Conv2D"
    np.testing.assert_allclose(np.asarray(twin(images())), np.asarray(model(images())), atol=1e-4)


class _Weights(TFMOT.QuantizeConfig):
    """Quantizes weights by attribute and nothing else."""

    def __init__(self, **quantizers):
        self.quantizers = quantizers

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
        return {}


class _Signs(TFMOT.quantizers.Quantizer):
    def build(self, tensor_shape, name, layer):
        return {}

    def __call__(self, inputs, training, weights, **kwargs):
        return inputs

    def get_config(self):
        return {}


def one_layer(**quantizers):
    layer = TFMOT.quantize_annotate_layer(L.Dense(3, name="dense"), _Weights(**quantizers))
    with klt.scope({"_Weights": _Weights}):
        return TFMOT.quantize_apply(tf_keras.Sequential([L.Input((4,)), layer]))


def test_quantizers_of_others_are_named_and_asymmetric_weights_warned_of():
    with pytest.raises(
        ValueError, match=r"The weight 'kernel' of layer 'quant_dense' .*_Signs, which to_keras3 does not"
    ):
        klt.to_keras3(one_layer(kernel=_Signs()))
    asymmetric = TFMOT.quantizers.LastValueQuantizer(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)
    with pytest.warns(UserWarning, match="'quant_dense' have an asymmetric grid in TFMOT. They become symmetric"):
        klt.to_keras3(one_layer(kernel=asymmetric))


def test_a_model_that_never_trained_has_no_ranges_yet(tmp_path):
    twin = klt.to_keras3(TFMOT.quantize_model(tf_keras.Sequential([L.Input(IMAGE), L.Conv2D(4, 3, name="conv")])))
    counts = [
        float(layer.output_host.state["count"]) for layer in twin.layers if layer.name.endswith(("range", "layer"))
    ]
    assert counts == [0.0, 0.0]
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
    fixed = [layer.quantizer for layer in twin.layers if layer.name.endswith(("range", "layer"))]
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
    data = np.linspace(-1, 4, 501, dtype=np.float32)
    found = range_of(quantizer, {}).quantizer(data)
    np.testing.assert_allclose(np.asarray(found), np.asarray(quantizer(data, False, {})), atol=1e-6)


# ---------------------------------------------------------------- quantized twice

AGAIN = """
import faulthandler, os, tf_keras, keras_lowbit.tfmot as klt, numpy as np
faulthandler.dump_traceback_later(120, exit=True)
with klt.scope(): model = tf_keras.models.load_model(os.environ["FILE"])
try: klt.quantize_model(model, "int8")
except ValueError as error: print(error)
float_model = tf_keras.models.load_model(os.environ["FLOAT"])
found = klt.quantize_model(float_model, "int8")
x = np.ones((1, 8, 8, 3), "float32")
found(x, training=True)
print(len({layer.name for layer in found.layers}), np.isfinite(np.asarray(found(x))).all())
"""


def test_from_disk_a_quantized_model_is_refused_and_names_do_not_run_in_circles(tmp_path):
    """In a new process tf_keras' counters begin anew: TFMOT's layout makes layers with names that the model has."""
    TFMOT.quantize_model(tf_keras.Sequential([L.Input(IMAGE), L.Conv2D(4, 3)])).save(tmp_path / "qat.h5")
    names = [L.Conv2D(4, 3, name="conv2d"), L.SeparableConv2D(4, 3), L.DepthwiseConv2D(2, name="depthwise_conv2d")]
    names += [L.Conv2D(3, 1, name="conv2d_2"), L.ReLU(name="quantize_layer"), L.Flatten()]
    tf_keras.Sequential([L.Input(IMAGE), *names]).save(tmp_path / "float.h5")
    lines = run_python(AGAIN, FILE=str(tmp_path / "qat.h5"), FLOAT=str(tmp_path / "float.h5")).strip().splitlines()
    assert "is quantized already: its layer 'quantize_layer' is a QuantizeLayer" in lines[-2]
    assert "keras_lowbit.tfmot.to_keras3(model) takes it as it is" in lines[-2]
    assert lines[-1].endswith("True")


def test_quantized_models_are_refused_by_the_scheme_too():
    model = TFMOT.quantize_model(tf_keras.Sequential([L.Input(IMAGE), L.Conv2D(4, 3)]))
    with klt.scope(), pytest.raises(ValueError, match="is quantized already"):
        TFMOT.quantize_apply(TFMOT.quantize_annotate_model(model), scheme=klt.QuantizeScheme("int8"))
    for quantized in (model, klt.quantize_model(tf_keras.Sequential([L.Input((4,)), L.Dense(3)]), "int8")):
        with pytest.raises(ValueError, match="is quantized already"):
            klt.quantize_model(quantized, "twn")
