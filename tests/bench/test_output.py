"""A benchmark's file: refused before anything is measured, written after everything is printed."""

import importlib

import pytest

FLAGS = {"clusters": "--out", "kernels": "--output", "packed": "--out", "runtime": "--output", "train_step": "--out"}


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize(("place", "words"), [("none/x.json", "no folder that you may write to"), (".", "is a folder")])
def test_a_file_that_cannot_be_written_is_refused_at_once(name, place, words, tmp_path, capsys):
    module = importlib.import_module(f"keras_lowbit.bench.{name}")
    with pytest.raises(SystemExit, match="2"):
        module.main([FLAGS[name], str(tmp_path / place)])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["kernels", "runtime"])
def test_figures_are_printed_before_they_are_written(name, tmp_path, monkeypatch, capsys):
    module = importlib.import_module(f"keras_lowbit.bench.{name}")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    for function, result in (("measure", {"rows": []}), ("markdown", "the figures"), ("table", "the table")):
        monkeypatch.setattr(module, function, lambda *args, result=result, **kwargs: result)
    monkeypatch.setattr("keras.applications.ResNet50", lambda **arguments: None)
    monkeypatch.setattr("tensorflow.config.threading.set_intra_op_parallelism_threads", lambda count: None)
    monkeypatch.setattr("tensorflow.config.threading.set_inter_op_parallelism_threads", lambda count: None)
    monkeypatch.setattr(module, "atomic_write", full)
    with pytest.raises(OSError, match="No space left"):
        module.main([FLAGS[name], str(tmp_path / "x.json")])
    assert "the figures" in capsys.readouterr().out
