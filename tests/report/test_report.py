"""The report: its numbers are those of its objects, its JSON is what the schema says, its page works in a browser."""

import json
import os
import re
import sys
from importlib import import_module, resources
from types import SimpleNamespace

import jsonschema
import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.report.page import html
from tests.support.browser import ask
from tests.support.model_zoo import run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report with everything, and what it was made of."""
    folder = tmp_path_factory.mktemp("report")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 3), name="image")
    x = keras.layers.Conv2D(8, 3, use_bias=False, name="conv")(inputs)
    x = keras.layers.ReLU(name="relu")(keras.layers.BatchNormalization(name="bn")(x))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(16, activation="relu", name="hidden")(x)
    x = keras.layers.Dense(8, name="float")(x)
    model = keras.Model(inputs, keras.layers.Dense(4, name="classes")(x), name="small")
    images = np.random.default_rng(0).normal(size=(24, 12, 12, 3)).astype(np.float32)
    labels = run(model, images)[0].argmax(-1)
    quantized, conversion = klb.quantize_model(model, "int8", overrides={"hidden": "ternary"}, skip=["float"])
    klb.calibrate(quantized, images[:4], verbose=0)
    export = klb.export_litert(quantized, folder / "m.tflite")
    report = klb.report(
        quantized,
        reference=model,
        data=images,
        labels=labels,
        file=folder / "m.tflite",
        path=folder / "report.html",
        conversion=conversion,
        export=export,
        command="train.py --seed 0",
        sensitivity=klb.sensitivity(quantized, klb.fold_batch_norms(model), images, verbose=0),
    )
    return SimpleNamespace(
        **{"folder": folder, "model": model, "quantized": quantized, "images": images, "labels": labels},
        **{"conversion": conversion, "export": export, "report": report, "contents": report.contents()},
    )


def test_sensitivity_is_that_which_was_measured_the_worst_first(made):
    rows, measured = made.contents["sensitivity"], made.report.sensitivity.worst_first()
    assert [(row["path"], row["part"]) for row in rows] == [(row.path, row.part) for row in measured]
    assert rows[0]["only_snr_db"] == measured[0].only.snr_db
    assert rows[0]["without_agreement"] == measured[0].without.agreement
    assert (rows[0]["path"], rows[0]["bits"]) == ("hidden", 2)
    assert 'id="sensitivity"' in html(made.contents)


def check(contents):
    schema = json.loads(resources.files("keras_lowbit.report").joinpath("schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(contents, schema)


def test_page_and_json_lie_beside_each_other_and_say_the_same(made):
    assert {"m.tflite", "report.html", "report.json"} == set(os.listdir(made.folder))
    stored = json.loads((made.folder / "report.json").read_text(), parse_constant=pytest.fail)
    assert stored == made.contents
    assert (made.folder / "report.html").read_text() == html(stored)


def test_the_json_is_what_the_schema_says_with_much_and_with_little(made):
    check(made.contents)
    check(klb.report(made.quantized).contents())
    uncalibrated, _ = klb.quantize_model(made.model, "twn")
    little = klb.report(uncalibrated, data=made.images, reference=made.model).contents()
    check(little)
    assert little["size"]["is_estimate"]
    assert little["outputs"][0]["keras_reference_snr_db"] > 0
    assert "estimated" in html(little)
    plain = klb.report(made.model, data=made.images, labels=made.labels).contents()
    check(plain)
    assert (plain["ranges"], plain["weights"]) == ([], [])
    assert {row["outcome"] for row in plain["layers"]} == {"float"}
    assert "Weights on their grids" not in html(plain)
    broken = json.loads(json.dumps(made.contents)) | {"samples": "many"}
    with pytest.raises(jsonschema.ValidationError, match="'many' is not of type 'integer'"):
        check(broken)


def test_the_numbers_are_those_of_the_objects(made):
    contents, parity, export = made.contents, made.report.parity, made.export
    assert contents["size"]["file_bytes"] == os.path.getsize(made.folder / "m.tflite") == export.size_bytes
    assert contents["size"]["exported_bytes"] == export.size_bytes
    assert contents["size"]["float32_bytes"] == 4 * made.model.count_params()
    assert contents["macs"]["before"] == contents["macs"]["after"] == klb.summary(made.quantized).macs
    wanted = run(made.model, made.images)[0].argmax(-1)
    ours = run(made.quantized, made.images)[0].argmax(-1)
    score = contents["outputs"][0]["score"]
    assert (score["reference"], score["keras"]) == (np.mean(wanted == made.labels), np.mean(ours == made.labels))
    assert contents["outputs"][0]["keras_reference_top1_agreement"] == np.mean(wanted == ours)
    assert contents["samples"] == len(made.images)
    assert contents["parity"]["ok"] == parity.ok
    outcomes = {row["path"]: row["outcome"] for row in contents["layers"]}
    assert {row.path: row.outcome for row in made.conversion.layers}.items() <= outcomes.items()
    assert contents["in_float"] == [{"path": x.path, "reason": x.reason} for x in export.float_fallbacks] != []
    assert (contents["command"], contents["versions"]["keras"]) == ("train.py --seed 0", keras.__version__)


def test_bytes_of_another_export_than_the_file_are_said_to_be_that(made):
    assert "with other arguments" not in made.report.to_html()
    other = klb.report(made.quantized, parity=made.report.parity, weights="int2")
    size = other.contents()["size"]
    assert size["exported_bytes"] == klb.summary(made.quantized, weights="int2").file_bytes < size["file_bytes"]
    assert re.search(
        r"with other arguments than this report has:\s+bytes by layer are of an export of [\d.]+ kB", other.to_html()
    )


def test_the_worst_comes_first(made):
    noise = [float(row["snr_db"]) for row in made.contents["parity"]["layers"]]
    assert noise == sorted(noise)
    assert sorted(noise) == sorted(layer.snr_db for layer in made.report.parity.layers)
    clipped = [row["clipped"] for row in made.contents["ranges"]]
    assert clipped == sorted(clipped, reverse=True)
    assert clipped[0] > 0  # calibrated on a part of the images
    errors = {row["path"]: row["relative_error"] for row in made.contents["weights"]}
    assert next(iter(errors)) == "hidden"
    assert errors == {row.path: row.relative for row in klb.weight_errors(made.quantized).layers}


def test_without_a_file_keras_alone_is_compared(made):
    few = klb.report(made.quantized, reference=made.model, data=made.images, labels=made.labels)
    (output,), (full,) = few.outputs, made.report.outputs
    assert few.parity is None
    assert (output.snr_db, output.score.file) == (None, None)
    assert output.keras_reference_snr_db == pytest.approx(full.keras_reference_snr_db, abs=1e-4)
    assert output.score.keras == full.score.keras
    assert output.keras_reference_top1_agreement == full.keras_reference_top1_agreement
    with pytest.raises(ValueError, match=r"this report has none. Give the file"):
        few.model_explorer(made.folder / "none.json")


def test_what_does_not_fit_is_refused_before_anything_is_done(made, monkeypatch):
    path, calls = made.folder / "other.html", []
    monkeypatch.setattr(import_module("keras_lowbit.report.make"), "summary", lambda *a, **b: calls.append(a))
    with pytest.raises(ValueError, match=r"page.pdf'. Give one that ends in .html"):
        klb.report(made.quantized, path="page.pdf")
    with pytest.raises(OSError, match="cannot write"):
        klb.report(made.quantized, path=made.folder / "none" / "r.html")
    with pytest.raises(ValueError, match="verifies the file on data"):
        klb.report(made.quantized, file=made.folder / "m.tflite")
    with pytest.raises(ValueError, match="more than once, got an iterator"):
        klb.report(made.quantized, data=iter([made.images]))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install 'keras_lowbit\[report\]'"):
        klb.report(made.quantized, path=path)
    assert (calls, path.exists()) == ([], False)


def test_model_explorer_gets_a_value_for_every_stored_tensor(made, tmp_path):
    for value in ("snr_db", "max_steps", "exact"):
        made.report.model_explorer(tmp_path / "overlay.json", value)
        data = json.loads((tmp_path / "overlay.json").read_text(), parse_constant=pytest.fail)
        assert set(data) == {"name", "results", "thresholds"}
        assert [row["value"] for row in data["thresholds"]] == sorted(row["value"] for row in data["thresholds"])
        for layer in made.report.parity.layers:
            found = data["results"][layer.name]["value"]
            assert found == getattr(layer, value) or (found, layer.snr_db) == ("equal", np.inf)
    with pytest.raises(ValueError, match=r"no value 'snr'\. The most alike first: snr_db"):
        made.report.model_explorer(tmp_path / "none.json", "snr")


SCRIPT = """(() => {
  const table = page.document.querySelector("#parity"), heads = [...table.querySelectorAll("th")];
  const head = heads.find(one => one.textContent === "SNR"), column = heads.indexOf(head);
  const values = () => [...table.tBodies[0].rows].map(row => row.cells[column].dataset.value);
  const found = {first: values()};
  head.firstElementChild.click(); found.up = [values(), head.getAttribute("aria-sort")];
  head.firstElementChild.click(); found.down = [values(), head.getAttribute("aria-sort")];
  const root = page.document.documentElement;
  found.width = [root.scrollWidth - root.clientWidth, page.innerWidth];
  found.back = page.getComputedStyle(page.document.body).backgroundColor;
  found.text = page.document.body.innerText;
  found.pictures = page.document.querySelectorAll("#weights path.bars[d]").length;
  return found; })()"""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_the_page_works_in_a_browser(made, tmp_path, width, dark):
    contents = json.loads(json.dumps(made.contents))
    hostile = "<img src=x onerror=alert(1)>" + "long" * 60
    contents["layers"][0]["path"] = contents["weights"][0]["path"] = contents["model"] = hostile
    found, said = ask(html(contents), SCRIPT, tmp_path, width, dark=dark)
    assert said == []
    values = [str(row["snr_db"]) for row in contents["parity"]["layers"]]
    assert found["first"] == values
    assert found["up"] == [values, "ascending"]
    assert [float(value) for value in found["down"][0]] == sorted(map(float, values), reverse=True)
    assert found["down"][1] == "descending"
    assert found["width"] == [0, width]  # nothing sticks out
    assert found["text"].count(hostile) == 3
    assert found["pictures"] == len(contents["weights"])
    light = sum(map(int, re.findall(r"\d+", found["back"])[:3])) / 3 > 128
    assert light is not dark


@pytest.mark.slow
def test_the_browser_would_tell_of_a_broken_page(tmp_path):
    found, said = ask(
        "<!doctype html><script>nothing()</script><p style='width:2000px'>wide",
        "page.document.documentElement.scrollWidth",
        tmp_path,
    )
    assert found > 1280
    assert any("nothing is not defined" in line for line in said)
