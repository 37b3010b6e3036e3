"""bench applications: a row for each network, whatever its size of images."""

import json
import re
import types
from pathlib import Path

import keras
import pytest
from absl import flags
from keras import layers as L

from keras_lowbit.bench import applications


def tiny(weights=None):
    """A network of images of any size, such as MobileNetV3."""
    image = keras.Input((None, None, 3))
    hidden = L.GlobalAveragePooling2D()(L.Conv2D(2, 3, strides=8)(L.Rescaling(1 / 255)(image)))
    return keras.Model(image, L.Dense(2)(hidden))


def test_a_network_of_any_image_size_gets_one(monkeypatch):
    monkeypatch.setattr(keras.applications, "Tiny", tiny, raising=False)
    row = applications.measure("Tiny")
    assert row["in_float"] == []
    assert row["nodes"] == 3
    assert row["parameters"] == 62


def run(output, resume=False, model=()):
    return applications.run(types.SimpleNamespace(output=str(output), resume=resume, model=list(model)))


def test_a_run_goes_on_behind_the_rows_that_its_file_has(monkeypatch, tmp_path, capsys):
    made = []
    monkeypatch.setattr(applications, "names", lambda: ["First", "Second"])
    monkeypatch.setattr(applications, "measure", lambda name: made.append(name) or {"in_float": []})
    output = tmp_path / "found.json"
    assert run(output, model=["First"]) == 0
    assert run(output, resume=True) == 0
    assert made == ["First", "Second"]
    assert list(json.loads(output.read_text())["rows"]) == ["First", "Second"]
    assert capsys.readouterr().out.splitlines()[-1] == "2 of 2 networks in integers alone"
    assert run(output) == 0
    assert made == ["First", "Second", "First", "Second"]


def test_a_file_of_something_else_is_not_gone_on_with(tmp_path):
    output = tmp_path / "other.json"
    output.write_text("[]")
    with pytest.raises(flags.Error, match="has no rows of bench applications"):
        run(output, resume=True)
    assert output.read_text() == "[]"


def test_the_stored_run_holds_what_the_documentation_says():
    root = Path(__file__).resolve().parents[2]
    rows = json.loads((root / "studies/applications/result.json").read_text())["rows"]
    (said,) = re.findall(r"All (\d+) networks of `keras.applications` become", (root / "docs/concepts.md").read_text())
    assert int(said) == len(rows)
    assert not any(row["in_float"] for row in rows.values())
    assert set(applications.names()) - set(rows) == set()
