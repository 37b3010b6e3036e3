"""`export_litert`: containers, table, metadata, and what it refuses; an older file survives every failure."""

import os
import stat
import sys

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.deploy.interpreters import make_interpreter
from keras_lowbit.deploy.litert import writer as litert
from keras_lowbit.deploy.litert.format_choice import LatencyTable, LayerLatency
from keras_lowbit.deploy.litert.reader import LiteRTFile
from tests.support.lowering_zoo import ZOO, case, trained

kl = keras.layers


@pytest.fixture(scope="module")
def classifier():
    """A ternary network whose layers differ in what they can be packed into."""
    keras.utils.set_random_seed(0)
    return trained(
        case(
            lambda: kl.Conv2D(16, 3, name="spatial"),
            lambda: kl.Conv2D(24, 1, name="pointwise"),
            lambda: kl.Conv2D(8, 1, strides=2, name="strided"),
            lambda: kl.GlobalAveragePooling2D(),
            lambda: kl.Dense(6, name="head"),
            recipe="twn",
            shape=(12, 12, 3),
        )
    )


def types(path):
    return {n.removesuffix("/kernel"): t.type for n, t in LiteRTFile(path).tensors.items() if n.endswith("/kernel")}


def table(tmp_path, convolution=None, **times):
    """A table of two rows: a dense layer and 100 pixels. convolution: another, the time of INT4 in a CONV_2D."""
    rows = [LayerLatency(pixels, 16, 16, **{"int8": 1.0, "int4": 1.0, "int2": 1.0, **times}) for pixels in (1, 100)]
    rows += [LayerLatency(100, 3, 16, 1.0, convolution, op="CONV_2D", taps=9)] if convolution else []
    (tmp_path / "speed.json").write_text(LatencyTable(tuple(rows), {"cpu": "test"}).to_json())
    return tmp_path / "speed.json"


@pytest.mark.parametrize(
    ("times", "packed"),
    [({}, "INT2"), ({"int2": 1.2}, "INT4"), ({"int2": 1.2, "int4": 1.2}, "INT8"), ({"int4": 1.2}, "INT2")],
)
def test_auto_takes_the_smallest_that_is_no_slower(classifier, tmp_path, times, packed):
    model, images = classifier
    report = klb.export_litert(model, tmp_path / "m.tflite", weights=LatencyTable.load(table(tmp_path, **times)))
    found = types(tmp_path / "m.tflite")
    assert (found["pointwise"], found["spatial"], found["strided"]) == (packed, "INT8", "INT8")
    assert "measured at 100 x 16 -> 16" in str(report)
    assert "not int4: the time of CONV_2D with int4 weights is in no row of the table" in str(report)
    assert klb.verify(model, tmp_path / "m.tflite", images).ok


@pytest.mark.parametrize(("time", "packed"), [(1.0, "INT4"), (3.0, "INT8")])
def test_auto_packs_a_convolution_where_that_is_no_slower(classifier, tmp_path, time, packed):
    model, images = classifier
    latencies = LatencyTable.load(table(tmp_path, convolution=time))
    report = klb.export_litert(model, tmp_path / "m.tflite", weights=latencies)
    assert types(tmp_path / "m.tflite")["spatial"] == packed
    why = f"{time:.2f} times the time of int8 (XNNPACK leaves it to the built-in kernel), measured at 100 x 3 -> 16, 9 taps"
    assert next(row.why for row in report.rows if row.name == "spatial").endswith(why)
    assert klb.verify(model, tmp_path / "m.tflite", images).ok


def test_int4_convolutions_verify_to_the_bit(classifier, tmp_path):
    model, images = classifier
    report = klb.export_litert(model, tmp_path / "m.tflite", weights="int4")
    assert {row.name: (row.op, row.weight_type) for row in report.rows} == {
        "spatial": ("CONV_2D", "int4"),
        "pointwise": ("FULLY_CONNECTED", "int4"),
        "strided": ("CONV_2D", "int4"),
        "head": ("FULLY_CONNECTED", "int4"),
    }
    assert "times the time of int8 (XNNPACK leaves it to the built-in kernel)" in str(report)
    found = klb.verify(model, tmp_path / "m.tflite", images)
    assert found.ok, found
    assert found.reference_equal is True


def test_auto_looks_at_the_nearest_shape(classifier, tmp_path):
    model, _ = classifier
    rows = (LayerLatency(1, 8, 8, 1.0, 1.0, 0.5), LayerLatency(100, 16, 16, 1.0, 2.0, 2.0))
    (tmp_path / "t.json").write_text(LatencyTable(rows, {}).to_json())
    klb.export_litert(model, tmp_path / "m.tflite", weights=LatencyTable.load(tmp_path / "t.json"))
    found = types(tmp_path / "m.tflite")
    assert found["pointwise"] == "INT8"
    assert found["head"] in ("INT2", "INT4")  # INT4 where codes were doubled for the bias's sake


def test_the_shipped_table_is_sound_and_is_the_default(classifier, tmp_path):
    found = LatencyTable.load()
    assert len(found.rows) > 10
    assert {row.pixels == 1 for row in found.rows} == {True, False}
    assert found.machine["cpu"]
    assert found.machine["ai-edge-litert"].startswith("2.")
    model, _ = classifier
    report = klb.export_litert(model, tmp_path / "m.tflite", weights="auto")
    assert report.size_bytes <= klb.export_litert(model, tmp_path / "8.tflite").size_bytes
    assert klb.summary(model, weights="auto").file_bytes == report.size_bytes


def test_sizes_fall_with_bits_and_the_output_stays(classifier, tmp_path):
    model, images = classifier
    from keras_lowbit.deploy.litert.file_runner import FileRunner

    sizes, outputs = [], []
    for weights in ("int8", "int4", "int2"):
        report = klb.export_litert(model, tmp_path / f"{weights}.tflite", weights=weights)
        rows = {row.name: row for row in report.rows}
        sizes.append(rows["pointwise"].weight_bytes)
        runner = FileRunner(tmp_path / f"{weights}.tflite", reference=True, spare_reference=True)
        outputs.append(runner.run([images])[0])
        assert report.size_bytes == (tmp_path / f"{weights}.tflite").stat().st_size
        whole = (tmp_path / "int8.tflite").stat().st_size
        assert report.int8_size_bytes == (None if weights == "int8" else whole)
        assert (f"bytes ({whole:,} with int8 weights), 4 layers" in str(report)) == (weights != "int8")
    assert sizes == [16 * 24, 16 * 24 // 2, 16 * 24 // 4]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no latency table"),
        ("{}", "format_version"),
        ("[" * 5000, "is no latency table"),
        ("[1]", "is no latency table"),
        ("NaN", "no number of JSON"),
        ('{"format_version": 1, "machine": 3, "rows": [3]}', "is no latency table"),
        ('{"format_version": 9}', "format version 9, expected 1"),
        ('{"format_version": 1, "machine": {}, "rows": []}', "numbers above 0"),
        ('{"format_version": 1, "machine": {}, "rows": [{"pixels": 1}]}', "missing"),
    ],
)
def test_bad_table(classifier, tmp_path, content, message):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(ValueError, match=f"(?s){message}.*keras-lowbit bench packed"):
        klb.export_litert(classifier[0], tmp_path / "m.tflite", weights=LatencyTable.load(tmp_path / "t.json"))
    with pytest.raises(FileNotFoundError, match=r"No latency table at .*none\.json"):
        klb.export_litert(classifier[0], tmp_path / "m.tflite", weights=LatencyTable.load(tmp_path / "none.json"))
    assert not (tmp_path / "m.tflite").exists()


# ------------------------------------------------------------------------------------------------ metadata


def test_metadata_names_labels_normalization_recipe_version(classifier, tmp_path):
    labels = [f"class {i}" for i in range(6)]
    klb.export_litert(
        classifier[0], tmp_path / "m.tflite", labels=labels, normalization=([127.0, 128.0, 129.0], 25.0), io="float32"
    )
    about = litert.read_metadata(tmp_path / "m.tflite")
    assert about["labels"] == labels
    assert about["normalization"] == {"mean": [127.0, 128.0, 129.0], "std": [25.0]}
    assert about["keras_lowbit"] == klb.__version__
    assert about["name"] == "m"
    assert about["quantizers"]["pointwise"]["name"] == "ternary"
    signature = make_interpreter("xnnpack", model_path=str(tmp_path / "m.tflite")).get_signature_list()
    assert signature == {"serving_default": {"inputs": ["x"], "outputs": ["head"]}}


@pytest.fixture(scope="module")
def minus_one_to_one():
    """A network whose images were calibrated to -1..1."""
    x = keras.Input((4, 4, 3), name="image")
    model, _ = klb.quantize_model(keras.Model(x, kl.Conv2D(2, 1, name="conv")(x)), "int8")
    klb.calibrate(model, np.linspace(-1.0, 1.0, 2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3), verbose=0)
    return model


@pytest.mark.parametrize(
    "normalization", [(127.5, 127.5), ([127.5, 127.5, 127.5], [127.5, 130.0, 127.5]), (127.5, 110.0), (127.5, 200.0)]
)
def test_a_normalization_that_fits_the_calibrated_range(minus_one_to_one, tmp_path, normalization):
    klb.export_litert(minus_one_to_one, tmp_path / "m.tflite", normalization=normalization)  # warnings are errors


@pytest.mark.parametrize(
    ("normalization", "low", "high"),
    [
        ((0.0, 1.0), "0", "255"),  # pixels as they are
        ((127.5, 64.0), "-1.99", "1.99"),  # both ends are clipped
        ((0.0, 150.0), "0", "1.7"),  # one end
        ((0.0, 255.0), "0", "1"),  # half of the range is unused
        ((127.5, [127.5, 127.5, 1.0]), "-128", "128"),  # one channel
    ],
)
def test_a_normalization_that_contradicts_the_calibrated_range(minus_one_to_one, tmp_path, normalization, low, high):
    message = rf"numbers from {low} to {high}, but input 'image' was calibrated on numbers from -0.996 to 1\. "
    with pytest.warns(UserWarning, match=message) as caught:
        klb.export_litert(minus_one_to_one, tmp_path / "m.tflite", normalization=normalization)
    assert [warning.filename for warning in caught] == [__file__]
    assert (tmp_path / "m.tflite").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["a"]}, "1 labels.*expected 6"),
        ({"labels": "abcdef"}, "is one string"),
        ({"normalization": (0.0,)}, r"give \(mean, std\)"),
        ({"normalization": (0.0, 0.0)}, "std above 0"),
        ({"normalization": ([1, 2], 1.0)}, "1 or 3 finite numbers"),
        ({"weights": "int3"}, "'int3'.*'auto'.*'int8'"),
        ({"io": "int4"}, "io='int4'"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_arguments_that_do_not_fit(classifier, tmp_path, arguments, message):
    (tmp_path / "m.tflite").write_bytes(b"older")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        klb.export_litert(classifier[0], tmp_path / "m.tflite", **arguments)
    assert (tmp_path / "m.tflite").read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["m.tflite"]


# ------------------------------------------------------------------------------------------------ paths


@pytest.mark.parametrize("where", ["none/m.tflite", "."])
def test_paths_that_cannot_be_written(classifier, tmp_path, where):
    with pytest.raises(OSError, match="cannot write"):
        klb.export_litert(classifier[0], tmp_path / where)
    assert os.listdir(tmp_path) == []


def test_bytes_and_names_that_are_no_utf8_are_written_and_verified(classifier, tmp_path):
    model, images = classifier
    for path in (os.path.join(os.fsencode(tmp_path), b"caf\xe9.tflite"), os.fsencode(tmp_path / "plain.tflite")):
        report = klb.export_litert(model, path, labels=list("abcdef"))
        assert str(report).encode().startswith(os.fsencode(tmp_path)), "printable anywhere"
        for given in (path, os.fsdecode(path)):
            assert klb.verify(model, given, images).ok
        assert litert.read_metadata(path)["labels"] == list("abcdef")


def test_a_place_that_cannot_be_written_is_known_before_lowering(classifier, tmp_path, monkeypatch):
    model, _ = classifier
    (tmp_path / "kept.tflite").write_bytes(b"old")
    (tmp_path / "kept.tflite").chmod(0o444)
    monkeypatch.setattr("keras_lowbit.deploy.export.lower_model", lambda *a, **k: pytest.fail("lowered"))
    with pytest.raises(PermissionError, match="read-only"):
        klb.export_litert(model, tmp_path / "kept.tflite")
    with pytest.raises(OSError, match="cannot write"):
        klb.export_litert(model, tmp_path / ("n" * 250 + ".tflite"))


def test_read_only_folder(classifier, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    (folder / "m.tflite").write_bytes(b"older")
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(OSError, match=r"cannot write.*choose another path"):
            klb.export_litert(classifier[0], folder / "m.tflite")
        assert (folder / "m.tflite").read_bytes() == b"older"
    finally:
        folder.chmod(stat.S_IRWXU)


def test_older_file_survives_a_model_that_cannot_be_exported(tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"older")
    model = klb.quantize_model(ZOO["dense 2-d"].make(), "int8")[0]
    with pytest.raises(ValueError, match="has seen no data"):
        klb.export_litert(model, tmp_path / "m.tflite")
    assert (tmp_path / "m.tflite").read_bytes() == b"older"


def test_equal_models_give_equal_bytes(classifier, tmp_path):
    model, _ = classifier
    for name in "ab":
        klb.export_litert(model, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_saved_and_loaded_model_gives_the_same_file(classifier, tmp_path):
    model, _ = classifier
    model.save(tmp_path / "m.keras")
    klb.export_litert(model, tmp_path / "a")
    klb.export_litert(keras.saving.load_model(tmp_path / "m.keras"), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_report_names_what_runs_in_float_with_reasons(tmp_path):
    model, _ = trained(ZOO["skip list"])
    report = klb.export_litert(model, tmp_path / "m.tflite")
    assert "runs in float: one: Conv2D is not quantized" in str(report)


# ------------------------------------------------------------------------------------------------ Keras' own export


@pytest.mark.parametrize("recipe", ["sq-twn", "int8"])
def test_keras_export_of_a_quantized_model(recipe, tmp_path):
    """`model.export(format="litert")` gives a float file that simulates the integers: near, not the integer file."""
    model, images = trained(
        case(lambda: kl.Conv2D(6, 3), lambda: kl.BatchNormalization(), lambda: kl.ReLU(), lambda: kl.Dense(4, name="head"),
             recipe=recipe)
    )  # fmt: skip
    model.export(str(tmp_path / "keras.tflite"), format="litert", verbose=False)
    got = run_float(tmp_path / "keras.tflite", images[:1])
    wanted = np.array(model(images[:1], training=False))
    graph = klb.deploy.lower(model)
    assert np.abs(got - wanted).max() <= 2 * float(graph.tensors[graph.outputs[0]].scale)
    assert not {"INT8", "INT4"} & {t.type for t in LiteRTFile(tmp_path / "keras.tflite").tensors.values()}
    with pytest.raises(ValueError, match="was not exported from this model"):
        klb.verify(model, tmp_path / "keras.tflite", images)


def run_float(path, images):
    interpreter = make_interpreter("xnnpack", model_path=str(path))
    detail = interpreter.get_input_details()[0]
    assert detail["dtype"] is np.float32
    interpreter.resize_tensor_input(detail["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(detail["index"], images)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def test_operations_are_counted_on_a_terminal_alone(classifier, tmp_path, monkeypatch, capsys):
    model, _ = classifier
    klb.export_litert(model, tmp_path / "m.tflite")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    klb.export_litert(model, tmp_path / "m.tflite")
    printed = capsys.readouterr().out
    assert "/operation" in printed
    assert printed.endswith("\n")
    klb.export_litert(model, tmp_path / "m.tflite", verbose=0)
    assert capsys.readouterr().out == ""
