"""quantize_model on every small model: the copy computes the same, the original stays as it was."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.quantizers import Binary, Ternary, Uniform
from keras_lowbit.recipes import Recipe, Rule
from tests.support.model_zoo import MODELS, inputs_of, randomize, run

L = keras.layers
FLOAT = Recipe("float", plan=())  # no rule: every kernel stays float
WEIGHTS8 = Recipe("weights8", (Rule(Uniform(8)),))
each_model = pytest.mark.parametrize("name", MODELS)


def made(name):
    return randomize(MODELS[name]())


def all_layers(model, prefix=""):
    """Path of every layer and op of a model, written from Keras' own lists."""
    for operation in model._functional.operations if isinstance(model, keras.Sequential) else model.operations:
        yield prefix + operation.name
        if isinstance(operation, keras.Model):
            yield from all_layers(operation, f"{prefix}{operation.name}/")


def snapshot(model):
    """Everything of a model that a conversion might change."""
    operations = list(_operations(model))
    return {
        "config": model.get_config(),
        "weights": [keras.ops.convert_to_numpy(keras.ops.copy(variable)).tolist() for variable in model.variables],
        "trainable": [layer.trainable for layer in model._flatten_layers()],
        "nodes": [(operation.name, len(operation._inbound_nodes)) for operation in operations],
        "readers": [(operation.name, len(operation._outbound_nodes)) for operation in operations],
    }


def _operations(model):
    for operation in model._functional.operations if isinstance(model, keras.Sequential) else model.operations:
        yield operation
        if isinstance(operation, keras.Model):
            yield from _operations(operation)


@each_model
def test_nothing_quantized_is_the_original_bit_for_bit(name):
    model = made(name)
    copy, report = klb.quantize_model(model, FLOAT)
    inputs = inputs_of(model)
    for want, got in zip(run(model, inputs), run(copy, inputs), strict=True):
        np.testing.assert_array_equal(got, want)
    assert not report.outcomes("quantized")


@each_model
def test_eight_bit_kernels_are_the_stock_model_with_kernels_quantized_in_float64(name):
    model, expected = made(name), made(name)
    copy, _ = klb.quantize_model(model, WEIGHTS8)
    for layer in expected._flatten_layers():
        for attribute, axes in _KERNELS.get(type(layer).__name__, {}).items():
            variable = getattr(layer, attribute)
            variable.assign(quantized_in_float64(variable.numpy(), axes))
    inputs = inputs_of(model)
    for want, got in zip(run(expected, inputs), run(copy, inputs), strict=True):
        # The grids agree to a rounding of the scale in float32; sums are of at most 300 products.
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5 * np.abs(want).max())


_KERNELS = {
    "Conv1D": {"kernel": (2,)},
    "Conv2D": {"kernel": (3,)},
    "Conv2DTranspose": {"kernel": (2,)},
    "DepthwiseConv2D": {"kernel": (2, 3)},
    "SeparableConv2D": {"depthwise_kernel": (2, 3), "pointwise_kernel": (3,)},
    "Dense": {"kernel": (1,)},
}


def quantized_in_float64(kernel, kept):
    kernel = kernel.astype(np.float64)
    axes = tuple(axis for axis in range(kernel.ndim) if axis not in kept)
    step = np.abs(kernel).max(axes, keepdims=True) / 127
    return np.round(kernel / step) * step


@each_model
def test_the_original_is_untouched(name):
    model = made(name)
    before = snapshot(model)
    copy, _ = klb.quantize_model(model, "int8")
    klb.calibrate(copy, inputs_of(copy), verbose=0)
    assert snapshot(model) == before
    assert not {id(layer) for layer in model._flatten_layers()} & {id(layer) for layer in copy._flatten_layers()}
    assert not {id(operation) for operation in _operations(model)} & {id(operation) for operation in _operations(copy)}


@each_model
def test_the_report_names_every_layer_once_and_prints(name):
    model = made(name)
    _, report = klb.quantize_model(model, "sq-twn")
    rows = [row.path for row in report.layers]
    assert len(rows) == len(set(rows))
    assert set(all_layers(model)) <= set(rows)
    parts = set(rows) - set(all_layers(model))  # of what became a composition
    assert all(report[path.rpartition("_")[0]].outcome in ("rewritten", "quantized") for path in parts)
    assert {row.outcome for row in report.layers} <= {"quantized", "kept", "rewritten", "skipped"}
    text = str(report)
    assert text.startswith(f"{model.name} with sq-twn: ")
    assert all(path in text for path in rows)
    assert all(row.detail for row in report.layers)


@each_model
def test_every_kernel_is_quantized_with_the_recipes_quantizer(name):
    model = made(name)
    copy, report = klb.quantize_model(model, Recipe("twn", (Rule(Ternary()),)))
    kernels = [layer for layer in model._flatten_layers() if type(layer).__name__ in _KERNELS]
    pieces = sum(len(_KERNELS[type(layer).__name__]) for layer in kernels)
    quantized = klb.quantized_weights(copy)
    assert len(quantized) == pieces
    assert len(report.outcomes("quantized")) == len(kernels)
    assert all(set(np.unique(weights.codes)) <= {-1, 0, 1} for weights in quantized.values())


@each_model
def test_calibrates_trains_and_keeps_its_names(name):
    model = made(name)
    copy, _ = klb.quantize_model(model, "int8")
    inputs = inputs_of(copy)
    klb.calibrate(copy, inputs, verbose=0)
    copy.compile("sgd", "mse", run_eagerly=True)
    targets = keras.tree.map_structure(lambda part: np.zeros(part.shape, "float32"), model(inputs))
    loss = copy.fit(inputs, targets, epochs=1, verbose=0).history["loss"][0]
    assert np.isfinite(loss)
    assert copy.name == model.name
    assert [tensor._keras_history.operation.name for tensor in copy.inputs] == [
        tensor._keras_history.operation.name for tensor in model.inputs
    ]


def test_sequential_without_input_shape_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"'open' has no input shape yet. Add keras.Input\(shape\)"):
        klb.quantize_model(keras.Sequential([L.Dense(2)], name="open"))


def test_any_height_and_width_stay_open():
    model = made("variable_size")
    copy, _ = klb.quantize_model(model, "int8")
    assert copy.input_shape == (None, None, None, 3)
    for side in (9, 16):
        assert copy(np.zeros((2, side, side, 3), "float32")).shape == (2, 2)


def test_one_shared_layer_stays_one_shared_layer():
    copy, _ = klb.quantize_model(made("many_ends"), "int8")
    assert sum(layer.name == "shared" for layer in copy.layers) == 1
    assert len(copy.get_layer("shared")._inbound_nodes) == 2
    nested, _ = klb.quantize_model(made("nested_twice"), "int8")
    inner = nested.get_layer("middle").get_layer("inner")
    assert sum(layer.name == "conv" for layer in nested._flatten_layers()) == 2  # inner's and the outer one
    assert len(inner._inbound_nodes) == 2


def test_structures_of_inputs_and_outputs_are_kept():
    copy, _ = klb.quantize_model(made("dicts"), "int8")
    outputs = copy({"a": np.ones((2, 3), "float32"), "b": np.ones((2, 5), "float32")})
    assert {key: tuple(value.shape) for key, value in outputs.items()} == {"sum": (2, 4), "a": (2, 4)}


def test_separable_becomes_two_layers_with_the_weights_and_settings_of_one():
    model = made("separable")
    layer = model.get_layer("sep")
    copy, report = klb.quantize_model(model, WEIGHTS8, overrides={".*_depthwise": Uniform(4)})
    depthwise, pointwise = copy.get_layer("sep_depthwise"), copy.get_layer("sep")
    np.testing.assert_array_equal(depthwise.kernel, layer.depthwise_kernel)
    np.testing.assert_array_equal(pointwise.kernel, layer.pointwise_kernel)
    np.testing.assert_array_equal(pointwise.bias, layer.bias)
    assert (depthwise.kernel_quantizer, pointwise.kernel_quantizer) == (Uniform(4), Uniform(8))
    assert not depthwise.use_bias
    assert depthwise.strides == layer.strides
    assert "depthwise Uniform(bits=4" in report["sep"].detail


def test_a_rule_of_its_own_keeps_the_depthwise_half_float():
    model = made("separable")
    copy, report = klb.quantize_model(model, WEIGHTS8, overrides={"sep_depthwise": None})
    assert type(copy.get_layer("sep_depthwise")) is L.DepthwiseConv2D
    assert "depthwise float, then pointwise Uniform(bits=8" in report["sep"].detail
    assert list(klb.quantized_weights(copy)) == ["sep"]
    with pytest.raises(ValueError, match="matches no layer with a kernel"):
        klb.quantize_model(made("residual"), WEIGHTS8, overrides={"stem_depthwise": None})


def test_separable_with_float_kernels_computes_the_same():
    model = made("separable")
    parts = klb.convert.separable.split_separable(model.get_layer("sep"), "part", None, {})
    inputs = inputs_of(model)
    (want,) = run(model, inputs)
    got = keras.ops.convert_to_numpy(parts[1](parts[0](inputs)))
    # The same 27 and 6 products, summed by another kernel of TensorFlow.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_trainable_flags_regularizers_and_constraints_are_kept():
    inner = keras.Sequential([keras.Input((4,)), L.Dense(3, name="frozen"), L.BatchNormalization()], name="inner")
    inner.trainable = False
    row = keras.Input((4,))
    head = L.Dense(2, kernel_regularizer=keras.regularizers.L2(0.1), bias_constraint="non_neg", name="head")
    off = L.Dense(2, name="off")
    model = keras.Model(row, off(head(inner(row))))
    off.trainable = False
    copy, _ = klb.quantize_model(model, WEIGHTS8)
    assert [variable.path for variable in copy.trainable_variables] == ["head/kernel", "head/bias"]
    assert copy.get_layer("inner").trainable is False
    assert copy.get_layer("head").kernel_regularizer.get_config() == {"l2": pytest.approx(0.1)}
    assert isinstance(copy.get_layer("head").bias_constraint, keras.constraints.NonNeg)
    # An L2 penalty is of the float kernel, which is what the optimizer moves.
    np.testing.assert_allclose(copy.losses[0], 0.1 * np.sum(np.square(head.kernel)), rtol=1e-6)


def test_a_frozen_model_with_a_thawed_layer_stays_so():
    model = made("sequential")
    model.trainable = False
    model.layers[-1].trainable = True
    copy, _ = klb.quantize_model(model, WEIGHTS8)
    flags = {layer.name: layer.trainable for layer in copy.layers}
    assert copy.trainable is False
    assert [flags[layer.name] for layer in model.layers] == [layer.trainable for layer in model.layers]


def test_arguments_of_calls_are_kept():
    row = keras.Input((4,))
    model = keras.Model(row, L.BatchNormalization(name="norm")(L.Dense(3)(row), training=False))
    copy, _ = klb.quantize_model(model, "int8")
    assert copy.get_layer("norm")._inbound_nodes[0].arguments.kwargs["training"] is False


def test_quantizing_again_keeps_quantizers_weights_and_state():
    first, _ = klb.quantize_model(made("gates"), "sq-bwn")
    inputs = inputs_of(first)
    ranges = klb.calibrate(first, inputs, verbose=0)
    klb.layers.set_ratio(first, 0.5)
    again, report = klb.quantize_model(first, "int8")
    assert [layer.name for layer in again.layers] == [layer.name for layer in first.layers]
    assert again.get_layer("conv").kernel_quantizer == klb.quantizers.Stochastic(Binary())
    np.testing.assert_array_equal(run(again, inputs), run(first, inputs))
    for old, new in zip(first.variables, again.variables, strict=True):
        np.testing.assert_array_equal(old, new, err_msg=old.path)
    assert klb.calibrate(again, inputs, verbose=0) == ranges
    assert report["conv"].outcome == "quantized"


def test_a_quantized_layer_on_the_skip_list_is_left_as_it_is():
    first, _ = klb.quantize_model(made("residual"), WEIGHTS8)
    again, report = klb.quantize_model(first, WEIGHTS8, skip=["head"])
    assert again.get_layer("head").kernel_quantizer == Uniform(8)
    assert report["head"].detail == "skip list; keeps the quantizer it has"


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_models_convert_and_train(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = made("residual")
        copy, _ = klb.quantize_model(model, "int8")
    finally:
        keras.config.set_dtype_policy("float32")
    assert [str(t.dtype) for t in (copy.get_layer("sum").output, model.get_layer("sum").output)] == [policy[6:]] * 2
    assert copy.get_layer("stem").kernel.dtype == "float32"
    inputs = inputs_of(copy)
    klb.calibrate(copy, inputs, verbose=0)
    copy.compile("sgd", "mse", run_eagerly=True)
    assert np.isfinite(copy.fit(inputs, np.zeros((4, 3)), verbose=0).history["loss"][0])


def test_the_global_policy_does_not_reach_into_a_float32_model():
    model = made("gates")
    keras.config.set_dtype_policy("mixed_float16")
    try:
        copy, _ = klb.quantize_model(model, "int8")
    finally:
        keras.config.set_dtype_policy("float32")
    assert {str(layer.output.dtype) for layer in copy.layers} == {"float32"}
