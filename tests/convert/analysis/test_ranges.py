"""Where ranges stand: exactly at the values the integer pipeline stores, and nowhere else."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.layers import QuantActivation
from keras_lowbit.quantizers import ActivationRange
from tests.support import model_zoo
from tests.support.model_zoo import inputs_of, randomize, run

L = keras.layers


def quantized(inputs, outputs, **options):
    return klb.quantize_model(keras.Model(inputs, outputs), "int8", **options)[0]


def ranges(model):
    """Name of each range layer (without its "_range") -> its quantizer; "name:own" for those inside a layer."""
    found = {}
    for layer in model.layers:
        if isinstance(layer, QuantActivation):
            found[layer.name.removesuffix("_range")] = layer.quantizer
        elif getattr(layer, "output_quantizer", None) is not None:
            found[f"{layer.name}:own"] = layer.output_quantizer
    return found


def image(*shape):
    return keras.Input(shape or (8, 8, 4), name="image")


def test_conv_batch_norm_relu_share_one_range_behind_the_relu():
    x = image()
    y = L.ReLU(name="relu")(L.BatchNormalization(name="norm")(L.Conv2D(4, 3, name="conv")(x)))
    model = quantized(x, y)
    assert set(ranges(model)) == {"image", "relu"}
    assert [layer.name for layer in model.layers] == ["image", "image_range", "conv", "norm", "relu", "relu_range"]


def test_batch_norm_before_a_convolution_is_a_step_of_its_own():
    x = image()
    assert set(ranges(quantized(x, L.Conv2D(4, 3, name="conv")(L.BatchNormalization(name="norm")(x))))) == {
        "image",
        "norm",
        "conv",
    }


def test_a_result_with_two_readers_is_stored_before_the_relu_that_only_one_takes():
    x = image()
    y = L.Conv2D(4, 1, name="conv")(x)
    assert set(ranges(quantized(x, L.Add(name="sum")([L.ReLU(name="relu")(y), y])))) == {
        "image",
        "conv",
        "relu",
        "sum",
    }


@pytest.mark.parametrize("function", ["relu", "relu6", None])
def test_an_own_activation_that_fuses_has_its_range_behind_the_layer(function):
    x = image()
    assert set(ranges(quantized(x, L.Conv2D(4, 3, activation=function, name="conv")(x)))) == {"image", "conv"}


@pytest.mark.parametrize(
    ("function", "limits"),
    [("sigmoid", (0, 255 / 256)), ("hard_sigmoid", (0, 255 / 256)), ("tanh", (-1, 127 / 128))],
)
def test_an_own_sigmoid_is_computed_from_stored_values_into_a_fixed_range(function, limits):
    x = image()
    model = quantized(x, L.ReLU(name="end")(L.Conv2D(4, 3, activation=function, name="conv")(x)))
    found = ranges(model)
    assert set(found) == {"image", "conv:own", "conv", "end"}
    assert (found["conv"].minimum, found["conv"].maximum) == limits
    assert not found["conv:own"].has_static_range


@pytest.mark.parametrize(("function", "gate"), [("silu", "sigmoid"), ("hard_silu", "hard_sigmoid")])
def test_an_own_silu_becomes_a_gate_with_a_fixed_range_and_a_product(function, gate):
    x = image()
    model = quantized(x, L.Conv2D(4, 3, activation=function, name="conv")(x))
    found = ranges(model)
    assert set(found) == {"image", "conv:own", f"conv_{function}_gate", "conv"}
    assert found[f"conv_{function}_gate"] == ActivationRange(minimum=0.0, maximum=255 / 256)
    opened = model.get_layer(f"conv_{function}_gate")
    assert keras.activations.serialize(opened.activation) == gate
    product = model.get_layer(f"conv_{function}")
    assert [tensor._keras_history.operation.name for tensor in product.input] == ["conv", f"conv_{function}_gate"]


def test_an_unknown_function_of_its_own_is_a_float_operation_between_two_ranges():
    x = image()
    assert set(ranges(quantized(x, L.Conv2D(4, 3, activation="gelu", name="conv")(x)))) == {
        "image",
        "conv:own",
        "conv",
    }


def test_residual_sum_and_its_relu_share_one_range():
    assert set(ranges(klb.quantize_model(model_zoo.residual())[0])) == {"image", "stem", "norm", "out", "pool", "head"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: L.MaxPooling2D(2),
        lambda: L.AveragePooling2D(1, 2),
        lambda: L.Reshape((64, 4)),
        lambda: L.Flatten(),
        lambda: L.Permute((2, 1, 3)),
        lambda: L.ZeroPadding2D(1),
        lambda: L.Cropping2D(1),
        lambda: L.UpSampling2D(2),
        lambda: L.Dropout(0.3),
        lambda: lambda t: t[:, 1:, ::2],
        lambda: lambda t: keras.ops.transpose(t, (0, 2, 1, 3)),
        lambda: lambda t: keras.ops.squeeze(keras.ops.expand_dims(t, 1), 1),
    ],
)
def test_what_only_moves_or_selects_keeps_the_range_of_its_input(make):
    x = image()
    assert set(ranges(quantized(x, make()(x)))) == {"image"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: L.Rescaling(0.5, name="new"),
        lambda: L.LeakyReLU(name="new"),
        lambda: L.AveragePooling2D(2, name="new"),
        lambda: lambda t: L.Reshape((2, 2, 1))(L.GlobalAveragePooling2D(name="new")(t)),
        lambda: L.Softmax(name="new"),
    ],
)
def test_what_makes_new_values_gets_a_range(make):
    x = image()
    assert set(ranges(quantized(x, L.MaxPooling2D(2)(make()(x))))) == {"image", "new"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: L.ELU(name="new"),
        lambda: L.Activation("sparsemax", name="new"),
        lambda: L.ReLU(max_value=3.0, name="new"),
    ],
)
def test_what_runs_in_float_gets_a_range_behind_it_and_none_before(make):
    x = image()
    assert set(ranges(quantized(x, L.MaxPooling2D(2)(make()(x))))) == {"new"}


def test_float_operations_in_a_row_have_a_range_behind_them_and_none_between():
    x = image()
    y = L.ELU(name="third")(L.Activation("sparsemax", name="second")(L.ELU(name="first")(x)))
    assert set(ranges(quantized(x, y))) == {"third"}


def test_bytes_have_the_range_of_the_cast_behind_them():
    x = keras.Input((8, 8, 3), name="image", dtype="uint8")
    found = ranges(quantized(x, L.Rescaling(1 / 255, name="scaled")(x)))
    assert set(found) == {"image_pixels", "scaled"}
    assert found["image_pixels"] == ActivationRange(minimum=0.0, maximum=255.0)


def test_concatenation_has_one_range_and_its_parts_none():
    x = image()
    parts = [L.Conv2D(4, 1, activation="relu", name=f"conv{index}")(x) for index in range(3)]
    assert set(ranges(quantized(x, L.Concatenate(name="both")(parts)))) == {"image", "both"}


def test_a_chain_of_concatenations_shares_one_range_that_only_widens():
    model = klb.quantize_model(model_zoo.dense_chain())[0]
    assert set(ranges(model)) == {"image", "concat0", "pool"}
    shared = model.get_layer("concat0_range")
    assert shared.quantizer == ActivationRange(hold=True)
    assert len(shared._inbound_nodes) == 3


def test_groups_of_concatenations_that_do_not_meet_keep_their_own_ranges():
    x = image()
    first = L.Concatenate(name="first")([x, L.Conv2D(4, 1, name="a")(x)])
    second = L.Concatenate(name="second")([x, L.Conv2D(4, 1, name="b")(L.Conv2D(3, 1, name="c")(first))])
    found = ranges(quantized(x, second))
    assert set(found) == {"image", "first", "c", "second"}
    assert not found["first"].hold


def test_two_chains_that_meet_share_one_range():
    x = image()
    left = L.Concatenate(name="left")([x, L.Conv2D(4, 1, name="a")(x)])
    right = L.Concatenate(name="right")([x, L.Conv2D(4, 1, name="b")(x)])
    model = quantized(x, L.Concatenate(name="all")([left, right]))
    assert sum(name in ("left", "right", "all") for name in ranges(model)) == 1


def test_fixed_ranges_have_no_state():
    x = image()
    model = quantized(x, L.ReLU()(L.Activation("sigmoid", name="gate")(x)))
    assert model.get_layer("gate_range").output_host.state == {}


@pytest.mark.parametrize("where", ["own", "layer", "op", "nested", "skipped"])
@pytest.mark.parametrize("function", ["softmax", "sigmoid"])
def test_final_probabilities_have_no_range_so_the_loss_sees_logits(where, function):
    x = keras.Input((6,), name="row")
    logits = L.Dense(3, name="head", activation=function if where in ("own", "skipped") else None)(x)
    skip = []
    if where == "layer":
        logits = L.Activation(function)(logits)
    elif where == "op":
        logits = getattr(keras.ops, function)(logits)
    elif where == "nested":
        top = keras.Sequential([keras.Input((3,)), L.Activation(function)], name="top")
        logits = top(logits)
    elif where == "skipped":
        skip = ["head"]
    model = randomize(keras.Model(x, logits))
    copy, _ = klb.quantize_model(model, "int8", skip=skip)
    outer = ranges(copy)
    assert set(outer) == {"own": {"row", "head:own"}, "skipped": set()}.get(where, {"row", "head"})
    if where == "nested":
        assert ranges(copy.get_layer("top")) == {}


def test_probabilities_that_go_on_inside_the_model_have_a_fixed_range():
    x = keras.Input((6,), name="row")
    top = keras.Sequential([keras.Input((6,)), L.Activation("softmax", name="mix")], name="top")
    copy = quantized(x, L.Multiply(name="product")([top(x), x]))
    assert ranges(copy.get_layer("top"))["mix"] == ActivationRange(minimum=0.0, maximum=255 / 256)


def test_training_loss_of_a_softmax_head_is_the_loss_of_its_logits():
    rows = keras.Input((6,), name="row")
    model = randomize(keras.Model(rows, L.Dense(3, activation="softmax", name="head")(rows)))
    copy, _ = klb.quantize_model(model, "int8")
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32") * 200  # probabilities of exactly 0 and 1
    y = np.arange(16) % 3
    klb.calibrate(copy, x, verbose=0)
    klb.freeze_ranges(copy)
    head = copy.get_layer("head")
    logits = keras.ops.convert_to_numpy(head.integer_output(copy.get_layer("row_range")(x))).astype(np.float64)
    top = logits.max(1)
    want = np.mean(top + np.log(np.exp(logits - top[:, None]).sum(1)) - logits[np.arange(16), y])
    copy.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy", jit_compile=False)
    got = copy.fit(x, y, batch_size=16, verbose=0).history["loss"][0]
    assert want > 20  # -log of a clipped probability would be 16 at most
    assert got == pytest.approx(want, rel=1e-6)


def test_a_layer_called_twice_has_a_range_for_each_result():
    x = keras.Input((4,), name="row")
    dense = L.Dense(4, activation="relu", name="dense")
    found = ranges(quantized(x, L.Add(name="sum")([dense(x), dense(dense(x))])))
    assert set(found) == {"row", "dense", "dense_range_1", "dense_range_2", "sum"}


def test_ranges_inside_a_nested_model_that_is_called_twice_only_widen():
    model = klb.quantize_model(model_zoo.nested_twice())[0]
    inner = model.get_layer("middle").get_layer("inner")
    assert ranges(inner) == {"conv": ActivationRange(hold=True)}
    assert ranges(model)["conv"] == ActivationRange()


def test_ranges_inside_a_model_that_two_parents_share_only_widen():
    inner = keras.Sequential([keras.Input((4,)), L.Dense(4, activation="tanh", name="dense")], name="inner")

    def parent(name):
        row = keras.Input((4,))
        return keras.Model(row, inner(row), name=name)

    x = keras.Input((4,), name="row")
    copy = quantized(x, parent("second")(parent("first")(x)))
    shared = copy.get_layer("first").get_layer("inner")
    assert shared is copy.get_layer("second").get_layer("inner")
    assert ranges(shared)["dense:own"].hold


def test_an_inner_range_of_a_shared_layer_only_widens():
    x = keras.Input((4,), name="row")
    dense = L.Dense(4, activation="tanh", name="dense")
    assert ranges(quantized(x, dense(dense(x))))["dense:own"] == ActivationRange(hold=True)


def test_no_activations_no_ranges():
    for make in model_zoo.MODELS.values():
        model = make()
        copy, _ = klb.quantize_model(model, klb.recipes.get("int8").replace(activations=None))
        assert not any(isinstance(layer, QuantActivation) for layer in copy._flatten_layers())
        assert len(list(copy._flatten_layers())) >= len(list(model._flatten_layers()))


def test_names_of_ranges_give_way_to_names_of_layers():
    x, other = keras.Input((4,), name="x"), keras.Input((4,), name="x_range")
    copy, _ = klb.quantize_model(keras.Model([x, other], L.Add(name="x_range_1")([x, other])))
    names = [layer.name for layer in copy.layers]
    assert len(names) == len(set(names))


def test_one_step_at_each_range_is_all_that_eight_bits_change():
    model = randomize(model_zoo.residual())
    copy, _ = klb.quantize_model(model, klb.recipes.Recipe("a8", (), ActivationRange()), overrides={".*": None})
    inputs = inputs_of(model)
    found = klb.calibrate(copy, inputs, verbose=0)
    (want,), (got,) = run(model, inputs), run(copy, inputs)
    low, high = found["head_range/output_quantizer"]
    # A handful of half steps on the way, each scaled by weights of about 1, averaged over 64 positions.
    np.testing.assert_allclose(got, want, atol=4 * (high - low) / 255)
