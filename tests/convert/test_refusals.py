"""What quantize_model refuses, what it skips, and what it says."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_lowbit as klb
from keras_lowbit.quantizers import Ternary, Uniform
from keras_lowbit.recipes import Recipe, Rule
from tests.support import model_zoo
from tests.support.model_zoo import inputs_of, randomize, run

L = keras.layers


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="mine")
        self.dense = L.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


class TwiceTheGraph(keras.Model):
    def call(self, inputs, training=None):
        return 2 * super().call(inputs)


def small():
    row = keras.Input((4,), name="row")
    return keras.Model(row, L.Dense(2, name="head")(L.Dense(3, name="body")(row)), name="small")


def test_a_subclassed_model_is_told_of_the_drop_in_layers():
    with pytest.raises(TypeError) as error:
        klb.quantize_model(Subclassed())
    text = str(error.value)
    assert "'mine' is a subclassed model (Subclassed)" in text
    for layer in ("QuantConv2D(64, 3, kernel_quantizer=", "QuantDense(10", 'QuantActivation("relu")'):
        assert f"keras_lowbit.layers.{layer}" in text


def test_a_functional_model_with_a_call_of_its_own_is_no_graph():
    row = keras.Input((4,))
    with pytest.raises(TypeError, match="subclassed model"):
        klb.quantize_model(TwiceTheGraph(row, L.Dense(2)(row)))


def test_a_tf_keras_model_is_named_as_such():
    class Sequential:
        """What tf_keras would hand over."""

    Sequential.__module__ = "tf_keras.src.engine.sequential"
    with pytest.raises(TypeError, match=r"got tf_keras.src.engine.sequential.Sequential. It is a tf_keras"):
        klb.quantize_model(Sequential())


@pytest.mark.parametrize("thing", [None, "model.keras", L.Dense(3), np.ones(3)], ids=str)
def test_what_is_no_model_is_refused(thing):
    with pytest.raises(TypeError, match="takes a Keras 3 model, got "):
        klb.quantize_model(thing)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown recipe 'sq'. Known recipes, the most alike first: sq-bwn, sq-twn, "):
        klb.quantize_model(small(), "sq")
    with pytest.raises(ValueError, match=r"Unknown quantizer 'terniary'. Known names, the most alike first: ternary, "):
        klb.quantize_model(small(), overrides={"head": "terniary"})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_path(bad):
    model = small()
    kernel = model.get_layer("body").kernel.numpy()
    kernel[1, 2] = bad
    model.get_layer("body").kernel.assign(kernel)
    with pytest.raises(ValueError, match="Weight 'body/kernel' holds 1 NaN or infinite values of 12"):
        klb.quantize_model(model)


def test_patterns_match_whole_names_or_whole_paths():
    model = model_zoo.nested_twice()
    for pattern, skipped in [
        ("conv", ["middle/inner/conv", "conv"]),
        ("middle/inner/conv", ["middle/inner/conv"]),
        (".*/conv", ["middle/inner/conv"]),
        ("con.", ["middle/inner/conv", "conv"]),
    ]:
        _, report = klb.quantize_model(model, "int8", skip=[pattern])
        assert report.outcomes("skipped") == skipped
    assert klb.quantize_model(model, "int8", skip="conv")[1].outcomes("skipped") == ["middle/inner/conv", "conv"]


@pytest.mark.parametrize("pattern", ["con", "inner/conv", "CONV"])
def test_a_pattern_that_matches_nothing_is_an_error_with_examples(pattern):
    model = model_zoo.nested_twice()
    with pytest.raises(ValueError, match=f"'{pattern}' matches no layer. .*'middle/inner/conv'"):
        klb.quantize_model(model, skip=[pattern])
    with pytest.raises(ValueError, match=f"'{pattern}' matches no layer with a kernel"):
        klb.quantize_model(model, overrides={pattern: "ternary"})


def test_an_override_of_a_layer_without_a_kernel_is_an_error():
    with pytest.raises(ValueError, match=r"'out' matches no layer with a kernel.*'stem'"):
        klb.quantize_model(model_zoo.residual(), overrides={"out": "ternary"})


@pytest.mark.parametrize("options", [{"skip": ["(conv"]}, {"overrides": {"(conv": "ternary"}}])
def test_a_broken_regular_expression_is_an_error(options):
    with pytest.raises(ValueError, match=r"'\(conv'.* is not a regular expression"):
        klb.quantize_model(small(), **options)


def test_overrides_come_before_the_plan_the_first_that_matches_decides_and_skip_wins():
    model = model_zoo.residual()
    overrides = {"stem": Uniform(4), "s.*": Uniform(3), "head": None, ".*depthwise.*": {"name": "uniform", "bits": 5}}
    copy, report = klb.quantize_model(model, "twn", overrides=overrides)
    found = {layer.name: layer.kernel_quantizer for layer in copy.layers if hasattr(layer, "kernel_quantizer")}
    depthwise = next(layer.name for layer in model.layers if "depthwise" in layer.name)
    assert found == {"stem": Uniform(4), depthwise: Uniform(5)}
    assert report["head"].outcome == "skipped"
    assert "no rule" in report["head"].detail
    _, report = klb.quantize_model(model, "twn", skip=["stem"], overrides=overrides)
    assert report["stem"].detail.startswith("skip list")


def test_what_is_quantized_already_keeps_its_quantizers_and_an_override_of_it_is_an_error():
    model, _ = klb.quantize_model(small(), "int8", skip=["head"])
    copy, report = klb.quantize_model(model, "twn", overrides={"body": Uniform(8), "head": Uniform(4)})
    assert report["body"].detail.startswith("keeps the quantizer it has: Uniform(bits=8")
    assert report["head"].detail.startswith("Uniform(bits=4")
    assert [layer.kernel_quantizer for layer in (copy.get_layer("body"), copy.get_layer("head"))] == [
        Uniform(8),
        Uniform(4),
    ]
    for given, said in ((Ternary(), "Ternary"), (None, "float weights")):
        with pytest.raises(
            ValueError, match=rf"override gives 'body' {said}.* but it is quantized already and keeps Uni"
        ):
            klb.quantize_model(model, overrides={"bod.": given})
    klb.quantize_model(model, overrides={".*": "ternary"}, skip=["body"])


class Trained(keras.Model):
    def train_step(self, data):
        raise NotImplementedError

    def compute_loss(self, *arguments, **options):
        raise NotImplementedError


@pytest.mark.parametrize("convert", [klb.quantize_model, klb.fold_batch_norms, klb.dequantize])
def test_a_class_with_training_steps_of_its_own_is_warned_of(convert):
    row = keras.Input((4,), name="row")
    model = Trained(row, L.Dense(2, name="head")(row), name="mine")
    with pytest.warns(
        UserWarning, match="Trained 'mine' has train_step, compute_loss of its own. .*Trained.copy.input"
    ):
        convert(model)


def test_a_skipped_nested_model_stays_float_with_all_its_layers():
    model = randomize(model_zoo.nested_twice())
    copy, report = klb.quantize_model(model, Recipe("w", (Rule(Ternary()),)), skip=["middle"])
    assert report.outcomes("quantized") == ["conv"]
    assert report["middle/inner/conv"].outcome == "skipped"
    inputs = inputs_of(model)
    np.testing.assert_array_equal(*(run(m.get_layer("middle"), inputs)[0] for m in (model, copy)))


def test_rules_of_first_and_last_layer_see_the_whole_nest():
    plan = (Rule(None, position="first"), Rule(Uniform(8), position="last"), Rule(Ternary()))
    inner = keras.Sequential([keras.Input((4,)), L.Dense(4, name="a"), L.Dense(4, name="b")], name="inner")
    row = keras.Input((4,))
    model = keras.Model(row, L.Dense(2, name="c")(inner(row)))
    copy, report = klb.quantize_model(model, Recipe("ends", plan))
    assert report["inner/a"].outcome == "skipped"
    assert copy.get_layer("inner").get_layer("b").kernel_quantizer == Ternary()
    assert copy.get_layer("c").kernel_quantizer == Uniform(8)
    one = keras.Sequential([keras.Input((4,)), L.Dense(4, name="only")])
    _, report = klb.quantize_model(one, Recipe("ends", plan))  # both first and last: the first rule decides
    assert report["only"].outcome == "skipped"


def test_a_recurrent_layer_that_is_not_unrolled_is_skipped_with_its_reason():
    _, report = klb.quantize_model(model_zoo.recurrent())
    assert (report["lstm"].outcome, report["lstm"].layer) == ("skipped", "LSTM")
    assert report["lstm"].detail == (
        "it runs in a loop: quantize_model(unroll=True) takes one of up to 64 steps apart, fuse_lstm=True makes it LiteRT's "
        "LSTM; runs in float"
    )
    assert klb.quantize_model(model_zoo.recurrent(), unroll=True)[1]["lstm"].outcome == "rewritten"
    with pytest.raises(TypeError, match="unroll"):
        klb.quantize_model(model_zoo.recurrent(), unroll=8)


class WithConfig(L.Layer):
    def __init__(self, units, **options):
        super().__init__(**options)
        self.units, self.first = units, L.Dense(units)
        self.rest = [L.Dense(units), L.BatchNormalization()]

    def call(self, inputs, training=None):
        hidden = self.rest[0](keras.ops.relu(self.first(inputs)))
        return self.rest[1](hidden, training=training)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class WithoutConfig(L.Layer):
    def __init__(self, *layers):
        super().__init__()
        self.inner = layers

    def call(self, inputs):
        return self.inner[0](inputs)


class Dense(L.Layer):
    """A class that is not Keras' Dense."""

    def call(self, inputs):
        return inputs + 1


def around(layer):
    row = keras.Input((4,), name="row")
    return randomize(keras.Model(row, L.Dense(2, name="head")(layer(row))))


@pytest.mark.parametrize("make", [lambda: WithConfig(3), lambda: Dense(), lambda: L.Lambda(lambda t: t * ops.mean(t))])
def test_a_layer_of_the_users_runs_in_float_as_a_copy(make):
    model = around(make())
    model._flatten_layers()[-1].trainable = False
    copy, report = klb.quantize_model(model, Recipe("w", (Rule(Uniform(8)),)), skip=["head"])
    inputs = inputs_of(model)
    np.testing.assert_array_equal(run(copy, inputs), run(model, inputs))
    assert copy.layers[1] is not model.layers[1]
    assert report.layers[1].outcome == "skipped"
    flags = [[layer.trainable for layer in m.layers[1]._flatten_layers()] for m in (model, copy)]
    assert flags[0] == flags[1]


def test_a_layer_without_a_configuration_is_copied_attribute_by_attribute():
    model = around(WithoutConfig(L.Dense(3)))
    copy, report = klb.quantize_model(model)
    assert copy.layers[1] is not model.layers[1]
    assert report.layers[1].outcome == "skipped"
    assert report.layers[1].detail == f"WithoutConfig is a class of {__name__}, unknown here; runs in float"
    assert not {id(v) for v in copy.variables} & {id(v) for v in model.variables}
    klb.calibrate(copy, inputs_of(copy), verbose=0)


def test_a_layer_with_state_outside_its_weights_is_shared_and_reported():
    text = keras.Input((1,), dtype="string", name="text")
    lookup = L.StringLookup(vocabulary=["a", "b"], output_mode="multi_hot", name="lookup")
    model = keras.Model(text, L.Dense(2, name="head")(lookup(text)))
    with pytest.warns(UserWarning, match="'lookup' .StringLookup.: a file has no tables"):
        copy, report = klb.quantize_model(model)
    assert "state outside its weights" in report["lookup"].detail
    assert copy.get_layer("lookup") is lookup


LOOKUPS = {
    "hashes": (lambda x: L.Hashing(5)(x), "int32", "keras.Input((3,), dtype='int32')"),
    "crossings": (lambda x: L.HashedCrossing(5)((x[:, :1], x[:, 1:2])), "int32", "keras.Input((1,), dtype='int32')"),
    "numbers": (lambda x: L.IntegerLookup(vocabulary=[3, 7])(x), "int64", "keras.Input((3,), dtype='int32')"),
    "words": (lambda x: L.StringLookup(vocabulary=["a"])(x), "string", "keras.Input((3,), dtype='int32')"),
    "flags": (
        lambda x: L.IntegerLookup(vocabulary=[3, 7], output_mode="multi_hot")(x),
        "int64",
        "keras.Input((3,), dtype='float32')",
    ),
    "texts": (
        lambda x: L.TextVectorization(vocabulary=["a"], output_sequence_length=4)(x[:, :1]),
        "string",
        "keras.Input((4,), dtype='int32')",
    ),
}


@pytest.mark.parametrize("name", LOOKUPS)
@pytest.mark.parametrize("nested", [False, True])
def test_what_no_file_can_hold_is_said_at_once_with_the_way_out(name, nested):
    body, kind, entry = LOOKUPS[name]
    given = keras.Input((3,), dtype=kind)
    found = body(given)
    looked = keras.Model(given, found, name="inner")
    if nested:
        outer = keras.Input((3,), dtype=kind)
        given, found = outer, looked(outer)
    model = keras.Model(given, L.Dense(2)(ops.cast(found, "float32")), name="text")
    with pytest.warns(UserWarning, match="No file can be written of 'text'") as said:
        _, report = klb.quantize_model(model)
    [row] = [row for row in report.layers if row.outcome == "no file"]
    assert row.path.startswith("inner/") == nested
    assert f"run it in front of the model, which starts with its result, {entry}" in row.detail
    sentence = f"{row.path!r} ({row.layer}): {row.detail}"
    assert all(sentence in text for text in (str(said[0].message), str(report)))
    assert "1 no file" in str(report).splitlines()[0]


def test_a_report_of_a_model_that_has_a_file_says_nothing_of_it():
    _, report = klb.quantize_model(small())
    assert report.no_file_because == ""
    assert "no file" not in str(report)


def test_the_report_helps_with_a_wrong_name():
    _, report = klb.quantize_model(model_zoo.residual())
    assert report["stem"].layer == "Conv2D"
    with pytest.raises(KeyError, match=r"No layer 'stam' in the report. Close: .'stem'"):
        report["stam"]


def test_the_report_prints_as_a_table():
    _, report = klb.quantize_model(small(), "twn", skip=["head"])
    lines = str(report).splitlines()
    assert lines[0] == "small with twn: 1 kept, 1 quantized, 1 skipped"
    assert lines[1].split() == ["layer", "class", "outcome", "detail"]
    assert [line.split()[0] for line in lines[3:]] == ["row", "body", "head"]
