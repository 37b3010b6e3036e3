"""Bytes of a camera go into a file of `io="uint8"` as they are, whatever the network does with them first."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType

import keras_lowbit as klb
from keras_lowbit import deploy
from keras_lowbit.deploy.reference import trace

L = keras.layers
MEAN, VARIANCE = [0.485, 0.456, 0.406], [0.229**2, 0.224**2, 0.225**2]
FRONTS = {  # the operators that prepare the pixels
    "a share": (lambda x: L.Rescaling(1 / 255)(x), []),
    "around zero": (lambda x: L.Rescaling(1 / 127.5, offset=-1)(x), ["depthwise_conv2d"]),
    "arithmetic": (lambda x: x / 127.5 - 1.0, ["depthwise_conv2d"]),
    "torch": (lambda x: L.Normalization(mean=MEAN, variance=VARIANCE)(L.Rescaling(1 / 255)(x)), ["depthwise_conv2d"]),
    "caffe": (lambda x: x[..., ::-1] - np.array([103.9, 116.8, 123.7], "float32"), ["gather", "depthwise_conv2d"]),
}
DARK = np.random.default_rng(0).integers(3, 180, (16, 8, 8, 3)).astype("float32")  # no image reaches 0 or 255


@pytest.fixture(scope="module", params=FRONTS)
def network(request):
    keras.utils.set_random_seed(0)
    front, operations = FRONTS[request.param]
    image = keras.Input((8, 8, 3), name="image")
    hidden = L.Conv2D(4, 3, padding="same", activation="relu", name="conv")(front(image))
    quantized, _ = klb.quantize_model(keras.Model(image, L.Dense(3)(L.Flatten()(hidden))))
    klb.calibrate(quantized, DARK, verbose=0)
    return quantized, operations


def test_bytes_are_codes(network, tmp_path):
    model, _ = network
    klb.export_litert(model, tmp_path / "m.tflite", io=("uint8", "float32"))
    interpreter = Interpreter(str(tmp_path / "m.tflite"), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    [taken], [made] = interpreter.get_input_details(), interpreter.get_output_details()
    assert taken["dtype"] == np.uint8
    assert taken["quantization"] == (1.0, 0)
    pixels = np.random.default_rng(1).integers(0, 256, (1, 8, 8, 3), np.uint8)
    interpreter.set_tensor(taken["index"], pixels)
    interpreter.invoke()
    step = deploy.lower(model).tensors[deploy.lower(model).outputs[0]].range.scale
    expected = model.predict(pixels.astype("float32"), verbose=0)
    assert np.abs(interpreter.get_tensor(made["index"]) - expected).max() <= 1.01 * step


def test_the_front_is_one_operation_or_none(network):
    model, operations = network
    ops = [node.op for node in deploy.lower(model).nodes]
    assert ops[: ops.index("conv2d")] == operations


@pytest.mark.parametrize("io", ["uint8", "float32"])
def test_file_reference_and_keras_agree(network, io, tmp_path):
    model, _ = network
    klb.export_litert(model, tmp_path / "m.tflite", io=io)
    parity = klb.verify(model, tmp_path / "m.tflite", DARK)
    assert parity.ok, parity
    assert parity.reference.equal
    assert all(layer.max_steps <= 1 for layer in parity.layers)


def test_a_share_that_others_read_too_is_computed_for_them():
    image = keras.Input((8, 8, 3), name="image")
    share = L.Rescaling(1 / 255, name="share")(image)
    conv = L.Conv2D(3, 3, padding="same", name="conv")(share)
    model, _ = klb.quantize_model(keras.Model(image, [L.Add(name="sum")([conv, share]), L.MaxPooling2D()(share)]))
    klb.calibrate(model, DARK, verbose=0)
    graph = deploy.lower(model)
    reads = {node.name: node.inputs[0] for node in graph.nodes}
    assert reads["conv"] == "image"
    assert reads["sum"] == "conv"
    assert [node.name for node in graph.nodes if node.op == "depthwise_conv2d"] == ["share"]
    keras_sum = model.predict(DARK, verbose=0)[0]
    codes, grid = deploy.run_reference(graph, DARK)[0], graph.tensors["sum"].range
    ours = grid.scale * (codes.astype(np.float64) - grid.zero_point)
    assert np.abs(ours - keras_sum).max() <= 1.01 * grid.scale


def nested_fronts(x):
    fronts = (L.Rescaling(1 / 255), L.Rescaling(1 / 127.5, offset=-1))
    return [keras.Sequential([keras.Input((8, 8, 3)), front])(x) for front in fronts]


def forked(x):
    share = x / 127.5
    return [share, L.Rescaling(1.0, offset=-1)(share)]


TWO_FRONTS = {
    "beside each other": lambda x: [x / 255.0, L.Rescaling(1 / 127.5, offset=-1)(x)],
    "behind a flip": lambda x: TWO_FRONTS["beside each other"](x[..., ::-1]),
    "in models of their own": nested_fronts,
    "one behind the other": forked,
    "and the pixels themselves": lambda x: [L.ZeroPadding2D(1)(x), *TWO_FRONTS["beside each other"](x)],
}


OF_BYTES = [("beside each other", "uint8"), ("in models of their own", "uint8")]


@pytest.mark.parametrize(("fronts", "dtype"), [*((name, "float32") for name in TWO_FRONTS), *OF_BYTES])
def test_each_way_to_prepare_pixels_keeps_them_apart(fronts, dtype, tmp_path):
    """Each of the 256 has a code, whoever else reads them; the range of dark images would leave them halfway between two."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), dtype=dtype, name="image")
    heads = [L.Conv2D(2, 3, name=f"head_{i}")(made) for i, made in enumerate(TWO_FRONTS[fronts](image))]
    model, _ = klb.quantize_model(keras.Model(image, heads))
    klb.calibrate(model, DARK.astype(dtype), verbose=0)
    graph = deploy.lower(model)
    [taken] = [graph.tensors[name] for name in graph.inputs]
    assert (float(taken.scale), taken.zero_point) == (1.0, -128)
    [signed] = [node.inputs[0] for node in graph.nodes if node.name == f"head_{len(heads) - 1}"]
    grid = graph.tensors[signed]
    codes = np.arange(-128, 128, dtype=np.int8).repeat(3).reshape(4, 8, 8, 3)
    made = trace(graph, {"image": codes})[signed].astype(np.float64)
    real = float(grid.scale) * (made - grid.zero_point)
    expected = (codes.astype(np.float64) + 128) / 127.5 - 1
    assert np.abs(real - expected).max() <= 1.01 * float(grid.scale)
    assert np.all(np.diff(made[..., 0].reshape(-1)) >= 0)
    klb.export_litert(model, tmp_path / "m.tflite", io=("uint8", "float32"))
    parity = klb.verify(model, tmp_path / "m.tflite", PIXELS.astype(dtype))
    assert parity.ok, parity
    assert parity.reference.equal
    assert min(layer.exact for layer in parity.layers) > 0.9


def of_bytes(front):
    image = keras.Input((8, 8, 3), dtype="uint8", name="image")
    return keras.Model(image, L.Conv2D(2, 3, name="conv")(front(image)))


PIXELS = np.random.default_rng(2).integers(0, 256, (8, 8, 8, 3), np.uint8)
READERS = {
    "rescaling": L.Rescaling(1 / 255, name="front"),
    "a cast": lambda x: keras.ops.cast(x, "float32") / 255.0,
    "arithmetic": lambda x: x / 255.0,
    "a root": lambda x: keras.ops.sqrt(keras.ops.cast(x, "float32")),
    "a nested model": lambda x: keras.Sequential([keras.Input((8, 8, 3)), L.Rescaling(1 / 255)])(x),
}


@pytest.mark.parametrize("front", READERS.values(), ids=READERS)
def test_an_input_of_uint8_is_one_of_the_file(front, tmp_path):
    model, _ = klb.quantize_model(of_bytes(front))
    klb.calibrate(model, PIXELS[:, :4].repeat(2, 1) // 2, verbose=0)
    assert klb.export_litert(model, tmp_path / "m.tflite").float_fallbacks == ()
    interpreter = Interpreter(str(tmp_path / "m.tflite"), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    [taken], [made] = interpreter.get_input_details(), interpreter.get_output_details()
    assert (taken["dtype"], taken["quantization"]) == (np.uint8, (1.0, 0))
    interpreter.set_tensor(taken["index"], PIXELS[:1])
    interpreter.invoke()
    graph = deploy.lower(model)
    codes = deploy.run_reference(graph, PIXELS)
    np.testing.assert_array_equal(interpreter.get_tensor(made["index"]), codes[:1])
    np.testing.assert_array_equal(deploy.Runtime(graph)(PIXELS), codes)
    assert klb.verify(model, tmp_path / "m.tflite", PIXELS).ok


def test_bytes_are_no_reals_where_they_are_ids_or_have_16_bits():
    ids = keras.Input((6,), dtype="uint8", name="ids")
    model, report = klb.quantize_model(keras.Model(ids, L.Dense(2)(L.Embedding(9, 4, name="table")(ids))))
    assert "its ids are uint8 values" in report["table"].detail
    assert model.inputs[0].dtype == "uint8"
    _, report = klb.quantize_model(of_bytes(L.Rescaling(1 / 255)), "int16x8")
    assert report["image_pixels"].detail == "LiteRT has no kernel that makes 16-bit codes of bytes; runs in float"


def test_bytes_for_other_codes_are_refused():
    builder = deploy.GraphBuilder()
    graph = builder.build([builder.relu(builder.input("x", (3,), range=deploy.Range(0.5)), deploy.Range(0.5), "y")])
    for run in (deploy.run_reference, lambda graph, data: deploy.Runtime(graph)(data)):
        with pytest.raises(TypeError, match="input 'x' is uint8; expected int8"):
            run(graph, np.zeros((1, 3), np.uint8))
