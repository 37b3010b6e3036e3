"""target="microcontroller": tflite-micro's interpreter gives the codes of LiteRT's reference kernels, on every element.

Skipped where tflite-micro is not installed (`make phone-libraries`). What it computes otherwise is what the target leaves out:
the last tests hold that this list is true.
"""

import warnings

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import keras_lowbit as klb
from keras_lowbit.deploy.graph import GraphBuilder, Range
from keras_lowbit.deploy.interpreters import make_interpreter
from keras_lowbit.deploy.litert.fixed_point import tables
from keras_lowbit.deploy.litert.format_choice import plan_formats
from keras_lowbit.deploy.litert.reader import LiteRTFile
from keras_lowbit.deploy.litert.target import named_target
from keras_lowbit.deploy.litert.target_check import misfits
from keras_lowbit.deploy.litert.weight_formats import as_written
from keras_lowbit.deploy.litert.writer import to_bytes
from keras_lowbit.deploy.reference.interpreter import trace
from keras_lowbit.numerics.requantization import quantize_multiplier, requantize
from tests.support.litert_cases import GRID, OPERATIONS, OUT, biases, codes, graph_of, scales
from tests.support.lowering_zoo import ZOO, enliven, trained
from tests.support.phone import interpreter_of, run_micro
from tests.support.random_graphs import random_graph

MICRO = named_target("microcontroller")
TYPES = {"INT8": np.int8, "UINT8": np.uint8, "INT16": np.int16, "INT32": np.int32, "BOOL": np.bool_}


def random_inputs(content, seed=0):
    """Codes for a file, in its order: of its types, 16-bit ones from half the range (the QUANTIZE behind them saturates)."""
    file, random = LiteRTFile.of_bytes(content), np.random.default_rng(seed)
    found = []
    for tensor in (file.tensors[name] for name in file.inputs):
        kind = TYPES[tensor.type]
        low, high = (0, 2) if kind in (np.int32, np.bool_) else (np.iinfo(kind).min, np.iinfo(kind).max + 1)
        found.append(random.integers(low, high, tensor.shape).astype(kind))
    return found


def litert_reference(content, inputs):
    """What LiteRT's reference kernels make of a file."""
    interpreter = make_interpreter("reference", model_content=content)
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def different(found, expected):
    """How many elements are; or the reason why nothing ran."""
    if isinstance(found, str):
        return found
    pairs = zip(found, expected, strict=True)
    return sum(int(np.count_nonzero(mine.reshape(other.shape) != other)) for mine, other in pairs)


def graph_file(graph, weights="int8"):
    """(bytes, graph in it) of a graph for the microcontroller; None where that does not take it."""
    content, _ = to_bytes(graph, weights=weights, target=MICRO)
    if misfits(content, graph, MICRO):
        return None
    return content, as_written(graph, plan_formats(graph, weights, MICRO))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Name -> (what tflite-micro makes of the model's file, what LiteRT's reference kernels do), and name -> refusal."""
    interpreter_of("tflite-micro")
    folder, files, refused = tmp_path_factory.mktemp("micro"), {}, {}
    for name, case in ZOO.items():
        keras.backend.clear_session()
        keras.utils.set_random_seed(7)
        model, _ = trained(case)
        try:
            klb.export_litert(
                model, folder / "m.tflite", target="microcontroller", weights="int4", input_shapes=case.input_shapes
            )
        except ValueError as error:
            refused[name] = str(error)
            continue
        content = (folder / "m.tflite").read_bytes()
        files[name] = content, random_inputs(content), len(LiteRTFile.of_bytes(content).outputs)
    found = run_micro(files, folder)
    return {n: (found[n], litert_reference(*files[n][:2])) for n in files}, refused


@pytest.mark.slow
def test_every_model_of_the_zoo_has_the_codes_of_litert(zoo):
    ran, _ = zoo
    assert len(ran) > 60
    wrong = {name: count for name, pair in ran.items() if (count := different(*pair))}
    assert not wrong


@pytest.mark.slow
def test_what_the_zoo_holds_back_runs_in_float_or_is_left_out(zoo):
    _, refused = zoo
    largest = {"the largest alone", "the largest and their places", "places of the largest alone"}
    left_out = {"activation relu6", "lstm as one operator", *largest}
    assert {name for name in refused if not ZOO[name].float_fallbacks} == left_out
    assert all("TOPK_V2 is no operator of microcontroller" in refused[name] for name in largest)
    assert "RELU6 has an output of another range than its input" in refused["activation relu6"]


APPLICATIONS = {
    "MobileNetV2": {"alpha": 0.35, "input_shape": (64, 64, 3)},
    "MobileNetV3Small": {"alpha": 0.75, "input_shape": (64, 64, 3)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_whole_networks_have_the_codes_of_litert(tmp_path, name):
    python = interpreter_of("tflite-micro")
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, include_top=False, **APPLICATIONS[name])
    enliven(model)
    quantized, _ = klb.quantize_model(model, "int8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the weights are random: the data fit no batch norm
        klb.calibrate(quantized, np.random.default_rng(0).uniform(0, 255, (8, 64, 64, 3)).astype("float32"), verbose=0)
    klb.export_litert(quantized, tmp_path / "m.tflite", target="microcontroller")
    content = (tmp_path / "m.tflite").read_bytes()
    inputs = random_inputs(content)
    [found] = run_micro({name: (content, inputs, 1)}, tmp_path).values()
    assert different(found, litert_reference(content, inputs)) == 0
    assert len(np.unique(found[0])) > 50
    assert 64 * 64 * 3 < klb.deploy.arena_bytes(tmp_path / "m.tflite", python=python) < len(content)


def inputs_of(graph, seed=0):
    shapes = {name: graph.tensors[name].static_shape(1) for name in graph.inputs}
    return {name: codes(*shape, low=-128, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}


def run_graphs(files, folder, litert=None):
    """Name -> differing elements. files: name -> (bytes, the graph in them, inputs by name)."""
    given = {n: (content, list(x.values()), len(graph.outputs)) for n, (content, graph, x) in files.items()}
    found = run_micro(given, folder)
    traces = {name: trace(graph, inputs, litert) for name, (_, graph, inputs) in files.items()}
    return {
        name: different(found[name], [traces[name][output] for output in graph.outputs])
        for name, (_, graph, _) in files.items()
    }


def ties(graph, node):
    """Whether a product of tensors often falls between two codes: the last bit of its factor then decides (see below)."""
    if node.op not in ("mul", "batch_matmul"):
        return False
    first, second, out = (graph.tensors[name].range.scale for name in (*node.inputs, *node.outputs))
    few_bits = np.frexp(first * second / out)[0] * 2**10
    return abs(few_bits - np.round(few_bits)) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("activations", "examples", "least"), [("int8", 250, 120), ("int16", 400, 60)])
def test_random_graphs_have_the_codes_of_the_reference(tmp_path, activations, examples, least):
    interpreter_of("tflite-micro")
    files, taken = {}, set()

    @settings(
        max_examples=examples,
        phases=[Phase.generate],
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def draw(data):
        graph, inputs, weights = random_graph(data.draw, codes=activations)
        found = (
            None
            if any(node.op == "float_subgraph" or ties(graph, node) for node in graph.nodes)
            else graph_file(graph, weights)
        )
        if found:
            files[len(files)] = *found, {name: value[:1] for name, value in inputs.items()}
            taken.update(node.op for node in found[1].nodes)

    draw()
    assert len(files) > least
    assert len(taken) > 15
    wrong = {name: count for name, count in run_graphs(files, tmp_path, "2.3").items() if count}
    assert not wrong


def test_every_operation_has_the_codes_of_the_reference_or_is_left_out(tmp_path):
    interpreter_of("tflite-micro")
    graphs = {name: graph_of(make) for name, make in OPERATIONS.items()}
    files = {name: graph_file(graph) for name, graph in graphs.items()}
    assert {name for name, file in files.items() if file is None} == {"relu6", "dequantize"}
    taken = {name: (*file, inputs_of(graphs[name])) for name, file in files.items() if file is not None}
    wrong = {name: count for name, count in run_graphs(taken, tmp_path, "2.3").items() if count}
    assert set(wrong) == {"mul up"}  # a tie, see below
    assert run_graphs({"mul up": taken["mul up"]}, tmp_path, "2.4") == {"mul up": 0}


def test_factors_of_products_are_in_double(tmp_path):
    """Of tensors; LiteRT has them so from 2.4 on, before in float32. It matters where results fall just between two codes."""
    interpreter_of("tflite-micro")
    one, two = Range(0.3460347, 0), Range(30.653444, -80)  # in float32 the factor is 1/256
    how = {"transpose_a": True, "transpose_b": False}
    builder = GraphBuilder()
    x = builder.input("x", (16, 60), range=one)
    graph = builder.build([builder.operation("batch_matmul", (x, x), "y", two, how)])
    content, _ = graph_file(graph)
    x = codes(1, 16, 60, low=-20, high=20)
    [[found]] = run_micro({"m": (content, [x], 1)}, tmp_path).values()
    sums = np.einsum("bki,bkj->bij", x.astype(int), x.astype(int))
    factor = np.float64(np.float32(one.scale)) ** 2 / np.float64(np.float32(two.scale))
    np.testing.assert_array_equal(found, requantize(sums, quantize_multiplier(factor), two.zero_point))
    assert (found != trace(graph, {"x": x}, "2.3")["y"]).any()


def weighted(op, shape, low=-8, high=7, **arguments):
    """A layer of codes that fit four bits."""
    channels = shape[-1] * (shape[-2] if op == "depthwise_conv2d" else 1)
    image = (7, 9, shape[-2] * arguments.get("groups", 1))
    kernel = codes(*shape, low=low, high=high)
    layer = (kernel, scales(channels) * 10, biases(channels), OUT, "y")
    return graph_of(
        lambda b: getattr(b, op)("x", *layer, **arguments), image if op != "fully_connected" else (37, shape[0])
    )


LAYERS = {
    "conv2d": ("conv2d", (3, 3, 8, 5), {"strides": (2, 1), "padding": "same", "activation": "relu"}),
    "conv2d dilation": ("conv2d", (3, 3, 7, 4), {"dilation": (2, 3)}),
    "conv2d groups": ("conv2d", (3, 3, 4, 6), {"groups": 2}),
    "depthwise": ("depthwise_conv2d", (3, 3, 8, 2), {"padding": "same"}),
    "dense": ("fully_connected", (9, 64), {"activation": "relu6"}),
}


def test_int4_weights_have_the_codes_of_the_reference(tmp_path):
    interpreter_of("tflite-micro")
    files = {}
    for name, (op, shape, arguments) in LAYERS.items():
        graph = weighted(op, shape, **arguments)
        _, [row] = to_bytes(graph, weights="int4", target=MICRO)
        assert row[1:3] == ("DEPTHWISE_CONV_2D" if op == "depthwise_conv2d" else "CONV_2D", "int4")
        files[name] = *graph_file(graph, "int4"), inputs_of(graph)
    assert set(run_graphs(files, tmp_path).values()) == {0}


@pytest.mark.parametrize("io", ["uint8", "int16", ("uint8", "int16")])
def test_ends_of_other_types(tmp_path, io):
    interpreter_of("tflite-micro")
    content, _ = to_bytes(weighted("conv2d", (3, 3, 8, 5)), io=io, target=MICRO)
    assert misfits(content, weighted("conv2d", (3, 3, 8, 5)), MICRO) == ()
    inputs = random_inputs(content)
    found = run_micro({"m": (content, inputs, 1)}, tmp_path)
    assert different(found["m"], litert_reference(content, inputs)) == 0


# ------------------------------------------------------------------------------------ what is left out, and why


def test_its_dense_layers_round_otherwise(tmp_path):
    """A tflite-micro that rounds as LiteRT does should be noticed: the target then takes FULLY_CONNECTED."""
    interpreter_of("tflite-micro")
    graph = weighted("fully_connected", (10, 64), -127, 127)
    content, [row] = to_bytes(graph)
    assert row.op == "FULLY_CONNECTED"
    assert [each.operation for each in misfits(content, graph, MICRO)] == ["FULLY_CONNECTED"]
    inputs = list(inputs_of(graph).values())
    [found] = run_micro({"m": (content, inputs, 1)}, tmp_path).values()
    expected = litert_reference(content, inputs)
    assert 0 < different(found, expected) < 40  # of 2,368
    assert np.abs(found[0].astype(int) - expected[0]).max() == 1


def test_its_dense_layers_take_no_int4(tmp_path):
    interpreter_of("tflite-micro")
    graph = weighted("fully_connected", (10, 64))
    content, [row] = to_bytes(graph, weights="int4")
    assert row[1:3] == ("FULLY_CONNECTED", "int4")
    [found] = run_micro({"m": (content, list(inputs_of(graph).values()), 1)}, tmp_path).values()
    assert "failed to allocate tensors" in found


SIGMOIDS = [
    (op, 2.0**-power, zero_point)
    for op in ("logistic", "tanh")
    for power, zero_point in enumerate(range(-128, 128, 20))
]
SIGMOIDS += [(op, 0.37 / 1.31**place, 7 * place - 90) for op in ("logistic", "tanh") for place in range(20)]
ALL = np.arange(-128, 128).astype(np.int8).reshape(1, 16, 16, 1)


def curve(op, scale, zero_point):
    builder = GraphBuilder()
    x = builder.input("x", (16, 16, 1), range=Range(float(np.float32(scale)), zero_point))
    return builder.build([getattr(builder, op)(x, "y")])


def test_its_sigmoid_and_tanh_are_known(tmp_path):
    """In fixed point; a tie may go the other way than in LiteRT: such a layer is written as a table of its codes."""
    interpreter_of("tflite-micro")
    graphs = [curve(*case) for case in SIGMOIDS]
    files = {place: (to_bytes(graph)[0], [ALL], 1) for place, graph in enumerate(graphs)}
    other = {}
    for place, [found] in run_micro(files, tmp_path).items():
        op, *_ = SIGMOIDS[place]
        litert, own = tables(op, graphs[place].tensors["x"].range)
        np.testing.assert_array_equal(found.reshape(-1), own, err_msg=str(SIGMOIDS[place]))
        np.testing.assert_array_equal(litert_reference(files[place][0], [ALL])[0].reshape(-1), litert)
        other[place] = int((litert != own).sum())
    assert {SIGMOIDS[place][0] for place in other if other[place]} == {"logistic", "tanh"}
    assert sum(count > 0 for count in other.values()) < len(other) / 2
    written = {place: (*graph_file(graph), {"x": ALL}) for place, graph in enumerate(graphs)}
    for place, (_, graph, _) in written.items():
        assert [node.op for node in graph.nodes] == ["table" if other[place] else SIGMOIDS[place][0]]
        wrong = misfits(files[place][0], graphs[place], MICRO)
        assert [misfit.problem for misfit in wrong] == (
            [f"gives {other[place]} of the 256 codes otherwise than LiteRT"] if other[place] else []
        )
    assert set(run_graphs(written, tmp_path).values()) == {0}


def test_its_relu6_keeps_the_range_of_its_input(tmp_path):
    interpreter_of("tflite-micro")
    graph = graph_of(lambda b: b.relu6("x", OUT, "y"))
    same = graph_of(lambda b: b.relu6("x", GRID, "y"))
    content, inputs = to_bytes(graph)[0], inputs_of(graph)
    [found] = run_micro({"m": (content, list(inputs.values()), 1)}, tmp_path).values()
    assert different(found, litert_reference(content, inputs.values())) > 100
    assert run_graphs({"m": (*graph_file(same), inputs)}, tmp_path) == {"m": 0}


def test_its_lstm_looks_its_functions_up(tmp_path):
    """Sums, cell and state are LiteRT's; the gates are nearer to the functions, which shows in some codes."""
    interpreter_of("tflite-micro")
    random, builder = np.random.default_rng(4), GraphBuilder()
    kernel, recurrent = (random.integers(-127, 128, (4, 16, size), np.int8) for size in (6, 16))
    scales = np.full(4, 0.004, np.float32), np.full(4, 0.003, np.float32)
    x = builder.input("x", (40, 6), range=Range(0.02, 5))
    y = builder.lstm(x, kernel, scales[0], recurrent, scales[1], None, Range(1 / 128, 3), "y", 2)
    graph = builder.build([y])
    content, inputs = to_bytes(graph)[0], list(inputs_of(graph).values())
    [misfit] = misfits(content, graph, MICRO)
    assert misfit.operation == "UNIDIRECTIONAL_SEQUENCE_LSTM"
    assert "some codes differ by a step" in str(misfit)
    [found] = run_micro({"m": (content, inputs, 1)}, tmp_path).values()
    expected = litert_reference(content, inputs)
    assert 0 < different(found, expected) < 40  # of 640
    assert np.abs(found[0].astype(int) - expected[0]).max() == 1


# ------------------------------------------------------------------------------------------------ arena


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("arena") / "m.tflite"
    path.write_bytes(to_bytes(weighted("conv2d", (3, 3, 8, 16)), target=MICRO)[0])
    return path


def test_arena_holds_the_activations_and_no_weights(file, tmp_path):
    python = interpreter_of("tflite-micro")
    activations = 7 * 9 * 8 + 5 * 7 * 16
    found = klb.deploy.arena_bytes(file, python=python)
    assert activations <= found < activations + 3000
    wide = tmp_path / "wide.tflite"
    wide.write_bytes(to_bytes(graph_of(lambda b: b.max_pool2d("x", "y", (2, 2)), (100, 100, 8)), target=MICRO)[0])
    assert klb.deploy.arena_bytes(wide, python=python) >= 100 * 100 * 8 + 50 * 50 * 8


def test_a_file_that_tflite_micro_does_not_run(tmp_path):
    python = interpreter_of("tflite-micro")
    path = tmp_path / "m.tflite"
    path.write_bytes(to_bytes(weighted("fully_connected", (10, 4)), weights="int4")[0])
    with pytest.raises(ValueError, match=r"(?s)does not run .*m\.tflite.*Export it with target='microcontroller'"):
        klb.deploy.arena_bytes(path, python=python)


def test_arena_without_tflite_micro(file, tmp_path):
    with pytest.raises(ImportError, match=r"tflite-micro is not installed .* pip install tflite-micro"):
        klb.deploy.arena_bytes(file)
    with pytest.raises(FileNotFoundError, match=r"none\.tflite"):
        klb.deploy.arena_bytes(tmp_path / "none.tflite")
