"""`skip=` means float: in Keras, in the file, and in both reports; what is connected is one float part."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.deploy.litert.file_runner import FileRunner
from keras_lowbit.keras_graph.variables import to_numpy

L = keras.layers
IMAGES = np.random.default_rng(0).uniform(0, 255, (8, 8, 8, 3)).astype("float32")


def residual():
    image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(8, 3, padding="same", name="c1")(L.Rescaling(1 / 255, name="rescale")(image))
    x = L.ReLU(name="relu")(L.BatchNormalization(name="bn")(x))
    x = L.AveragePooling2D(2, name="pool")(L.Add(name="add")([x, L.Conv2D(8, 1, name="c2")(x)]))
    return keras.Model(image, L.Dense(3, name="head")(L.GlobalAveragePooling2D(name="gap")(x)))


def nested():
    image = keras.Input((8, 8, 3), name="image")
    layers = [L.Conv2D(4, 3, name="a"), L.ReLU(name="r"), L.GlobalAveragePooling2D(name="g")]
    body = keras.Sequential([keras.Input((8, 8, 3)), *layers], name="body")
    return keras.Model(image, L.Dense(3, name="head")(body(L.Rescaling(1 / 255, name="rescale")(image))))


def quantized(make, skip):
    keras.utils.set_random_seed(0)
    model, report = klb.quantize_model(make(), "int8", skip=skip)
    klb.calibrate(model, IMAGES, verbose=0)
    return model, report


CASES = [
    *((residual, [name], [name]) for name in "rescale bn relu add pool gap c2 head".split()),
    (residual, ["image"], []),
    (residual, ["image", "rescale"], ["rescale"]),
    (residual, ["rescale", "c1", "bn", "relu"], ["rescale", "c1", "bn", "relu"]),
    (residual, ["c1", "bn", "relu", "add", "c2"], ["rescale", "c1", "bn", "relu", "c2", "add"]),
    (residual, ["gap", "head"], ["gap", "head"]),
    (nested, ["body"], ["rescale", "body/a", "body/r", "body/g"]),
    (nested, ["rescale", "body/a"], ["rescale", "body/a"]),
    (nested, ["body/r"], ["body/r"]),
    (nested, ["body/a"], ["rescale", "body/a"]),
]


NAMES = [f"{make.__name__}-{'+'.join(skip)}" for make, skip, _ in CASES]


@pytest.mark.parametrize(("make", "skip", "in_float"), CASES, ids=NAMES)
def test_what_is_skipped_runs_in_float_in_the_file_as_one_part(make, skip, in_float, tmp_path):
    model, report = quantized(make, skip)
    written = klb.export_litert(model, tmp_path / "m.tflite")
    assert [found.path for found in written.float_fallbacks] == in_float
    assert [row.path for row in report.layers if row.detail.endswith("runs in float")] == in_float
    assert set(skip) - {"image", "body"} <= set(report.outcomes("skipped"))
    graph = klb.deploy.lower(model)
    assert sum(node.op == "float_subgraph" for node in graph.nodes) == bool(in_float)
    assert klb.verify(model, tmp_path / "m.tflite", IMAGES).ok
    front = bool({"image", "rescale"} & {*skip, *in_float})
    assert graph.tensors[graph.inputs[0]].dtype == ("float32" if front else "int8")


def test_a_model_that_is_skipped_whole_is_the_float_model(tmp_path):
    keras.utils.set_random_seed(0)
    model = residual()
    copy, _ = klb.quantize_model(model, "int8", skip=[".*"])
    assert klb.calibrate(copy, IMAGES, verbose=0) == {}
    klb.export_litert(copy, tmp_path / "m.tflite")
    graph = klb.deploy.lower(copy)
    assert [node.op for node in graph.nodes] == ["float_subgraph"]
    want = to_numpy(model(IMAGES))
    np.testing.assert_array_equal(to_numpy(copy(IMAGES)), want)
    [got] = FileRunner(tmp_path / "m.tflite").run([IMAGES])
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_a_model_without_anything_for_integers_calibrates_and_exports(tmp_path):
    entry = keras.Input((4, 3), name="x")
    copy, _ = klb.quantize_model(keras.Model(entry, keras.ops.sign(entry)))
    data = np.random.default_rng(0).normal(size=(4, 4, 3)).astype("float32")
    assert klb.calibrate(copy, data, verbose=0) == {}
    report = klb.export_litert(copy, tmp_path / "m.tflite")
    assert [found.path for found in report.float_fallbacks] == ["sign"]
    assert klb.verify(copy, tmp_path / "m.tflite", data).ok


def test_a_skipped_result_is_not_rounded_in_keras_either(tmp_path):
    """Raw features of scales 1 to 10,000: their scaling in float, then one range for all."""
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(200, 5)) * [1, 10, 100, 1000, 10000]).astype("float32")
    scale = L.Normalization(name="scale")
    scale.adapt(rows)
    model = keras.Sequential([keras.Input((5,), name="raw"), scale, L.Dense(3, name="head")])
    copy, _ = klb.quantize_model(model, "int8", skip=["raw", "scale"])
    klb.calibrate(copy, rows, verbose=0)
    klb.export_litert(copy, tmp_path / "m.tflite", io="float32")
    want = to_numpy(model(rows))
    for got in (to_numpy(copy(rows)), FileRunner(tmp_path / "m.tflite").run([rows])[0]):
        assert np.abs(got - want).max() < 0.03 * np.abs(want).max()  # two 8-bit ranges and 8-bit weights


def test_the_mark_survives_saving(tmp_path):
    model, _ = quantized(residual, ["add"])
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    report = klb.export_litert(loaded, tmp_path / "m.tflite")
    assert [found.path for found in report.float_fallbacks] == ["add"]


def test_a_pattern_may_name_an_input():
    with pytest.raises(ValueError, match=r"(?s)'imag' matches no layer.*'image'"):
        klb.quantize_model(residual(), skip=["imag"])
    _, report = klb.quantize_model(residual(), skip=["image"])
    assert report["image"].detail == "input of the model; float32 in the file"
