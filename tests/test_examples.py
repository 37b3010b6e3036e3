"""The programs of examples/, each from its data to a verified file, at sizes that train in seconds; one process for all."""

import runpy

import pytest

from tests.support.process import ROOT

FOLDER = ROOT / "examples"


def run(name, *arguments):
    """What `main` of an example gives."""
    return runpy.run_path(str(FOLDER / f"{name}.py"), run_name="example")["main"](list(map(str, arguments)))


def test_every_example_is_run_here_and_listed():
    programs = {path.stem for path in FOLDER.glob("*.py")}
    assert programs == {"detector", "keyword_spotting", "photos", "segmentation"}
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert {name for name in programs if f"[{name}.py]({name}.py)" not in readme} == set()


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    """What the programs write goes there."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow(8)
@pytest.mark.filterwarnings("ignore:.*did not help:UserWarning")  # few data
def test_photos():
    parity = run("photos", "--size", 24, "--limit", 96, "--epochs", 4)
    assert parity.ok
    assert parity.outputs[0].score.file > 0.8


@pytest.mark.slow(8)
def test_keyword_spotting():
    options = {"words": 4, "samples": 400, "width": 16, "blocks": 1, "epochs": 6}
    found = run("keyword_spotting", *(word for name, value in options.items() for word in (f"--{name}", value)))
    assert found["int8"]["verified"]
    assert found["ternary"]["verified"]
    assert min(kind["accuracy"] for kind in found.values()) > 0.5  # one of four by chance


@pytest.mark.slow(8)
def test_segmentation():
    found = run("segmentation", "--pictures", 96, "--width", 8, "--depth", 1, "--epochs", 6)
    assert found["verified"]
    assert found["file"] > 0.5
    assert abs(found["file"] - found["float"]) < 0.05


@pytest.mark.slow(8)
@pytest.mark.filterwarnings("ignore:.*did not help:UserWarning")  # few data
def test_detector():
    found = run("detector", "--pictures", 600, "--width", 8, "--epochs", 6)
    assert found["verified"]
    assert found["file"]["there"] > 0.85
    assert all(abs(found["file"][name] - value) < 0.05 for name, value in found["float"].items())
