"""reconstruct: hard choices between neighbours of the grid that bring a block's output nearer to the float one."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_lowbit as klb
from keras_lowbit.convert.post_training.reconstruction import reconstruct as module
from keras_lowbit.convert.post_training.reconstruction.neighbours import neighbours_of
from keras_lowbit.keras_graph.calls import calls_of
from keras_lowbit.layers import QuantDense
from tests.support.model_zoo import run

W4 = klb.recipes.get("fat-w4")
W4A4 = klb.recipes.w4(first=None, last=None, activation_bits=4)


@pytest.fixture(scope="module")
def reference():
    keras.utils.set_random_seed(1)
    inputs = x = keras.Input((6, 6, 3))
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="stem")(x)
    y = layers.Conv2D(12, 1, activation="relu6", name="expand")(x)
    y = layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="depthwise")(y)
    y = layers.Conv2D(6, 1, name="project")(y)
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(4, name="logits")(x))


@pytest.fixture(scope="module")
def images():
    """Inputs that hang together: what nearest rounding does to each weight alone then adds up."""
    rng = np.random.default_rng(0)
    return (1 + 0.2 * rng.normal(size=(96, 1, 1, 1)) + 0.1 * rng.normal(size=(96, 6, 6, 3))).astype("float32")


def quantized(reference, images, recipe=W4):
    model, _ = klb.quantize_model(reference, recipe)
    klb.calibrate(model, images, verbose=0)
    return model


def codes(model):
    found = {}
    for layer in model.layers:
        if getattr(layer, "kernel_host", None) is not None:
            found[layer.name] = keras.ops.convert_to_numpy(layer.kernel_host.encode(layer.kernel).codes)
    return found


def kernels(model):
    return [keras.ops.convert_to_numpy(layer.kernel) for layer in model.layers if hasattr(layer, "kernel")]


def error(model, reference, images):
    wanted = run(reference, images)[0]
    return float(np.square(run(model, images)[0] - wanted).sum() / np.square(wanted).sum())


@pytest.fixture(scope="module")
def learnt(reference, images):
    """A model before, after, and the report."""
    model = quantized(reference, images)
    before, grid = (
        codes(model),
        {layer.name: neighbours_of(layer) for layer in model.layers if hasattr(layer, "kernel")},
    )
    start = error(model, reference, images)
    report = klb.reconstruct(model, reference, images, iterations=150, verbose=0)
    return model, before, grid, start, report


def test_error_falls_on_held_back_samples_and_at_the_outputs(learnt, reference, images):
    model, _, _, start, report = learnt
    assert report.verdict.kept
    assert report.verdict.after < 0.5 * report.verdict.before
    assert error(model, reference, images) < 0.5 * start
    assert {"stem", "expand", "depthwise", "project"} <= set(report.outcomes("reconstructed"))
    assert "at the output of 'expand .. project'" in report["depthwise"].detail


def test_every_weight_is_one_of_its_two_neighbours(learnt):
    model, before, grid, _, report = learnt
    moved = 0
    for layer in model.layers:
        if layer.name in report.outcomes("reconstructed"):
            kernel, found = keras.ops.convert_to_numpy(layer.kernel), grid[layer.name]
            assert np.all((kernel == found.low) | (kernel == found.high))
            steps = np.abs(codes(model)[layer.name] - before[layer.name])
            assert steps.max() <= 1
            moved += np.count_nonzero(steps)
    assert moved > 0


def test_no_iterations_leave_every_weight_at_its_nearest_value_and_the_float_biases(reference, images):
    model = quantized(reference, images)
    klb.correct_biases(model, reference, images, check=False, verbose=0)
    before = codes(model)
    klb.reconstruct(model, reference, images, iterations=0, check=False, verbose=0)
    after = codes(model)
    for name, wanted in before.items():
        np.testing.assert_array_equal(after[name], wanted)
        np.testing.assert_array_equal(model.get_layer(name).bias, reference.get_layer(name).bias)


def test_biases_learn_and_make_up_for_shifts(learnt, reference, images):
    model, _, _, _, report = learnt
    for name in report.outcomes("reconstructed"):
        assert not np.array_equal(model.get_layer(name).bias, reference.get_layer(name).bias)


def test_a_layer_whose_quantizer_does_not_keep_the_kernel_keeps_its_bias_too(reference, images, monkeypatch):
    model = quantized(reference, images)
    klb.correct_biases(model, reference, images, check=False, verbose=0)
    before = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    monkeypatch.setattr(module, "assign_exactly", lambda *_: False)
    report = klb.reconstruct(model, reference, images, iterations=2, check=False, verbose=0)
    assert "does not find the values" in report["stem"].detail
    for left, right in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(left, right)


def test_biases_that_were_found_for_nearest_rounding_do_not_stay(reference, images):
    plain, corrected = quantized(reference, images), quantized(reference, images)
    klb.correct_biases(corrected, reference, images, check=False, verbose=0)
    options = {"iterations": 30, "check": False, "verbose": 0}
    for model in (plain, corrected):
        klb.reconstruct(model, reference, images, **options)
    for left, right in zip(plain.weights, corrected.weights, strict=True):  # kernels and biases
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("recipe", [W4, W4A4], ids=lambda recipe: recipe.name)
def test_biases_and_ranges_of_a_block_that_is_left_stay_too(reference, images, monkeypatch, recipe):
    model = quantized(reference, images, recipe)
    klb.correct_biases(model, reference, images, check=False, verbose=0)
    before = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    monkeypatch.setattr(module._Run, "_error", lambda *_: 1.0)  # nothing helps
    report = klb.reconstruct(model, reference, images, iterations=2, verbose=0)
    assert not report.outcomes("reconstructed")
    for left, right in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_reference_that_was_not_quantized_is_said(reference, images):
    scaled = keras.models.clone_model(reference)
    scaled.set_weights([2.0 * weight for weight in reference.get_weights()])
    model = quantized(reference, images)
    bias = [keras.ops.convert_to_numpy(layer.bias) for layer in model.layers if hasattr(layer, "kernel")]
    with pytest.warns(
        UserWarning, match=r"is not the model that .* the kernels of 5 layers differ, the first is 'stem'"
    ):
        klb.reconstruct(model, scaled, images, iterations=0, check=False, verbose=0)
    for layer, value in zip([layer for layer in model.layers if hasattr(layer, "kernel")], bias, strict=True):
        np.testing.assert_array_equal(layer.bias, value)


@pytest.mark.parametrize("recipe", [W4, W4A4], ids=lambda recipe: recipe.name)
def test_resumed_run_has_the_same_bits(reference, images, tmp_path, monkeypatch, recipe):
    options = {"iterations": 12, "check": False, "verbose": 0, "seed": 3}
    whole = quantized(reference, images, recipe)
    klb.reconstruct(whole, reference, images, **options)
    train, runs = module.train, []

    def stopped(*args):
        if len(runs) == 2:
            raise KeyboardInterrupt
        runs.append(train(*args))

    monkeypatch.setattr(module, "train", stopped)
    again = quantized(reference, images, recipe)
    fresh = [keras.ops.convert_to_numpy(weight) for weight in again.weights]
    with pytest.raises(KeyboardInterrupt):
        klb.reconstruct(again, reference, images, checkpoint=tmp_path / "new" / "c", **options)
    for left, right in zip(again.weights, fresh, strict=True):  # a run that fails changes nothing
        np.testing.assert_array_equal(left, right)
    runs.clear()
    klb.reconstruct(again, reference, images, checkpoint=tmp_path / "new" / "c", **options)
    assert len(runs) == 1  # two of three blocks came from the file
    for left, right in zip(again.weights, whole.weights, strict=True):  # kernels, biases and factors of ranges
        np.testing.assert_array_equal(left, right)


def test_foreign_and_damaged_checkpoints_are_refused(reference, images, tmp_path):
    model, path = quantized(reference, images), tmp_path / "c"
    options = {"check": False, "verbose": 0, "checkpoint": path}
    path.write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"no checkpoint of reconstruct, or damaged .* Delete it"):
        klb.reconstruct(model, reference, images, iterations=0, **options)
    path.unlink()
    klb.reconstruct(model, reference, images, iterations=0, **options)
    with pytest.raises(ValueError, match="of another model, other weights or other settings"):
        klb.reconstruct(model, reference, images, iterations=1, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": "network"}, "unit='network'; give 'block' or 'layer'"),
        ({"iterations": -1}, "iterations"),
        ({"learning_rate": 0}, "learning_rate above 0, got 0"),
        ({"drop_probability": 1.0}, r"drop_probability in \[0, 1\), got 1.0"),
        ({"regularization": float("nan")}, "regularization of 0 or more, got nan"),
    ],
)
def test_arguments_out_of_range(reference, images, arguments, message):
    with pytest.raises(ValueError, match=message):
        klb.reconstruct(reference, reference, images, **arguments)


def test_a_model_without_twins_is_refused(reference, images):
    with pytest.raises(ValueError, match=r"No quantized layer of .* has a float one of the same path"):
        klb.reconstruct(reference, reference, images, verbose=0)


def test_layers_of_eight_bits_are_left_with_the_float_bias(reference, images):
    model, _ = klb.quantize_model(reference, klb.recipes.w4())
    klb.calibrate(model, images, verbose=0)
    model.get_layer("stem").bias.assign(np.ones(6))
    before = keras.ops.convert_to_numpy(model.get_layer("stem").kernel)
    report = klb.reconstruct(model, reference, images, iterations=2, check=False, verbose=0)
    assert report["stem"].detail == "255 values: nearest rounding leaves nothing to win"
    twins = module.Twins(calls_of(model), calls_of(reference))
    (block,) = module._blocks(twins, "block")  # neither end belongs to it
    assert [call.path for call in block.calls if hasattr(call.operation, "kernel")] == [
        "expand",
        "depthwise",
        "project",
    ]
    assert set(report.outcomes("left")) == {"stem", "logits"}
    np.testing.assert_array_equal(model.get_layer("stem").kernel, before)
    np.testing.assert_array_equal(model.get_layer("stem").bias, reference.get_layer("stem").bias)


def test_a_model_of_eight_bits_alone_is_left_as_it_is(reference, images):
    model = quantized(reference, images, "int8")
    klb.correct_biases(model, reference, images, check=False, verbose=0)
    before = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    report = klb.reconstruct(model, reference, images, verbose=0)
    assert len(report.outcomes("left")) == 5
    for left, right in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(left, right)


def test_quantizers_without_neighbours_are_named(reference, images):
    recipe = klb.recipes.get("inq-5")
    model, _ = klb.quantize_model(reference, recipe)
    klb.calibrate(model, images[:32], verbose=0)
    with pytest.raises(
        ValueError, match=r"No quantized layer of .* can learn its rounding: Incremental has no neighbours"
    ):
        klb.reconstruct(model, reference, images, verbose=0)


GRIDS = [
    klb.quantizers.Uniform(4),
    klb.quantizers.Uniform(3, granularity="tensor", calibration="mse"),
    klb.quantizers.AdjustableThreshold(klb.quantizers.Uniform(4), calibration="mse"),
    klb.quantizers.PowerOfTwo(4),
    klb.quantizers.Ternary(),
    klb.quantizers.Clustered(klb.quantizers.Ternary(), cluster_size=4),
    klb.quantizers.Clustered(klb.quantizers.Uniform(4), cluster_size=4),
]


@pytest.mark.parametrize("quantizer", GRIDS, ids=lambda q: f"{q.name}-{getattr(q, 'bits', '')}")
def test_neighbours_enclose_every_weight_and_the_nearest_is_what_the_quantizer_takes(quantizer):
    keras.utils.set_random_seed(5)
    layer = QuantDense(6, kernel_quantizer=quantizer)
    layer.build((None, 32))
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    found, encoded = neighbours_of(layer), layer.kernel_host.encode(layer.kernel)
    real = keras.ops.convert_to_numpy(encoded.real)
    inside = found.free | np.isclose(kernel, real, atol=1e-4)
    assert inside.mean() > 0.5
    assert np.all(((found.low <= kernel + 1e-4) & (found.high >= kernel - 1e-4)) | ~inside)
    assert np.all(found.free | (found.low == found.high))
    nearest = np.where(found.nearest_is_high, found.high, found.low)
    assert np.all(np.isclose(real, found.low, atol=1e-7) | np.isclose(real, found.high, atol=1e-7))
    if quantizer.name in ("uniform", "adjustable_threshold"):
        np.testing.assert_allclose(nearest, real, atol=1e-6)
