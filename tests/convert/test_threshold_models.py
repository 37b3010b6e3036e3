"""Models with trained thresholds: calibration, training of the thresholds alone, files, export."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.keras_graph.calls import find_layers
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import QuantizedLayer, QuantizerHost, hosts
from keras_lowbit.quantizers import ActivationRange, AdjustableThreshold, LearnedPowerOfTwo, LearnedStep, Uniform
from keras_lowbit.recipes import Recipe, Rule
from tests.support.model_zoo import run

L = keras.layers
IMAGES = np.random.default_rng(5).normal(size=(32, 12, 12, 3)).astype("float32")
RECIPES = ["fat", "fat-scalar", "fat-w4"]


def network(seed=0):
    keras.utils.set_random_seed(seed)
    image = keras.Input((12, 12, 3), name="image")
    x = L.Conv2D(6, 3, activation="relu", bias_initializer="normal", name="stem")(image)
    x = L.DepthwiseConv2D(3, padding="same", bias_initializer="normal", name="depthwise")(x)
    x = L.ReLU(6.0, name="clip")(x)
    x = L.Concatenate(name="join")([x, L.Conv2D(4, 1, name="pointwise")(x)])
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, L.Dense(5, bias_initializer="normal", name="head")(x), name="network")


def small(seed=0):
    """Two layers: what training tests need to compile is little."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((12, 12, 3), name="image")
    x = L.Conv2D(4, 3, strides=3, activation="relu", bias_initializer="normal", name="stem")(image)
    return keras.Model(image, L.Dense(5, name="head")(L.Flatten(name="flat")(x)), name="small")


def quantized(recipe="fat", model=None, calibrated=True):
    model, _ = klb.quantize_model(model or network(), recipe)
    if calibrated:
        klb.calibrate(model, IMAGES, verbose=0)
    return model


def recipe_of(weights, activations):
    return Recipe("own", (Rule(weights),), activations)


def values(model):
    return {variable.path: to_numpy(variable) for variable in model.weights}


def freeze_weights(model):
    """What FAT trains: thresholds, never weights."""
    for layer in find_layers(model, QuantizedLayer):
        for weight in (layer.kernel, layer.bias):
            if weight is not None:
                weight.trainable = False
    return model


def fit(model, teacher, epochs=3, rate=1e-2, jit_compile=False):
    (targets,) = run(teacher, IMAGES)
    model.compile(keras.optimizers.Adam(rate), "mse", jit_compile=jit_compile)
    return model.fit(IMAGES, targets, batch_size=16, epochs=epochs, verbose=0).history["loss"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_train_factors_of_filters_tensors_and_ranges(recipe):
    model = quantized(recipe, calibrated=False)
    trained = {v.path: v.shape for v in model.trainable_variables if "quantizer" in v.path}
    axes = {"stem": (1, 1, 1, 6), "depthwise": (1, 1, 6, 1), "pointwise": (1, 1, 1, 4), "head": (1, 5)}
    for name, shape in axes.items():
        want = tuple(1 for _ in shape) if recipe == "fat-scalar" else shape
        assert trained.pop(f"{name}/kernel_quantizer/factor") == want
    places = ["image", "stem", "clip", "join", "pool", "head"]
    assert trained == {f"{p}_range/output_quantizer/{v}": () for p in places for v in ("left", "width")}
    bits = {layer.kernel_quantizer.bits for layer in find_layers(model, QuantizedLayer)}
    assert bits == ({4} if recipe == "fat-w4" else {8})


def test_a_calibrated_fat_model_is_the_int8_model_bit_for_bit():
    for recipe, plain in (("fat", Uniform(8)), ("fat-scalar", Uniform(8, "tensor"))):
        ours, other = quantized(recipe), quantized(recipe_of(plain, ActivationRange()))
        np.testing.assert_array_equal(ours(IMAGES, training=False), other(IMAGES, training=False))


def test_calibrate_fixes_ranges_and_puts_trained_state_back_to_its_start():
    model = quantized("fat-w4")
    start = values(model)
    for path, host in hosts(model):
        if klb.quantizers.is_activation_quantizer(host.quantizer):
            assert float(to_numpy(host.state["frozen"])) == 1, path
        else:
            np.testing.assert_array_less(0, to_numpy(host.state["threshold"]))
    for _, host in hosts(model):
        for variable in host.state.values():
            if variable.trainable:
                variable.assign(variable * 0.9 + 0.01)
    assert any(np.any(value != start[path]) for path, value in values(model).items())
    klb.calibrate(model, IMAGES, verbose=0)
    for path, value in values(model).items():
        np.testing.assert_array_equal(value, start[path], path)


def test_calibrated_ranges_stay_while_fit_trains_their_factors_and_can_be_set_free():
    model = freeze_weights(quantized("fat", small()))
    before = values(model)
    fit(model, small())
    moved = {path for path, value in values(model).items() if np.any(value != before[path])}
    assert {path.rsplit("/", 1)[1] for path in moved} <= {"factor", "left", "width"}
    assert len(moved) >= 3  # a factor that training pushes against its limit of 1 stays there
    klb.freeze_ranges(model, False)
    model(IMAGES * 2, training=True)
    assert np.any(values(model)["stem_range/output_quantizer/maximum"] != before["stem_range/output_quantizer/maximum"])


@pytest.mark.parametrize("jit", [False, True])
def test_trained_thresholds_lower_the_loss_of_inflated_ones(jit):
    """Thresholds 1.9 times too wide at 4 bits: training must bring them down."""
    weights, ranges = (
        AdjustableThreshold(Uniform(4), limits=(0.5, 1.0)),
        AdjustableThreshold(ActivationRange(), "asymmetric"),
    )
    model = freeze_weights(quantized(recipe_of(weights, ranges), small()))
    for _, host in hosts(model):
        if "threshold" in host.state:
            host.state["threshold"].assign(1.9 * host.state["threshold"])
    losses = fit(model, small(), epochs=25, rate=3e-2, jit_compile=jit)
    assert losses[-1] < 0.5 * losses[0]
    for _, host in hosts(model):
        for name, variable in host.state.items():
            if name in ("factor", "width"):  # projected after every step
                assert 0.5 <= to_numpy(variable).min() <= to_numpy(variable).max() <= 1.0


@pytest.mark.parametrize(
    "recipe",
    [
        "fat-w4",
        recipe_of(AdjustableThreshold(Uniform(5)), AdjustableThreshold(ActivationRange())),
        recipe_of(LearnedStep(Uniform(4)), LearnedStep(ActivationRange())),
        recipe_of(LearnedPowerOfTwo(), LearnedPowerOfTwo(ActivationRange())),
    ],
    ids=["fat-w4", "symmetric", "lsq", "tqt"],
)
def test_trained_models_reload_with_the_same_bits_and_export_what_they_compute(recipe, tmp_path):
    model = quantized(recipe, network() if recipe == "fat-w4" else small())
    fit(model, small(), epochs=1, rate=3e-3)
    outputs = run(model, IMAGES)[0]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(run(again, IMAGES)[0], outputs)
    assert [v.trainable for v in again.weights] == [v.trainable for v in model.weights]
    path = tmp_path / "model.tflite"
    klb.export_litert(model, path)
    report = klb.verify(model, path, IMAGES[:4])
    assert report.ok, str(report)


def test_biases_are_rounded_to_half_a_step_of_input_times_weight_scale():
    model = quantized("fat-w4")
    graph = klb.deploy.lower(model)
    checked = 0
    for node in graph.nodes:
        tensors = [graph.tensors[name] for name in node.inputs]
        if len(tensors) != 3 or tensors[2].dtype != "int32":
            continue
        source, weights, bias = tensors
        step = np.float64(source.scale) * weights.scale
        real = to_numpy(model.get_layer(node.name).bias)
        assert (np.abs(bias.data * step - real) <= 0.5 * step * (1 + 1e-5)).all()
        checked += 1
    assert checked == 4


def test_asymmetric_weights_train_reload_and_dequantize_but_do_not_export(tmp_path):
    model = quantized(
        recipe_of(AdjustableThreshold(mode="asymmetric"), AdjustableThreshold(ActivationRange())), small()
    )
    before = values(model)
    fit(freeze_weights(model), small(), epochs=1)
    assert any(np.any(v != before[p]) for p, v in values(model).items() if p.endswith("kernel_quantizer/left"))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(
        tmp_path / "model.keras", compile=False
    )  # the weights' trainable flags are not saved
    np.testing.assert_array_equal(again(IMAGES, training=False), model(IMAGES, training=False))
    stem = model.get_layer("stem")
    codes = klb.quantized_weights(model)["stem"]
    assert codes.codes.dtype == np.int8
    np.testing.assert_array_equal(codes.real, stem.quantized_kernel())
    np.testing.assert_array_equal(klb.dequantize(model).get_layer("stem").kernel, stem.quantized_kernel())
    with pytest.raises(ValueError, match=r"'stem' are asymmetric .* zero point, and LiteRT's int8 weights have none"):
        klb.export_litert(model, tmp_path / "no.tflite")


def test_an_uncalibrated_model_does_not_export_and_says_what_to_call(tmp_path):
    with pytest.raises(ValueError, match=r"has seen no data. Run keras_lowbit.calibrate"):
        klb.export_litert(quantized(calibrated=False), tmp_path / "no.tflite")


def test_a_range_that_arguments_fix_trains_from_them_and_calibrate_starts_it_afresh():
    host = QuantizerHost(AdjustableThreshold(ActivationRange(minimum=-1.0, maximum=1.0)))
    image = keras.Input((12, 12, 3))
    model = keras.Model(image, klb.layers.QuantActivation(quantizer="activation")(host(image)))
    host.state["factor"].assign(0.6)
    found = klb.calibrate(model, IMAGES, verbose=0)
    assert len(found) == 1  # the other one
    assert float(to_numpy(host.state["factor"])) == 1.0


def test_shared_ranges_widen_and_freeze_callback_takes_trained_ranges():
    nested = keras.Sequential([keras.Input((12, 12, 3)), L.Conv2D(4, 3, name="conv")], name="shared")
    first, second = keras.Input((12, 12, 3), name="first"), keras.Input((12, 12, 3), name="second")
    model = keras.Model([first, second], L.Concatenate()([nested(first), nested(second)]))
    copy, _ = klb.quantize_model(model, "fat")
    held = [host.quantizer.base.hold for path, host in hosts(copy) if "conv_range" in path]
    assert held
    assert all(held)
    klb.callbacks.FreezeRanges(1).set_model(copy)


def test_mixed_precision_keeps_thresholds_in_float32():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = quantized("fat", small())
    finally:
        keras.config.set_dtype_policy("float32")
    assert {str(v.dtype) for v in model.trainable_variables if "quantizer" in v.path} == {"float32"}
    stem = model.get_layer("stem")
    want = stem.kernel_quantizer(stem.kernel, stem.kernel_host.values(), stem.filter_axes)
    np.testing.assert_array_equal(stem.quantized_kernel(), to_numpy(want).astype("float16"))
    before = values(model)
    model.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=False)
    model.fit(IMAGES, np.zeros((32, 5)), epochs=2, verbose=0)
    moved = [p for p, v in values(model).items() if np.any(v != before[p])]
    assert any(path.endswith("kernel_quantizer/factor") for path in moved)
    assert any(path.endswith("width") for path in moved)
