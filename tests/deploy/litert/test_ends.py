"""The ends of a file: types of inputs and outputs, names of a dict, and a batch that the interpreter sets."""

import keras
import numpy as np
import pytest
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.interpreter import Interpreter

import keras_lowbit as klb
from keras_lowbit.deploy.litert.ends import TYPES, ends_of
from keras_lowbit.deploy.reference import trace
from tests.support.lowering_zoo import ZOO, trained

L = keras.layers
DATA = np.random.default_rng(0).normal(size=(8, 12, 12, 3)).astype("float32")


def network():
    image = keras.Input((12, 12, 3), name="image")
    hidden = L.Flatten()(L.Conv2D(4, 3, strides=2, activation="relu")(image))
    answers = {
        "steer": L.Dense(2, name="d1")(hidden),
        "brake": L.Dense(2, name="d2")(hidden),
        "gas": L.Softmax(name="d3")(L.Dense(2)(hidden)),
    }
    return keras.Model(image, answers, name="car")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    quantized, _ = klb.quantize_model(network())
    klb.calibrate(quantized, DATA, verbose=0)
    return quantized


@pytest.mark.parametrize("io", [*TYPES, ("int8", "float32"), ("uint8", "float32"), {"image": "uint8", "gas": "int16"}])
def test_every_type_verifies_and_is_that_of_the_ends(model, io, tmp_path):
    klb.export_litert(model, tmp_path / "m.tflite", io=io)
    parity = klb.verify(model, tmp_path / "m.tflite", DATA)
    assert parity.ok, parity
    assert parity.reference.equal
    runner = Interpreter(str(tmp_path / "m.tflite")).get_signature_runner()
    given = io if isinstance(io, tuple) else (io, io) if isinstance(io, str) else ("uint8", "int8")
    [taken] = runner.get_input_details().values()
    assert taken["dtype"] == np.dtype(given[0])
    for name, detail in runner.get_output_details().items():
        assert detail["dtype"] == np.dtype("int16" if isinstance(io, dict) and name == "gas" else given[1])


def test_outputs_of_a_dict_have_its_keys(model, tmp_path):
    klb.export_litert(model, tmp_path / "m.tflite", io="float32")
    found = Interpreter(str(tmp_path / "m.tflite")).get_signature_runner()(image=DATA[:1])
    expected = model.predict(DATA[:1], verbose=0)
    assert set(found) == {"steer", "brake", "gas"}
    assert all(np.abs(found[name] - expected[name]).max() < 0.02 for name in found)


@pytest.mark.parametrize("io", [*TYPES, ("uint8", "float32")])
def test_an_input_that_is_also_an_output(io, tmp_path):
    image = keras.Input((4, 4, 3), name="image")
    quantized, _ = klb.quantize_model(keras.Model(image, [image, L.Conv2D(2, 1)(image)]))
    klb.calibrate(quantized, DATA[:, :4, :4], verbose=0)
    klb.export_litert(quantized, tmp_path / "m.tflite", io=io)
    assert klb.verify(quantized, tmp_path / "m.tflite", DATA[:, :4, :4]).ok


@pytest.mark.parametrize("batch_size", [1, None])
def test_outputs_that_are_one_tensor_have_a_name_and_a_buffer_each(batch_size, tmp_path):
    """CompiledModel gives each end a buffer of its own, and fills one alone of those of a tensor."""
    image = keras.Input((4, 4, 3), name="image")
    answer = L.Conv2D(2, 1, name="answer")(image)
    data, path = DATA[:, :4, :4], tmp_path / "m.tflite"
    quantized, _ = klb.quantize_model(keras.Model(image, [answer, L.Dropout(0.5)(answer), image, answer]))
    klb.calibrate(quantized, data, verbose=0)
    klb.export_litert(quantized, path, batch_size=batch_size)
    assert klb.verify(quantized, path, data).ok
    codes = np.random.default_rng(2).integers(-128, 128, (1, 4, 4, 3), np.int8)
    runner = Interpreter(str(path)).get_signature_runner()
    assert list(runner.get_output_details()) == ["answer", "answer_1", "answer_2", "image_1"]
    found = runner(image=codes)
    np.testing.assert_array_equal(found["image_1"], codes)
    for name in ("answer_1", "answer_2"):
        np.testing.assert_array_equal(found[name], found["answer"])
    compiled = CompiledModel.from_file(str(path))
    [taken], made = compiled.create_input_buffers(0), compiled.create_output_buffers(0)
    taken.write(codes)
    compiled.run_by_index(0, [taken], made)
    for name, buffer in zip(("answer", "answer_1", "image_1", "answer_2"), made, strict=True):
        np.testing.assert_array_equal(buffer.read(found[name].size, np.int8), found[name].reshape(-1), name)


@pytest.mark.parametrize("io", ["uint8", "int16"])
def test_codes_of_other_types_are_those_of_int8(model, io, tmp_path):
    """uint8: 128 more. int16: 128 times what the code stands for, in steps."""
    graph = klb.deploy.lower(model)
    klb.export_litert(model, tmp_path / "m.tflite", io=io)
    interpreter = Interpreter(str(tmp_path / "m.tflite"))
    interpreter.allocate_tensors()
    codes = np.random.default_rng(1).integers(-128, 128, (1, 12, 12, 3)).astype("int8")
    ours = trace(graph, {"image": codes})

    def outer(name, values):
        wide = values.astype(np.int32)
        return (wide + 128).astype(io) if io == "uint8" else ((wide - graph.tensors[name].zero_point) * 128).astype(io)

    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], outer("image", codes))
    interpreter.invoke()
    for name, detail in zip(graph.outputs, interpreter.get_output_details(), strict=True):
        assert np.array_equal(interpreter.get_tensor(detail["index"]), outer(name, ours[name])), name


@pytest.mark.parametrize(
    ("io", "words"),
    [
        ("int4", "io='int4': expected 'int8', 'uint8', 'int16' or 'float32'"),
        (8, r"io=8: expected a type, a pair \(inputs, outputs\), or a dict"),
        (("int8",), "expected a type, a pair"),
        ({"picture": "uint8"}, r"names \['picture'\], but the ends of the model are image"),
        ({"image": "double"}, "io='double' for 'image'"),
    ],
)
def test_other_types_and_names_are_refused(model, io, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        klb.export_litert(model, tmp_path / "m.tflite", io=io)
    assert not (tmp_path / "m.tflite").exists()


def test_names_of_the_tensors_do_too(model):
    graph = klb.deploy.lower(model)
    named = ends_of(graph, {graph.outputs[2]: "float32"})
    assert named.outputs == {graph.outputs[0]: "int8", graph.outputs[1]: "int8", graph.outputs[2]: "float32"}


OPEN = (
    "conv2d", "transpose same", "conv1d", "slice", "slice backwards", "nested", "squeeze and excite", "global average",
    "function gelu", "function gelu of what is positive", "concat unequal", "dense 3-d", "repeat", "upsample bilinear",
)  # fmt: skip


@pytest.mark.parametrize("name", [name for name in OPEN if name in ZOO])
def test_an_open_batch_is_resized_to_any(name, tmp_path):
    entry = ZOO[name]
    model, data = trained(entry)
    klb.export_litert(model, tmp_path / "m.tflite", batch_size=None)
    parity = klb.verify(model, tmp_path / "m.tflite", data)
    assert parity.ok, parity
    graph = klb.deploy.lower(model)
    interpreter = Interpreter(str(tmp_path / "m.tflite"))
    assert interpreter.get_input_details()[0]["shape_signature"][0] == -1
    for batch in (1, 3, 8, 1):
        rng, codes = np.random.default_rng(batch), {}
        for detail, source in zip(interpreter.get_input_details(), graph.inputs, strict=True):
            shape = (batch, *graph.tensors[source].shape[1:])
            interpreter.resize_tensor_input(detail["index"], shape, strict=True)
            codes[source] = rng.integers(-128, 128, shape).astype("int8")
        interpreter.allocate_tensors()
        for detail, source in zip(interpreter.get_input_details(), graph.inputs, strict=True):
            interpreter.set_tensor(detail["index"], codes[source])
        interpreter.invoke()
        ours = trace(graph, codes)
        for detail, output in zip(interpreter.get_output_details(), graph.outputs, strict=True):
            found = interpreter.get_tensor(detail["index"])
            assert found.shape == ours[output].shape
            assert np.abs(found.astype(int) - ours[output]).max() <= 1  # the optimized kernels' own step


def test_a_part_in_float_has_a_fixed_batch(tmp_path):
    model, _ = trained(ZOO["unknown layer"])
    with pytest.raises(ValueError, match="runs in float, for a batch of 1 alone: batch_size=None needs"):
        klb.export_litert(model, tmp_path / "m.tflite", batch_size=None)
