"""The files that ours are measured against."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.bench import write_peers
from keras_lowbit.deploy.litert.reader import LiteRTFile
from tests.support.lowering_zoo import ZOO, enliven, samples


def test_float_and_tensorflow_int8_stand_beside_ours(tmp_path):
    model = ZOO["conv2d"].make()
    enliven(model)
    [images] = samples(model, 8)
    files = write_peers(model, tmp_path, images)
    files.pop("ai-edge-quantizer int8", None)
    quantized, _ = klb.quantize_model(model, "int8")
    klb.calibrate(quantized, images, verbose=0)
    klb.export_litert(quantized, tmp_path / "ours.tflite")
    report = klb.bench.latency([*files.values(), tmp_path / "ours.tflite"], repeats=3)
    assert [row.path.rpartition("/")[2] for row in report.rows] == [
        "float.tflite",
        "tensorflow_int8.tflite",
        "ours.tflite",
    ]
    assert [row.batch_size for row in report.rows] == [1, 1, 1]
    kinds = [{LiteRTFile(path).tensors[name].type for name in LiteRTFile(path).inputs} for path in files.values()]
    assert kinds == [{"FLOAT32"}, {"INT8"}]


def test_ai_edge_quantizer_stands_beside_them_where_it_is_installed(tmp_path):
    pytest.importorskip("ai_edge_quantizer", reason="the extra `peers` is not installed")
    model = ZOO["conv2d"].make()
    enliven(model)
    [images] = samples(model, 8)
    file = LiteRTFile(write_peers(model, tmp_path, images)["ai-edge-quantizer int8"])
    kernels = [tensor for tensor in file.tensors.values() if len(tensor.shape) == 4 and tensor.codes is not None]
    assert kernels
    assert {tensor.type for tensor in kernels} == {"INT8"}


def test_folder_must_exist(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(FileNotFoundError, match="No folder at"):
        write_peers(model, tmp_path / "none", np.ones((2, 4), np.float32))


def sequential(called):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Flatten()], name="s")
    if called:  # only then a Sequential model has an `input`
        model(np.zeros((1, 8, 8, 3), np.float32))
    return model


def nested():
    image = keras.Input((8, 8, 3))
    return keras.Model(image, keras.layers.Dense(2)(sequential(called=False)(image)))


@pytest.mark.parametrize("make", [lambda: sequential(False), lambda: sequential(True), nested])
def test_sequential_models_have_peers_called_before_or_not(make, tmp_path):
    files = write_peers(make(), tmp_path, np.ones((2, 8, 8, 3)))
    assert list(files)[:2] == ["float", "tensorflow int8"]
    assert [tensor.shape for tensor in _inputs(files["float"])] == [(1, 8, 8, 3)]


def test_a_sequential_model_without_an_input_shape_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"no input shape yet. Add keras\.Input"):
        write_peers(keras.Sequential([keras.layers.Dense(2)]), tmp_path, np.ones((2, 4)))


def _inputs(path):
    file = LiteRTFile(path)
    return [file.tensors[name] for name in file.inputs]
