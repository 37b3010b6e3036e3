"""`keras-lowbit inspect`, `verify` and `compare`: figures, exit status, and what they refuse."""

import sys

import keras
import numpy as np
import pytest

import keras_lowbit as klb


@pytest.fixture(scope="module")
def file(files):
    path = files.folder / "q.tflite"
    klb.export_litert(keras.saving.load_model(files.quantized), path)
    return path


def test_verify_gives_the_verdict_of_the_function(call, files, file):
    found = call("verify", files.quantized, file, "--data", files.data, "--reference", files.model, "--json")
    fields = found.fields
    assert (found.status, fields["ok"], fields["problems"], fields["samples"]) == (0, True, [], 24)
    assert fields["reference_equal"] is True
    assert fields["outputs"][0]["score"]["reference"] == 1.0
    assert "arrays as they are stored" in found.err
    text = call("verify", files.quantized, file, "--data", files.data, "--limit", 3)
    assert "layers: ok" in text.out
    assert "end to end on 3 samples" in text.out


def test_verify_of_another_models_file_has_status_1_or_2(call, files, file, tmp_path):
    other = keras.saving.load_model(files.quantized)
    other.get_layer("conv").kernel.assign(other.get_layer("conv").kernel * 1.7 + 0.01)
    other.save(tmp_path / "other.keras")
    found = call("verify", tmp_path / "other.keras", file, "--data", files.data)
    assert found.status == 1
    assert "NOT OK" in found.out
    assert "export the file again" in found.out


def test_verify_refuses_what_is_none(call, files, file, tmp_path):
    data = ("--data", files.data)
    assert call("verify", files.quantized, tmp_path / "none.tflite", *data).refused("none.tflite")
    assert call("verify", files.quantized, files.names, *data).refused("labels.txt")
    assert call("verify", files.model, file, *data).refused("small")
    assert call("verify", files.quantized, file).refused("--data")
    assert call("verify", files.quantized, file, "--data", tmp_path / "none").refused("no data at", "none")
    assert call("verify", files.quantized, file, *data, "--preprocess=tff").refused("tff")
    np.savez(tmp_path / "wrong.npz", x=np.ones((3, 5), np.float32))
    assert call("verify", files.quantized, file, "--data", tmp_path / "wrong.npz").refused("(5,)", "(12, 12, 3)")
    np.savez(tmp_path / "nan.npz", x=np.full((3, 12, 12, 3), np.nan, np.float32))
    assert call("verify", files.quantized, file, "--data", tmp_path / "nan.npz").refused("NaN")


def test_verify_counts_on_a_terminal_alone(files, file, monkeypatch, capsys):
    model, images = keras.saving.load_model(files.quantized), np.load(files.data)["images"]

    def shown(terminal, data=images, **options):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
        klb.verify(model, file, data, batch_size=8, **options)
        return capsys.readouterr().out

    assert (shown(True, verbose=0), shown(False)) == ("", "")
    layers = len(klb.verify(model, file, images).layers)
    line = shown(True)
    assert f"{3 + layers}/{3 + layers}" in line  # three batches, then the layers
    assert (line.count("\n"), line[-1]) == (1, "\n")
    unknown = shown(True, data=lambda: iter([images[:8], images[8:]]))
    assert f"{2 + layers}" in unknown
    assert (unknown.count("\n"), unknown[-1]) == (1, "\n")


def test_inspect_names_every_layer_and_the_files_size(call, files):
    found = call("inspect", files.model, "--recipe", "twn", "--skip", "classes", "--json").fields
    rows = {row["path"]: row for row in found["layers"]}
    assert list(rows) == ["image", "conv", "bn", "relu", "pool", "classes"]
    assert (rows["conv"]["weight_bits"], rows["conv"]["outcome"]) == (2, "quantized")
    assert (rows["classes"]["weight_bits"], rows["classes"]["outcome"]) == (32, "skipped")
    assert found["is_estimate"] is True
    assert found["file_bytes"] > 0
    text = call("inspect", files.model, "--recipe", "twn")
    assert text.status == 0
    assert "file about " in text.out
    assert text.out.splitlines()[0] == "small with twn"


def test_inspect_takes_loops_apart_where_asked(call, tmp_path):
    entry = keras.Input((4, 3))
    keras.Model(entry, keras.layers.Bidirectional(keras.layers.GRU(2), name="both")(entry)).save(tmp_path / "m.keras")
    looping, apart = (call("inspect", tmp_path / "m.keras", *flag, "--json").fields for flag in ((), ("--unroll",)))
    assert [row["outcome"] for row in looping["layers"] if row["path"] == "both"] == ["skipped"]
    assert {row["outcome"] for row in apart["layers"] if row["path"] == "both"} == {"rewritten"}
    assert (
        min(found["file_bytes"] for found in (looping, apart)) > 0
    )  # a loop in float, as TensorFlow's converter writes it


@pytest.mark.filterwarnings("default")
def test_inspect_says_what_no_file_can_hold(call, tmp_path):
    ids = keras.Input((3,), dtype="string")
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"], output_mode="multi_hot", name="words")
    keras.Model(ids, keras.layers.Dense(2)(lookup(ids))).save(tmp_path / "m.keras")
    wanted = "'words' (StringLookup): a file has no tables for what it looks up: run it in front of the model"
    text, found = (call("inspect", tmp_path / "m.keras", *flag) for flag in ((), ("--json",)))
    assert f"no file: {wanted}" in text.out
    assert [row["outcome"] for row in found.fields["layers"] if row["path"] == "words"] == ["no file"]
    assert wanted in found.fields["no_file_because"]


def test_inspect_refuses_what_is_none(call, files):
    assert call("inspect", files.model, "--recipe=int9").refused("Unknown recipe 'int9'")
    assert call("inspect", files.model, "--skip=nothing").refused("nothing")
    assert call("inspect", "none.keras").refused("no file 'none.keras'")
    assert call("inspect", files.model, "--target=none.json").refused("none.json")


def test_compare_counts_what_the_outputs_say(call, files, file):
    fields = call("compare", files.model, file, "--data", files.data, "--json", "--repeats=2").fields
    images, labels = (np.load(files.data)[name] for name in ("images", "labels"))
    model, quantized = (keras.saving.load_model(path) for path in (files.model, files.quantized))
    wanted = np.asarray(model(images))
    found = fields["outputs"][0]
    assert found["samples"] == len(images)
    assert found["accuracy"][0] == 1.0
    assert found["accuracy"][1] == found["top1_agreement"]
    noise = np.square(np.asarray(quantized(images)) - wanted).sum()
    assert found["snr_db"] == pytest.approx(10 * np.log10(np.square(wanted).sum() / noise), abs=0.2)
    assert [entry["size_bytes"] for entry in fields["files"]] == [path.stat().st_size for path in (files.model, file)]
    assert "median_ms" not in fields["files"][0]
    assert fields["files"][1]["median_ms"] > 0
    assert labels.shape == (24,)


def test_compare_of_a_file_with_itself(call, files, file):
    found = call("compare", file, file, "--data", files.data, "--json", "--repeats=0").fields["outputs"][0]
    assert (found["top1_agreement"], found["snr_db"], found["largest_difference"]) == (1.0, "inf", 0.0)
    text = call("compare", file, files.quantized, "--data", files.data, "--repeats=0")
    assert text.status == 0
    assert "top-1 agreement" in text.out


def test_compare_refuses_what_does_not_fit(call, files, file, tmp_path):
    other = keras.Sequential([keras.Input((9, 9, 3)), keras.layers.GlobalAveragePooling2D()])
    other.save(tmp_path / "other.keras")
    data = ("--data", files.data)
    assert call("compare", file, tmp_path / "other.keras", *data).refused("cannot be compared on the same data")
    assert call("compare", file, tmp_path / "none.tflite", *data).refused("no file")
    (tmp_path / "text.tflite").write_text("text")
    assert call("compare", file, tmp_path / "text.tflite", *data).refused("text.tflite")
    few = keras.Sequential([keras.Input((12, 12, 3)), keras.layers.GlobalAveragePooling2D()])
    few.save(tmp_path / "few.keras")
    assert call("compare", file, tmp_path / "few.keras", *data).refused("outputs of shape")
