"""`keras-lowbit convert --resume` and `train --checkpoint`: what a signal stops at random moments goes on to the same bits."""

import json
import os
import random

import keras
import numpy as np
import pytest

from keras_lowbit import recipes
from keras_lowbit.cli import options
from keras_lowbit.keras_graph.variables import to_numpy
from tests.support.kills import KILLED, killed


def weights(path):
    return [to_numpy(weight) for weight in keras.saving.load_model(path).weights]


def chain(folder, command, again, seed, kills=3):
    """[status, output] of a command that runs to its end, and of the same with `again`, killed at random moments."""
    for name in ("whole", "killed"):
        (folder / name).mkdir()
    rng = random.Random(seed)
    moments = [rng.uniform(0.1, 0.7) for _ in range(kills)]
    found = killed(folder, command(folder / "whole"), command(folder / "killed") + again, moments)
    states = [status for status, _ in found]
    assert (states[0], states[-1], KILLED in states) == (0, 0, True), found
    return found


@pytest.mark.slow
def test_a_killed_conversion_goes_on_to_the_same_bits(files, tmp_path):
    recipe = json.loads(recipes.get("fat").to_json())
    recipe["training"]["epochs"] = 2
    (tmp_path / "fat.json").write_text(json.dumps(recipe))

    def command(folder):
        flags = [f"--recipe={tmp_path / 'fat.json'}", f"--data={files.data}", "--batch_size=2", "--json"]
        return ["convert", files.model, *flags, "--output", folder / "m.tflite", "--save", folder / "m.keras"]

    found = chain(tmp_path, command, ["--resume"], seed=0)
    assert any("goes on behind" in said for _, said in found), found
    whole, again = tmp_path / "whole", tmp_path / "killed"
    assert sorted(os.listdir(again)) == ["m.keras", "m.tflite"]
    assert (whole / "m.tflite").read_bytes() == (again / "m.tflite").read_bytes()
    assert all(
        np.array_equal(*pair) for pair in zip(weights(whole / "m.keras"), weights(again / "m.keras"), strict=True)
    )
    steps = [fields_of(found[place][1])["steps"] for place in (0, -1)]
    assert [(row["step"], row["outcome"]) for row in steps[0]] == [(row["step"], row["outcome"]) for row in steps[1]]
    assert "kept" in next(row["outcome"] for row in steps[0] if row["step"] == "tune")


def fields_of(said):
    """The JSON among what a command has said on both streams."""
    return json.loads(said[said.index("\n{\n") : said.rindex("\n}") + 2])


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_bits(files, tmp_path):
    def command(folder):
        flags = ["--recipe=sq-twn", "--epochs=8", f"--data={files.data}", "--batch_size=8"]
        return ["train", files.model, *flags, "--output", folder / "q.keras"]

    chain(tmp_path, command, [f"--checkpoint={tmp_path / 'state'}"], seed=1, kills=2)
    assert os.listdir(tmp_path / "state") == []
    pairs = zip(*(weights(tmp_path / name / "q.keras") for name in ("whole", "killed")), strict=True)
    assert all(np.array_equal(*pair) for pair in pairs)


class Killed(BaseException):
    """As a signal: nothing catches it."""


@pytest.fixture
def stopped(call, files, tmp_path, monkeypatch):
    """Flags of a conversion that was stopped between its two files."""
    flags = ["--data", files.data, "--output", tmp_path / "m.tflite", "--save", tmp_path / "m.keras"]
    write = options.write_output

    def killed(path, *arguments):
        write(path, *arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(options, "write_output", killed)
        with pytest.raises(Killed):
            call("convert", files.model, *flags)
    assert sorted(os.listdir(tmp_path)) == ["m.keras", "m.tflite.stages"]
    return flags


@pytest.mark.slow
def test_what_was_stopped_is_not_lost_unasked(call, files, stopped, tmp_path):
    command = ("convert", files.model, *stopped)
    stages = tmp_path / "m.tflite.stages"
    assert sorted(os.listdir(stages)) == ["float-0.keras", "quantized-3.keras", "state.json"]
    assert call(*command).refused("4 steps of a conversion that was stopped", "--resume", "--force")
    assert call(*command, "--resume", "--recipe=fat").refused("other recipe", "delete", "m.tflite.stages")
    assert len(os.listdir(stages)) == 3
    found = call(*command, "--resume", "--report", tmp_path / "m.html")
    assert found.status == 0, found
    assert "goes on behind correct biases" in found.err
    assert sorted(os.listdir(tmp_path)) == ["m.html", "m.json", "m.keras", "m.tflite"]
    rows = json.loads((tmp_path / "m.json").read_text())["layers"]
    assert "quantized" in {row["outcome"] for row in rows}
    assert call(*command, "--resume").refused("exists already")


@pytest.mark.slow
def test_force_begins_anew_and_what_is_damaged_is_named(call, files, stopped, tmp_path):
    command, stages = ("convert", files.model, *stopped), tmp_path / "m.tflite.stages"
    (stages / "mine").write_text("mine")
    (stages / "quantized-3.keras").write_bytes(b"half")
    assert call(*command, "--resume").refused("quantized-3.keras cannot be read", "to begin anew")
    assert os.listdir(stages) == ["mine"]
    (stages / "state.json").write_text("{")
    assert call(*command, "--resume", "--force").refused("state.json holds no settings")
    (stages / "state.json").unlink()
    found = call(*command, "--force", "--resume")
    assert found.status == 0
    assert "from the start" in found.err
    assert sorted(os.listdir(tmp_path)) == ["m.keras", "m.tflite", "m.tflite.stages"]
    assert os.listdir(stages) == ["mine"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("convert", ["--resume", "--save=no"]),
        ("train", ["--recipe=twn", "--epochs=1", "--checkpoint=state", "--file=no"]),
    ],
)
def test_a_kill_while_the_results_are_said_loses_nothing(call, files, tmp_path, monkeypatch, name, flags):
    monkeypatch.chdir(tmp_path)
    command = (
        name,
        files.model,
        "--data",
        files.data,
        "--output",
        "m.tflite" if name == "convert" else "m.keras",
        *flags,
    )

    def killed(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(options, "show", killed)
        with pytest.raises(Killed):
            call(*command)
    assert call(*command).status == 0
