"""`keras-lowbit sensitivity` and `assign-bits`: what the functions give, as files and JSON, and what is refused."""

import json

import pytest

import keras_lowbit as klb


def test_sensitivity_prints_the_worst_and_writes_both_files(call, files, tmp_path):
    found = call(
        *("sensitivity", files.model, "--recipe", "fat-w4", "--data", files.data, "--json"),
        *("--output", tmp_path / "s.json", "--plot", tmp_path / "s.png", "--checkpoint", tmp_path / "c"),
    )
    assert found.status == 0
    assert {row["path"] for row in found.fields["rows"] if row["part"] == "weights"} == {"conv", "classes"}
    assert found.fields["float_accuracy"] == 1.0
    assert found.fields["samples"] == 24
    assert json.loads((tmp_path / "s.json").read_text()) == found.fields
    assert (tmp_path / "s.png").stat().st_size > 1000
    again = call("sensitivity", files.model, "--recipe", "fat-w4", "--data", files.data, "--checkpoint", tmp_path / "c")
    assert again.status == 0
    assert "only it: dB" in again.out


@pytest.mark.filterwarnings("ignore:equalize left")
def test_assign_bits_writes_a_recipe_that_convert_takes(call, files, tmp_path):
    found = call(
        *("assign-bits", files.model, "--data", files.data, "--budget_points", 100, "--choices", "8,4"),
        *("--output", tmp_path / "r.json", "--plot", tmp_path / "f.png", "--json"),
    )
    assert found.status == 0
    recipe = klb.recipes.Recipe.from_json((tmp_path / "r.json").read_text())
    assert klb.recipes.Recipe.from_config(found.fields["recipe"]) == recipe
    assert (tmp_path / "f.png").stat().st_size > 1000
    made = call(
        *("convert", files.model, "--recipe", tmp_path / "r.json", "--data", files.data, "--pack", "auto"),
        *("--output", tmp_path / "m.tflite"),
    )
    assert made.status == 0
    assert (tmp_path / "m.tflite").stat().st_size < found.fields["file_bytes"] + 600


def test_refusals_leave_nothing_behind(call, files, tmp_path):
    data, output = ("--data", files.data), ("--output", tmp_path / "r.json")
    assert call("assign-bits", files.model, *data, *output).refused("one of --budget_kb and --budget_points")
    assert call("assign-bits", files.model, *data, *output, "--budget_kb=0.1").refused("the smallest has")
    assert call("assign-bits", files.model, *data, *output, "--budget_kb=9", "--choices=8,9").refused("9")
    assert call("sensitivity", files.model, *data, "--recipe=int9").refused("int9")
    assert call("sensitivity", files.model, *data, "--output", files.names).refused("exists already", "--force")
    assert call("sensitivity", files.model, *data, "--plot", tmp_path / "a.xyz").refused("a.xyz", "endings", "png")
    assert call("assign-bits", files.model, *data, *output, "--budget_kb=9", "--plot=none/a.png").refused("none")
    assert list(tmp_path.iterdir()) == []
