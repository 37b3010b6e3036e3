"""`keras-lowbit summary` and `keras-lowbit export`: what they say of a file is the file, bad input leaves none."""

import os

import keras
import pytest

from keras_lowbit.deploy.litert.writer import metadata_of
from tests.support.commands import program


def test_the_program_exports_a_file_of_the_size_that_summary_says(files, tmp_path, call):
    path = tmp_path / "q.tflite"
    flags = ("--io", "float32", "--labels", files.names)
    written = program("export", files.quantized, "--output", path, "--json", *flags)
    assert (written.status, written.err) == (0, "")
    assert written.fields["size_bytes"] == path.stat().st_size
    assert [row["layer"] for row in written.fields["rows"]] == ["conv", "classes"]
    found = call("summary", files.quantized, "--json", *flags).fields
    assert (found["file_bytes"], found["is_estimate"]) == (path.stat().st_size, False)
    assert [layer["path"] for layer in found["layers"]] == ["conv", "bn", "classes"]
    assert found["macs"] == sum(layer["macs"] for layer in found["layers"])
    assert metadata_of(path.read_bytes())["labels"] == ["ant", "bee", "cat", "dog"]


def test_people_get_a_table(call, files, tmp_path):
    assert "conv" in call("summary", files.quantized).out
    shown = call("export", files.quantized, "--output", tmp_path / "q.tflite").out
    assert "FULLY_CONNECTED" in shown


def test_a_file_that_is_there_stays_without_force(call, files, tmp_path):
    path = tmp_path / "q.tflite"
    path.write_bytes(b"mine")
    assert call("export", files.quantized, "--output", path).refused("exists already", "--force")
    assert path.read_bytes() == b"mine"
    assert call("export", files.quantized, "--output", path, "--force").status == 0
    assert path.read_bytes() != b"mine"


BAD = {
    "no model": (["nothing.keras"], "no file 'nothing.keras'"),
    "a folder": (["."], "is a folder without a model"),
    "an exported folder": (["{folder}/exported"], "model.export writes it"),
    "no file of Keras": (["{names}"], "does not read"),
    "a float model": (["{model}"], "Quantize it first"),
    "no model named": ([], "expected MODEL, got nothing"),
    "labels that are not there": (["{quantized}", "--labels=none.txt"], "none.txt"),
    "too few labels": (["{quantized}", "--labels={folder}/one.txt"], "label"),
    "labels that are no text": (["{quantized}", "--labels={quantized}"], "is no text in UTF-8"),
    "an unknown target": (["{quantized}", "--target=toaster"], "target='toaster'"),
    "an unknown type": (["{quantized}", "--io=int7"], "int7"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_leaves_no_file(call, files, tmp_path, case):
    (files.folder / "one.txt").write_text("one\n")
    (files.folder / "exported").mkdir(exist_ok=True)
    (files.folder / "exported" / "saved_model.pb").write_bytes(b"")
    arguments, words = BAD[case]
    given = [argument.format(**vars(files)) for argument in arguments]
    assert call("export", *given, "--output", tmp_path / "q.tflite").refused(words)
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_said_before_the_model_is_read(call, tmp_path):
    assert call("export", "nothing.keras", "--output", tmp_path / "none" / "q.tflite").refused("cannot write")
    assert call("export", "nothing.keras", "--output", tmp_path).refused("it is a folder")


def test_a_folder_that_keras_saved_is_a_model(call, files, tmp_path):
    model = keras.saving.load_model(files.quantized)
    keras.saving.save_model(model, tmp_path / "q", zipped=False)
    found = call("summary", tmp_path / "q", "--json").fields
    assert found == call("summary", files.quantized, "--json").fields
    (tmp_path / "q" / "model.weights.h5").write_bytes(b"half")
    assert call("summary", tmp_path / "q").refused("Keras does not read")


def test_networks_of_keras_by_name(call):
    found = call(
        "summary", "applications:MobileNetV2", "--untrained", "--classes=10", "--input_size=32", "--json"
    ).fields
    assert found["layers"][-1]["parameters"] == 1280 * 10 + 10
    assert call("summary", "applications:MobileNet2").refused("no such network", "MobileNetV2")
    assert call("summary", "applications:MobileNetV2", "--classes=10").refused("--classes=10 needs --untrained")
    assert call("summary", "nothing.keras", "--untrained").refused("--untrained")
