"""A benchmark's file and flags: refused before anything is measured, written after everything is printed."""

import importlib
import json

import pytest

from keras_lowbit.cli import main
from keras_lowbit.cli.app import BENCH


def bench(name, *arguments):
    return main(["keras-lowbit", "bench", name, *arguments])


@pytest.mark.parametrize("name", BENCH)
@pytest.mark.parametrize(("place", "words"), [("none/x.json", "Expected an existing folder"), (".", "is a folder")])
def test_a_file_that_cannot_be_written_is_refused_at_once(name, place, words, tmp_path, capsys):
    assert bench(name, "--output", str(tmp_path / place)) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", BENCH)
def test_the_file_must_be_named(name, capsys):
    assert bench(name) == 2
    assert "--output must have a value" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "flag", "words"),
    [
        ("kernels", "--isa=sse9", "sse9 does not run here; available: "),
        ("kernels", "--only=LeNet", "ResNet-50|MobileNetV2|dense"),
        ("train_step", "--recipe=none", "Unknown recipe 'none'. Known recipes, the most alike first: "),
        ("runtime", "--threads=0", "0 is not a positive integer"),
        ("runtime", "--repeats=0", "0 is not a positive integer"),
    ],
)
def test_a_wrong_value_is_refused_with_what_fits(name, flag, words, tmp_path, capsys):
    assert bench(name, "--output", str(tmp_path / "x.json"), flag) == 2
    assert words in capsys.readouterr().err


@pytest.fixture
def unmeasured(monkeypatch):
    """Returns a function: the module of a benchmark that measures nothing."""

    def replaced(name):
        module = importlib.import_module(f"keras_lowbit.bench.{name}")
        for function, result in (("measure", {"rows": []}), ("markdown", "the figures"), ("table", "the table")):
            monkeypatch.setattr(module, function, lambda *args, result=result, **kwargs: result)
        monkeypatch.setattr(module, "machine_row", lambda *args: "the row", raising=False)
        monkeypatch.setattr("keras.applications.ResNet50", lambda **arguments: None)
        monkeypatch.setattr("tensorflow.config.threading.set_intra_op_parallelism_threads", lambda count: None)
        monkeypatch.setattr("tensorflow.config.threading.set_inter_op_parallelism_threads", lambda count: None)
        return module

    return replaced


@pytest.mark.parametrize("name", ["kernels", "runtime"])
def test_figures_are_printed_before_they_are_written(name, unmeasured, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unmeasured(name), "write_report", full)
    assert bench(name, "--output", str(tmp_path / "x.json")) == 2
    shown = capsys.readouterr()
    assert "the figures" in shown.out
    assert "No space left" in shown.err


def test_flags_reach_what_is_measured_and_the_next_call_starts_anew(unmeasured, tmp_path, monkeypatch):
    given = []
    module = unmeasured("runtime")
    monkeypatch.setattr(module, "measure", lambda model, *arguments: given.append(arguments) or {"rows": []})
    path = tmp_path / "x.json"
    assert bench("runtime", "--threads=1", "--threads=2", "--repeats=3", "--output", str(path)) == 0
    assert json.loads(path.read_text()) == {"rows": []}
    assert bench("runtime", "--output", str(path)) == 0
    assert given == [([1, 2], 3), ([1], 20)]
