"""`export_litert(target=)`: what a target takes is data, and all that it does not take is named before anything is written."""

import json

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

import keras_lowbit as klb
from keras_lowbit.deploy.graph import GraphBuilder, Range
from keras_lowbit.deploy.litert import target_check
from keras_lowbit.deploy.litert.format_choice import plan_formats
from keras_lowbit.deploy.litert.reader import LiteRTFile
from keras_lowbit.deploy.litert.target import FOLDER, LIMITS, Target, named_target, read_target, target_of
from keras_lowbit.deploy.litert.target_check import misfits
from keras_lowbit.deploy.litert.weight_formats import WeightFormat, as_written
from keras_lowbit.deploy.litert.writer import to_bytes
from keras_lowbit.deploy.reference.interpreter import trace
from tests.support.litert_cases import OUT, RESOLVERS, biases, codes, graph_of, run, scales
from tests.support.lowering_zoo import case, trained

kl = keras.layers
NAMES = ("edgetpu", "litert", "microcontroller", "npu-per-tensor")


def network(*more, shape=(12, 12, 4), recipe="int8", name="head"):
    keras.utils.set_random_seed(0)
    stack = (
        lambda: kl.Conv2D(8, 3, name="conv"),
        lambda: kl.ReLU(name="relu"),
        *more,
        lambda: kl.GlobalAveragePooling2D(name="pool"),
        lambda: kl.Dense(6, name=name),
    )
    return trained(case(*stack, shape=shape, recipe=recipe))


@pytest.fixture(scope="module")
def plain():
    """A network of integers."""
    return network()


@pytest.fixture(scope="module")
def mixed():
    """One with two operations in float."""
    return network(
        lambda: kl.Activation("sparsemax", name="norm"),
        lambda: kl.Conv2D(8, 3, name="more"),
        lambda: kl.Activation("sparsemax", name="rows"),
    )


# ------------------------------------------------------------------------------------------------ the data


def test_the_targets_of_the_library():
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(NAMES)
    operators = set(vars(schema.BuiltinOperator))
    for name in NAMES:
        found = named_target(name)
        assert found.name == name
        assert found.about
        assert found.sources
        assert set(found.operators) <= operators
        assert not set(found.operators) & set(found.left_out)
        assert found.strict == (name != "litert")
        assert found.takes("CONV_2D")
    assert set(target_check.CONDITIONS) == set(LIMITS)
    assert set(target_check._REMEDIES) == set(LIMITS)


def test_weights_of_a_target():
    litert = named_target("litert")
    assert litert.weights_of("FULLY_CONNECTED") == ("int2", "int4", "int8")
    assert litert.weights_of("CONV_2D") == ("int4", "int8")
    assert litert.weights_of("TRANSPOSE_CONV") == ("int8",)
    assert litert.takers_of("int4") == ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
    assert named_target("microcontroller").weights_of("FULLY_CONNECTED") == ()
    assert named_target("edgetpu").weights_of("CONV_2D") == ("int8",)


def written(path, **fields):
    """A JSON of a target that takes what the fields say."""
    content = {"format_version": 1, "name": "mine", "about": "a device", "operators": {"CONV_2D": {}}, **fields}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def test_a_target_of_ones_own(plain, tmp_path):
    model, images = plain
    path = written(
        tmp_path / "mine.json", operators={"CONV_2D": {}, "MEAN": {}, "FULLY_CONNECTED": {}}, size_bytes=10**6
    )
    for given in (path, str(path), target_of(path)):
        report = klb.export_litert(model, tmp_path / "m.tflite", target=given)
        assert report.target == "mine"
        assert ", for mine\n" in str(report)
        assert klb.verify(model, tmp_path / "m.tflite", images).ok
    assert isinstance(target_of(path), Target)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format_version": 2}, "format_version is not 1"),
        ({"operators": None}, "it has no 'operators'"),
        ({"name": None}, "it has no 'name'"),
        ({"operatos": {}}, "unknown 'operatos', expected name, about"),
        ({"operators": ["CONV_2D"]}, "operators is list"),
        ({"operators": {"CONV_2D": {"weight": ["int8"]}}}, "CONV_2D has 'weight'.*expected some of weights"),
        ({"operators": {"CONV_2D": {"strides": "3"}}}, "CONV_2D has 'strides': '3'"),
        ({"operators": {"CONV_2D": {"weights": ["int3"]}}}, r"CONV_2D has weights \['int3'\]: expected some of int2"),
        ({"size_bytes": 0}, "size_bytes is 0"),
        ({"size_bytes": True}, "size_bytes is True"),
        ({"strict": 1}, "strict is 1"),
        ({"ends": "int8"}, "ends is 'int8'"),
    ],
)
def test_bad_data(tmp_path, fields, message):
    with pytest.raises(ValueError, match=f"(?s)mine.json' describes no target .*{message}.*are examples"):
        read_target(written(tmp_path / "mine.json", **fields))


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"format_version": NaN}', "[" * 5000])
def test_data_that_are_none(tmp_path, content):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(ValueError, match="describes no target"):
        read_target(tmp_path / "mine.json")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("edge-tpu", ValueError, "target='edge-tpu': expected edgetpu, .* or the path of a JSON"),
        (3, ValueError, "target=3: expected a name such as 'microcontroller'"),
        ("none.json", FileNotFoundError, "No target at 'none.json'"),
    ],
)
def test_targets_that_are_none(plain, tmp_path, given, error, message):
    with pytest.raises(error, match=message):
        klb.export_litert(plain[0], tmp_path / "m.tflite", target=given)
    assert not (tmp_path / "m.tflite").exists()


# ------------------------------------------------------------------------------------------------ strict


@pytest.mark.parametrize("name", ["microcontroller", "edgetpu"])
def test_a_network_of_integers_is_written_and_verifies(plain, tmp_path, name):
    model, images = plain
    report = klb.export_litert(model, tmp_path / "m.tflite", target=name)
    assert (report.target, report.misfits) == (name, ())
    assert {row.name: row.op for row in report.rows} == {"conv": "CONV_2D", "head": "CONV_2D"}
    assert f"2 layers with weights, for {name}" in str(report)
    found = klb.verify(model, tmp_path / "m.tflite", images)
    assert found.ok, found
    assert found.reference_equal is True
    assert klb.summary(model, target=name).file_bytes == report.size_bytes


@pytest.mark.parametrize(("name", "strict"), [("microcontroller", None), ("edgetpu", True), ("litert", True)])
def test_all_that_does_not_fit_is_in_one_message(mixed, tmp_path, name, strict):
    (tmp_path / "m.tflite").write_bytes(b"before")
    with pytest.raises(ValueError, match=f"target '{name}' does not take") as caught:
        klb.export_litert(mixed[0], tmp_path / "m.tflite", target=name, strict=strict, io="float32")
    text = str(caught.value)
    for layer in ("norm", "rows"):
        assert f"- {layer}: Activation runs in float: its function 'sparsemax' has no integer form here. Use a" in text
    assert ("input 'x/float32': float32 is no type of an end" in text) == (name != "litert")
    assert ("Give io='int8'" in text) == (name != "litert")
    assert text.endswith("strict=False writes the file anyway.")
    assert (tmp_path / "m.tflite").read_bytes() == b"before"


def test_a_function_of_the_input_says_how_it_becomes_a_table(tmp_path):
    """8 bits of the input may be too few: whoever finds them enough puts their range there."""

    def made(*ranges):
        entry = value = keras.Input((6,), name="x")
        for layer in ranges:
            value = layer(value)
        model = keras.Model(entry, kl.Dense(3)(keras.ops.log(value + 4.0)))
        quantized, _ = klb.quantize_model(model)
        klb.calibrate(quantized, np.random.default_rng(0).uniform(-2, 2, (16, 6)).astype("float32"), verbose=0)
        return quantized

    with pytest.raises(ValueError, match=r"log: Log runs in float: .*Put keras_lowbit\.layers\.QuantActivation where"):
        klb.export_litert(made(), tmp_path / "m.tflite", target="microcontroller")
    report = klb.export_litert(made(klb.layers.QuantActivation()), tmp_path / "m.tflite", target="microcontroller")
    assert report.float_fallbacks == ()


def test_many_tensors_are_joined_ten_at_a_time(tmp_path):
    """tflite-micro's CONCATENATION takes no more."""
    entry = keras.Input((23, 4), name="x")
    parts = [kl.Dense(3, name=f"d{k}")(part) for k, part in enumerate(keras.ops.unstack(entry, axis=1))]
    model, _ = klb.quantize_model(keras.Model(entry, [kl.Concatenate()(parts), keras.ops.stack(parts, axis=2)]))
    data = np.random.default_rng(0).normal(size=(8, 23, 4)).astype("float32")
    klb.calibrate(model, data, verbose=0)
    klb.export_litert(model, tmp_path / "m.tflite", target="microcontroller")
    assert klb.verify(model, tmp_path / "m.tflite", data).ok
    joins = [each for each in LiteRTFile(tmp_path / "m.tflite").operators if each.builtin == "CONCATENATION"]
    assert sorted(len(each.inputs) for each in joins) == [3, 3, 3, 3, 10, 10, 10, 10]


def test_not_strict_writes_and_reports(mixed, tmp_path):
    model, images = mixed
    report = klb.export_litert(model, tmp_path / "m.tflite", target="microcontroller", strict=False)
    assert [misfit.layer for misfit in report.misfits] == ["norm", "rows"]
    assert "not for microcontroller: norm: Activation runs in float" in str(report)
    assert klb.verify(model, tmp_path / "m.tflite", images).ok
    assert klb.export_litert(model, tmp_path / "m.tflite").misfits == ()  # LiteRT runs all of it
    with pytest.raises(TypeError, match="strict='yes'"):
        klb.export_litert(model, tmp_path / "m.tflite", strict="yes")


def problems(graph, target="edgetpu", **arguments):
    """(layer, operator, problem) of what a target does not take of a graph's file."""
    found = misfits(to_bytes(graph, target=target_of(target), **arguments)[0], graph, target_of(target))
    assert all(misfit.remedy for misfit in found)
    return [(misfit.layer, misfit.operation, misfit.problem) for misfit in found]


def conv(b, **arguments):
    return b.conv2d("x", codes(3, 3, 8, 6), scales(6), biases(6), OUT, "y", **arguments)


def deep(b, size=(3, 3), multiplier=1, **arguments):
    channels = 8 * multiplier
    return b.depthwise_conv2d("x", codes(*size, 8, multiplier), scales(channels), None, OUT, "y", **arguments)


def turned_mask(b):
    mask = b.transpose(b.compare(b.input("numbers", (8, 9, 7), "int32"), "m", "less", 3), "y", (0, 3, 2, 1))
    return b.where(mask, "x", b.constant("c", [7], *b.tensor("x").range), "z")


@pytest.mark.parametrize(
    ("make", "target", "operator", "problem"),
    [
        (lambda b: b.leaky_relu("x", OUT, "y", 0.1), "edgetpu", "LEAKY_RELU", "is no operator of edgetpu"),
        (
            lambda b: b.max_pool2d("x", "y", (2, 2), activation="relu"),
            "edgetpu",
            "MAX_POOL_2D",
            "has a fused activation",
        ),
        (lambda b: conv(b, dilation=(2, 3)), "edgetpu", "CONV_2D", "has dilations (2, 3), taken are equal ones"),
        (
            lambda b: b.strided_slice("x", "y", (0, 0, 0), (7, 9, 8), (2, 1, 1)),
            "edgetpu",
            "STRIDED_SLICE",
            "[1, 2, 1, 1]",
        ),
        (
            lambda b: b.softmax("x", "y"),
            "edgetpu",
            "SOFTMAX",
            "has a tensor of shape (1, 7, 9, 8), only the 1 innermost",
        ),
        (lambda b: b.relu6("x", OUT, "y"), "microcontroller", "RELU6", "has an output of another range than its input"),
        (turned_mask, "microcontroller", "TRANSPOSE", "moves bool values, taken are codes"),
        (lambda b: b.concatenation(["x"] * 11, "y", 3), "microcontroller", "CONCATENATION", "joins 11 tensors"),
        (
            lambda b: b.strided_slice(b.reshape("x", "r", (7, 3, 3, 8)), "y", (0, 0, 0, 0), (2, 3, 3, 8)),
            "microcontroller",
            "STRIDED_SLICE",
            "has a tensor of 5 axes, taken are up to 4",
        ),
        (lambda b: b.top_k("x", "y", 3)[0], "microcontroller", "TOPK_V2", "is no operator of microcontroller"),
        (lambda b: conv(b, strides=(4, 1)), "npu-per-tensor", "CONV_2D", "has strides (4, 1), taken are up to 3"),
        (lambda b: conv(b), "npu-per-tensor", "CONV_2D", "has 6 scales of its weights, npu-per-tensor takes one"),
        (lambda b: deep(b, (3, 2)), "npu-per-tensor", "DEPTHWISE_CONV_2D", "has a window of width 2, taken are 3"),
        (
            lambda b: deep(b, multiplier=2),
            "npu-per-tensor",
            "DEPTHWISE_CONV_2D",
            "has a depth multiplier of 2, taken is 1",
        ),
        (
            lambda b: b.resize_bilinear("x", "y", (70, 9)),
            "npu-per-tensor",
            "RESIZE_BILINEAR",
            "makes an image of side 70, taken are up to 65",
        ),
    ],
)
def test_each_limit_is_seen(make, target, operator, problem):
    found = problems(graph_of(make), target)
    assert ("y", operator) in [each[:2] for each in found]
    assert any(problem in each[2] for each in found), found


def test_sixteen_bit_activations_are_taken_operator_by_operator_or_not_at_all():
    builder = GraphBuilder()
    x = builder.input("x", (4, 6, 3), range=Range(2.0**-12, 0, "int16"))
    pooled = builder.logistic(builder.max_pool2d(x, "pool"), "share")
    graph = builder.build([builder.resize_bilinear(pooled, "large", (8, 12))])
    assert problems(graph, "microcontroller") == [
        ("large", "RESIZE_BILINEAR", "has int16 activations, taken are int8"),
    ]
    whole = ("the model", "activations", "are int16, edgetpu takes int8")
    assert whole in problems(graph)
    assert not any(operator == "LOGISTIC" for _, operator, _ in problems(graph))
    assert problems(graph, "litert") == []


def test_limits_of_sizes():
    wide = graph_of(lambda b: b.softmax(b.reshape("x", "flat", (20000,)), "y"), (100, 25, 8))
    assert ("y", "SOFTMAX", "has 20,000 elements, taken are up to 16,000") in problems(wide)
    channels = graph_of(lambda b: b.mean("x", OUT, "y", (1, 2, 3)), (4, 4, 6))
    assert problems(channels) == [("y", "MEAN", "reduces 6 channels, taken are multiples of 4")]
    assert problems(graph_of(lambda b: b.mean("x", OUT, "y", (1, 2)), (4, 4, 6))) == []
    whole = graph_of(conv)
    assert problems(whole) == []
    assert problems(whole, batch_size=None) == [
        ("the model", "the file", "has an open batch, edgetpu takes fixed shapes")
    ]
    assert problems(whole, batch_size=4) == [("the model", "the file", "has a batch of 4, edgetpu takes 1")]


def test_the_size_of_the_file(tmp_path):
    small = read_target(written(tmp_path / "mine.json", size_bytes=2000))
    content, _ = to_bytes(graph_of(lambda b: b.conv2d("x", codes(3, 3, 8, 99), scales(99), None, OUT, "y")))
    [found] = misfits(content, graph_of(conv), small)
    assert found.problem == f"has {len(content):,} bytes, mine takes 2,000"


def test_forced_weights_are_seen():
    graph = graph_of(lambda b: b.conv2d("x", codes(3, 3, 8, 6, low=-7, high=7), scales(6), None, OUT, "y"))
    assert problems(graph, weights="int4") == []  # the target has none, so none were chosen
    content, _ = to_bytes(graph, weights={"y": WeightFormat("int4", False, "forced")})
    [found] = misfits(content, graph, named_target("edgetpu"))
    assert (found.problem, found.remedy) == ("has int4 weights, taken are int8", "Give weights='int8'")


# ------------------------------------------------------------------------------------ forms of layers with weights


def test_times_are_those_of_litert():
    """What they say of another target's kernels is said to be so."""
    graph = graph_of(lambda b: b.conv2d("x", codes(3, 3, 8, 6, low=-7, high=7), scales(6), None, OUT, "y"))
    whys = [
        to_bytes(graph, weights="auto", target=named_target(name))[1][0].why for name in ("litert", "microcontroller")
    ]
    assert "times the time of int8 (XNNPACK leaves it to the built-in kernel), measured at" in whys[0]
    assert "times the time of int8 on LiteRT, measured at" in whys[1]


@pytest.mark.parametrize("shape", [(16,), (5, 16), (3, 5, 16), (2, 3, 5, 16)])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_dense_layer_as_a_convolution(shape, weights):
    """LiteRT runs it as the reference does, and as it runs a convolution: both round twice."""
    kernel = codes(16, 6, low=-8, high=7)
    graph = graph_of(
        lambda b: b.fully_connected("x", kernel, scales(6) * 10, biases(6), OUT, "y", activation="relu"), shape
    )
    target = named_target("microcontroller")
    content, [row] = to_bytes(graph, weights=weights, target=target)
    assert row[:4] == ("y", "CONV_2D", weights, 96 * int(weights[-1]) // 8)
    operators = [operator.builtin for operator in LiteRTFile.of_bytes(content).operators]
    assert operators == (["CONV_2D"] if len(shape) == 3 else ["RESHAPE", "CONV_2D", "RESHAPE"])
    inputs = [codes(1, *shape, low=-128)]
    expected = trace(as_written(graph, plan_formats(graph, weights, target)), {"x": inputs[0]})["y"]
    [got], _ = run(content, inputs)
    np.testing.assert_array_equal(got, expected)
    [xnnpack], _ = run(content, inputs, RESOLVERS["xnnpack"])
    assert np.abs(xnnpack.astype(int) - got).max() <= 1


def one_scale(op, shape, **arguments):
    channels = shape[-2] if op in ("depthwise_conv2d", "transpose_conv") else shape[-1]
    layer = (codes(*shape), np.full(channels, 0.003, np.float32), biases(channels), OUT, "y")
    image = (37, shape[0]) if op == "fully_connected" else (7, 9, shape[-1] if op == "transpose_conv" else shape[-2])
    return graph_of(lambda b: getattr(b, op)("x", *layer, **arguments), image)


@pytest.mark.parametrize(
    "graph",
    [
        one_scale("conv2d", (3, 3, 8, 6)),
        one_scale("depthwise_conv2d", (3, 3, 8, 1), padding="same"),
        one_scale("transpose_conv", (3, 3, 6, 8), strides=(2, 2), padding="same"),
        one_scale("fully_connected", (16, 64)),
    ],
)
def test_one_scale_for_all_weights(graph):
    target = named_target("npu-per-tensor")
    content, _ = to_bytes(graph, target=target)
    assert misfits(content, graph, target) == ()
    tensors = LiteRTFile.of_bytes(content).tensors
    assert tensors["y/kernel"].scale.size == tensors["y/bias"].scale.size == 1
    inputs = [codes(1, *graph.tensors["x"].shape[1:], low=-128)]
    expected = trace(as_written(graph, plan_formats(graph, "int8", target)), {"x": inputs[0]})["y"]
    [got], _ = run(content, inputs)
    np.testing.assert_array_equal(got, expected)
    [many], _ = run(to_bytes(graph)[0], inputs)
    np.testing.assert_array_equal(got, many)
    [xnnpack], _ = run(content, inputs, RESOLVERS["xnnpack"])
    assert np.abs(xnnpack.astype(int) - got).max() <= 1


def test_scales_that_differ_are_not_one():
    graph = graph_of(conv)
    with pytest.raises(ValueError, match=r"'y/kernel' has scales from .* expected one for all channels"):
        as_written(graph, {"y": WeightFormat("int8", False, "", True)})


def test_a_model_of_one_scale_verifies(tmp_path):
    rules = (klb.recipes.Rule(klb.quantizers.Uniform(8, granularity="tensor")),)
    model, images = network(recipe=klb.recipes.Recipe("tensor", rules, klb.quantizers.ActivationRange()))
    report = klb.export_litert(model, tmp_path / "m.tflite", target="npu-per-tensor")
    other = klb.export_litert(model, tmp_path / "channels.tflite")
    assert report.size_bytes < other.size_bytes
    found = klb.verify(model, tmp_path / "m.tflite", images)
    assert found.ok, found
    assert found.codes_equal
    assert found.reference_equal is True
    content = (tmp_path / "m.tflite").read_bytes()
    assert LiteRTFile.of_bytes(content).tensors["conv/kernel"].scale.size == 1


def test_a_sigmoid_as_a_table_verifies(tmp_path):
    """On a range whose ties tflite-micro's fixed point breaks otherwise, the codes themselves are in the file."""
    keras.utils.set_random_seed(0)
    stack = (
        lambda: kl.Conv2D(4, 3, name="conv"),
        lambda: kl.Activation("sigmoid", name="gate"),
        lambda: kl.Dense(3, name="head"),
    )
    model, images = trained(case(*stack, shape=(9, 8, 4)))
    ends = {"conv_range/output_quantizer/minimum": -128 / 512, "conv_range/output_quantizer/maximum": 127 / 512}
    for variable in model.variables:
        if variable.path in ends:
            variable.assign(ends[variable.path])
    report = klb.export_litert(model, tmp_path / "m.tflite", target="microcontroller")
    why = "as a table: logistic of microcontroller gives other codes than LiteRT"
    assert [tuple(row) for row in report.rows if row.op == "GATHER"] == [("gate", "GATHER", "int8", 256, why)]
    operators = [operator.builtin for operator in LiteRTFile(tmp_path / "m.tflite").operators]
    assert "GATHER" in operators
    assert "LOGISTIC" not in operators
    assert klb.deploy.lower(model).tensors["conv"].range == (1 / 512, 0, "int8")
    found = klb.verify(model, tmp_path / "m.tflite", images)
    assert found.ok, found
    assert found.reference_equal is True
    klb.export_litert(model, tmp_path / "m.tflite")
    assert "LOGISTIC" in [operator.builtin for operator in LiteRTFile(tmp_path / "m.tflite").operators]
    assert klb.verify(model, tmp_path / "m.tflite", images).ok


@pytest.mark.parametrize("name", ["litert", "npu-per-tensor"])
def test_layers_of_one_channel_verify(tmp_path, name):
    """One scale is one for each channel, too."""
    keras.utils.set_random_seed(0)
    stack = (
        lambda: kl.Conv2D(1, 3, name="one"),
        lambda: kl.DepthwiseConv2D(3, name="deep"),
        lambda: kl.Dense(1, name="dense"),
    )
    model, images = trained(case(*stack, shape=(12, 12, 1)))
    klb.export_litert(model, tmp_path / "m.tflite", target=name)
    found = klb.verify(model, tmp_path / "m.tflite", images)
    assert found.ok, found
    assert found.reference_equal is True


def test_a_file_of_another_scale_is_not_the_models(tmp_path):
    """One scale for all channels is looked at, not only counted."""
    rules = (klb.recipes.Rule(klb.quantizers.Uniform(8, granularity="tensor")),)
    model, images = network(recipe=klb.recipes.Recipe("tensor", rules, klb.quantizers.ActivationRange()))
    klb.export_litert(model, tmp_path / "m.tflite", target="npu-per-tensor")
    scale = LiteRTFile(tmp_path / "m.tflite").tensors["conv/kernel"].scale
    content = bytearray((tmp_path / "m.tflite").read_bytes())
    place = content.index(scale.tobytes())
    content[place : place + 4] = (scale * np.float32(1.5)).tobytes()
    (tmp_path / "m.tflite").write_bytes(bytes(content))
    found = klb.verify(model, tmp_path / "m.tflite", images)
    assert not found.ok
    assert not found.codes_equal
