"""`keras-lowbit convert`: from a float model and images to a verified file, with every kind of recipe."""

import json
import os
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowbit.cli.conversion import wants_equal_ranges
from keras_lowbit.recipes import get, w4
from tests.support.commands import program


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of two of four classes, larger than the model's input."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for place in range(12):
        target = folder / ("3" if place % 2 else "1")
        target.mkdir(exist_ok=True)
        pixels = rng.normal(180 if place % 2 else 70, 30, (20, 24, 3)).clip(0, 255).astype(np.uint8)
        (target / f"{place}.png").write_bytes(tf.io.encode_png(pixels).numpy())
    return folder


def check_page(page, path, fields):
    """The page and its JSON say what the command says."""
    said = json.loads(page.with_suffix(".json").read_text())
    assert said["command"].startswith("keras-lowbit convert ")
    assert f"--recipe={fields['recipe']}" in said["command"]
    assert f"--output={path}" in said["command"]
    assert said["size"]["exported_bytes"] == said["size"]["file_bytes"]
    assert (said["parity"]["ok"], said["size"]["file_bytes"]) == (fields["ok"], fields["size_bytes"])
    assert said["outputs"] == fields["outputs"]
    assert (said["samples"], said["recipe"]) == (fields["samples"], fields["recipe"])
    assert {row["outcome"] for row in said["layers"]} >= {"quantized"}
    assert said["outputs"][0]["score"]["count"] == said["samples"]
    assert "keras-lowbit convert" in page.read_text()


@pytest.mark.slow
def test_the_program_converts_verifies_and_prints_one_table(files, photos, tmp_path):
    path, saved = tmp_path / "m.tflite", tmp_path / "q.keras"
    cache = tmp_path / "cache"
    cache.mkdir()
    flags = (
        "--data",
        photos,
        "--preprocess=unit",
        "--cache",
        cache,
        "--output",
        path,
        "--save",
        saved,
        "--labels",
        files.names,
    )
    found = program("convert", files.model, "--recipe", "int8", *flags)
    assert (found.status, found.err) == (0, "data: preprocess 'unit', as given; 2 classes\n")
    lines = found.out.splitlines()
    steps = [line.split("  ")[0] for line in lines[2:8]]
    assert steps == ["fold batch norms", "quantize", "calibrate", "correct biases", "export", "verify"]
    assert f"{path.stat().st_size:,} bytes" in lines[8]
    assert sorted(os.listdir(tmp_path)) == ["cache", "m.tflite", "q.keras"]
    assert os.listdir(cache) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "steps"),
    [
        ("int8", ["fold batch norms", "quantize", "calibrate", "correct biases"]),
        ("fat", ["fold batch norms", "quantize", "calibrate", "correct biases", "tune"]),
        ("fat-w4", ["fold batch norms", "equalize", "quantize", "calibrate", "correct biases", "tune"]),
        ("dfp-4w8a-n4", ["quantize", "calibrate", "batch norms", "calibrate"]),
    ],
)
@pytest.mark.filterwarnings("default")  # corrections of so few samples may be taken back, with a warning
def test_every_method_without_training_becomes_a_file_that_verifies(call, files, tmp_path, recipe, steps):
    path, saved = tmp_path / "m.tflite", tmp_path / "q.keras"
    page = tmp_path / "page.html"
    flags = ("--data", files.data, "--batch_size=4", "--output", path, "--save", saved, "--report", page, "--json")
    found = call("convert", files.model, "--recipe", recipe, *flags)
    fields = found.fields
    assert [step["step"] for step in fields["steps"]] == [*steps, "export", "verify", "report"]
    check_page(page, path, fields)
    assert (found.status, fields["ok"], fields["problems"]) == (0, True, [])
    assert (fields["size_bytes"], fields["output"]) == (path.stat().st_size, str(path))
    assert fields["outputs"][0]["reference_snr_db"] > 10
    again = call("verify", saved, path, "--data", files.data, "--json")
    assert (again.status, again.fields["ok"]) == (0, True)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_steps_that_a_recipe_names_are_taken(call, files, tmp_path):
    recipe, path = w4(first=None, last=None), tmp_path / "m.tflite"
    (tmp_path / "w4.json").write_text(recipe.replace(training={**recipe.training, "iterations": 7}).to_json())
    flags = ("--data", files.data, "--batch_size=4", "--output", path, "--json")
    found = call("convert", files.model, "--recipe", tmp_path / "w4.json", *flags)
    first = ["fold batch norms", "equalize", "quantize", "calibrate", "correct biases", "reconstruct"]
    assert [row["step"] for row in found.fields["steps"]] == [*first, "tune", "export", "verify"]
    steps = {step["step"]: step["outcome"] for step in found.fields["steps"]}
    assert steps["reconstruct"].startswith("7 iterations of a block, ")
    assert steps["tune"].startswith("3 epochs, ")
    assert (found.status, found.fields["ok"]) == (0, True)


@pytest.mark.slow
@pytest.mark.parametrize("better", [True, False])
@pytest.mark.filterwarnings("default")
def test_what_came_of_tuning_is_said(call, files, tmp_path, monkeypatch, better):
    def distill(student, *arguments, **options):
        variable = student.trainable_variables[0]
        variable.assign(variable + (0.01 if better else 0.0))
        return SimpleNamespace(history={"loss": [3.0, 2.0], "val_loss": [3.0, 2.5]})

    monkeypatch.setattr("keras_lowbit.cli.conversion.distill", distill)
    flags = ("--data", files.data, "--batch_size=4", "--output", tmp_path / "m.tflite", "--json")
    steps = {
        step["step"]: step["outcome"] for step in call("convert", files.model, "--recipe=fat", *flags).fields["steps"]
    }
    assert steps["tune"] == ("6 epochs, loss 2.5 at best, kept" if better else "6 epochs, none better than the start")


def test_which_recipes_want_equal_ranges():
    names = ("int8", "fat", "fat-w4", "fat-scalar", "dfp-4w8a-n4", "sq-twn")
    assert [wants_equal_ranges(get(name)) for name in names] == [False, False, True, True, False, False]


@pytest.mark.filterwarnings("default")
def test_a_recipe_that_is_made_for_training_is_said_before_the_work(call, files, tmp_path):
    found = call("convert", files.model, "--recipe=sq-twn", "--data=none", "--output", tmp_path / "m.tflite")
    assert found.status == 2
    assert "warning: sq-twn is made for training" in found.err


BAD = {
    "no data": (["{model}"], "--data"),
    "no model": (["none.keras", "--data={data}"], "no file 'none.keras'"),
    "a quantized model": (["{quantized}", "--data={data}"], "is quantized already"),
    "an unknown recipe": (["{model}", "--data={data}", "--recipe=w5"], "Unknown recipe 'w5'"),
    "data that are not there": (["{model}", "--data=none"], "no data at"),
    "data that are none": (["{model}", "--data={names}"], "is no data"),
    "a folder without pictures": (["{model}", "--data={empty}"], "has no pictures"),
    "an unknown preprocess": (["{model}", "--data={data}", "--preprocess=tff"], "tff"),
    "a model that does not say what it takes": (["{model}", "--data={broken}"], "which numbers it wants"),
    "a picture that is broken": (["{model}", "--data={broken}", "--preprocess=tf"], "b.png"),
    "labels that do not fit": (["{model}", "--data={data}", "--labels={empty}/one.txt"], "label"),
    "an unknown target": (["{model}", "--data={data}", "--target=toaster"], "toaster"),
    "a layer that is not there": (["{model}", "--data={data}", "--skip=nothing"], "nothing"),
    "a folder for the cache that is not there": (["{model}", "--data={data}", "--cache={empty}/none"], "no folder"),
    "a named set that is not there": (
        ["{model}", "--data=tfds:no_such_set", "--data_dir={empty}", "--preprocess=tf"],
        "no_such_set",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("default")
def test_bad_input_is_one_sentence_and_leaves_nothing(call, files, tmp_path, case):
    empty, broken, output = (tmp_path / name for name in ("empty", "broken", "output"))
    for folder in (empty, broken, output):
        folder.mkdir()
    (empty / "one.txt").write_text("one\n")
    (broken / "a.png").write_bytes(tf.io.encode_png(np.zeros((8, 8, 3), np.uint8)).numpy())
    (broken / "b.png").write_bytes(b"no picture")
    arguments, words = BAD[case]
    places = {**vars(files), "empty": empty, "broken": broken}
    given = [argument.format(**places) for argument in arguments]
    found = call("convert", *given, "--output", output / "m.tflite", "--save", output / "q.keras", "--json")
    assert found.refused(words)
    assert os.listdir(output) == []


@pytest.mark.filterwarnings("default")
def test_what_no_file_can_hold_is_said_before_the_work(call, tmp_path):
    ids = keras.Input((3,), dtype="int32")
    hashed = keras.ops.cast(keras.layers.Hashing(5, name="hash")(ids), "float32")
    keras.Model(ids, keras.layers.Dense(2)(hashed), name="text").save(tmp_path / "m.keras")
    np.save(tmp_path / "ids.npy", np.ones((8, 3), "int32"))
    places = ("--data", tmp_path / "ids.npy", "--output", tmp_path / "m.tflite", "--save=no")
    found = call("convert", tmp_path / "m.keras", *places)
    assert found.refused("No file can be written of 'text': 'hash' (Hashing)", "run it in front of the model")
    assert "calibrate" not in found.err


def test_files_that_are_there_are_said_first(call, tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"mine")
    flags = ("--data=none", "--output")
    assert call("convert", "none.keras", *flags, tmp_path / "m.tflite").refused("exists already", "--force")
    assert call("convert", "none.keras", *flags, tmp_path / "n.tflite", "--save", tmp_path / "m.tflite").refused(
        "exists"
    )
    assert call("convert", "none.keras", *flags, tmp_path / "none" / "m.tflite").refused("cannot write")
    (tmp_path / "page.json").write_text("mine")
    report = (*flags, tmp_path / "n.tflite", "--report")
    assert call("convert", "none.keras", *report, tmp_path / "page.html").refused("page.json exists already", "--force")
    assert call("convert", "none.keras", *report, "page.pdf").refused("one that ends in .html")
    assert (tmp_path / "m.tflite").read_bytes() == b"mine"
    (tmp_path / "q.keras").write_bytes(b"mine")
    assert call("convert", "none.keras", *flags, tmp_path / "q.tflite").refused("q.keras exists already")
    assert call("convert", "none.keras", *flags, tmp_path / "q.tflite", "--save=no").refused("no file 'none.keras'")


@pytest.mark.filterwarnings("default")
def test_data_of_another_range_than_the_model_was_trained_on_are_warned_of(call, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(64, 8, 8, 3)).astype(np.float32)
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.BatchNormalization(), keras.layers.Conv2D(4, 3)])
    model.layers[0].moving_mean.assign(images.mean((0, 1, 2)))
    model.layers[0].moving_variance.assign(images.var((0, 1, 2)))
    model.save(tmp_path / "m.keras")
    model_file, outputs = (tmp_path / "m.keras").read_bytes(), {"right": "right.tflite", "wrong": "m.tflite"}
    for name, scale in (("right", 1), ("wrong", 255)):
        np.save(tmp_path / f"{name}.npy", images * scale)
        given = ("--data", tmp_path / f"{name}.npy", "--output", tmp_path / outputs[name])
        found = call("convert", tmp_path / "m.keras", *given)
        assert ("The calibration data do not fit" in found.err) == (name == "wrong")
        assert ("the quantized model is not saved" in found.err) == (name == "wrong")  # its place is MODEL's
    assert (tmp_path / "m.keras").read_bytes() == model_file
    assert (
        call("verify", tmp_path / "right.keras", tmp_path / "right.tflite", "--data", tmp_path / "right.npy").status
        == 0
    )
