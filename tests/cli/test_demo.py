"""The demo, cut short: its data, its table and its files. `make demo` runs it at full length."""

import functools
import shlex
import sys

import keras
import numpy as np
import pytest

from keras_lowbit.cli import app, demo
from tests.support.pages import DOCS


def test_digits_are_real_disjoint_and_in_range():
    (x_train, y_train), (x_test, y_test) = demo.load_digits()
    assert x_train.shape == (1438, 8, 8, 1)
    assert x_test.shape == (359, 8, 8, 1)
    assert (x_train.min(), x_train.max()) == (0, 1)
    assert np.bincount(y_test).min() >= 20
    assert np.bincount(y_train).min() >= 120
    known = {image.tobytes() for image in x_train}
    assert not any(image.tobytes() in known for image in x_test)


def test_table_shows_every_method_with_its_size():
    rows = [
        demo.Outcome("float", 0.9912, 0.9912, 98_765, "", [0.5]),
        demo.Outcome("sq-twn", 0.975, 0.9722, 12_345, "yes", [0.5]),
    ]
    lines = demo.table(rows, 400).splitlines()
    assert lines[1].split() == ["float", "99.12%", "99.12%", "98.8", "kB"]
    assert lines[2].split() == ["sq-twn", "97.50%", "97.22%", "12.3", "kB", "yes"]
    assert "one image is 0.25%" in lines[3]


@pytest.fixture
def trained(monkeypatch):
    """Names of the networks trained, without training them."""
    names = []

    def train(model, method, *arguments):
        names.append(method)
        return demo.Outcome(str(method), 0.5, 0.5, 1000, "yes", [0.4, 0.5])

    monkeypatch.setattr(demo, "train_quantized", train)
    monkeypatch.setattr(demo, "train_float", lambda model, digits, epochs, output: train(model, "float"))
    return names


def test_what_is_missing_is_said_before_anything_is_trained(trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_bytes(b"mine")
    assert app.main(["keras-lowbit", "demo", f"--output={tmp_path / 'file'}"]) == 2
    assert "File exists" in capsys.readouterr().err
    (tmp_path / "curves.png").mkdir()
    assert app.main(["keras-lowbit", "demo", f"--output={tmp_path}"]) == 2
    assert "it is a folder" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert app.main(["keras-lowbit", "demo", f"--output={tmp_path / 'out'}"]) == 2
    assert "pip install 'keras_lowbit[demo]'" in capsys.readouterr().err
    assert trained == []


def test_the_table_is_printed_before_the_picture_is_written(trained, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "draw_curves", full)
    assert app.main(["keras-lowbit", "demo", f"--output={tmp_path / 'out'}"]) == 2
    shown = capsys.readouterr()
    assert trained == ["float", *demo.METHODS]
    assert "sq-bwn" in shown.out
    assert "No space left" in shown.err


def test_curves_show_each_base_beside_its_sq_with_stages_and_nothing_clipped(tmp_path, monkeypatch):
    drawn, rng = [], np.random.default_rng(0)
    original = demo.figure
    monkeypatch.setattr(demo, "figure", lambda *size: drawn.append(original(*size)) or drawn[-1])
    curves = {method: list(rng.uniform(0.1, 0.99, 8)) for method in ("float", *demo.METHODS)}
    rows = [demo.Outcome(method, values[-1], 0.5, 1000, "yes", values) for method, values in curves.items()]
    demo.draw_curves(rows, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    for panel, base in zip(drawn[0].axes, ("twn", "bwn"), strict=True):
        texts = [text.get_text() for text in panel.get_legend().get_texts()]
        assert texts == ["float, at its end", base.upper(), f"SQ-{base.upper()}"]
        raw = [list(line.get_ydata()) for line in panel.lines if line.get_alpha() is not None]
        assert raw == [[100 * value for value in curves[method]] for method in (base, f"sq-{base}")]
        assert [line.get_xdata()[0] for line in panel.lines if line.get_linestyle() == ":"] == [2.5, 4.5, 6.5]
        low, high = panel.get_ylim()
        assert all(low < value < high for values in raw for value in values)
        assert panel.get_legend().get_window_extent().y1 <= panel.get_window_extent().y0  # outside
        assert panel.get_legend().get_window_extent().y0 >= 0


@pytest.fixture
def cut_short(monkeypatch):
    """Two batches of digits, step by step: compiling takes longer than the few epochs."""
    (x_train, y_train), (x_test, y_test) = demo.load_digits()
    digits = (x_train[:64], y_train[:64]), (x_test[:24], y_test[:24])
    monkeypatch.setattr(demo, "load_digits", lambda: digits)
    compile_ = keras.Model.compile
    monkeypatch.setattr(keras.Model, "compile", functools.partialmethod(compile_, run_eagerly=True))


@pytest.mark.slow(20)
@pytest.mark.usefixtures("cut_short")
@pytest.mark.filterwarnings("default")  # corrections from so few photographs may be taken back
def test_short_demo_runs_to_its_end(tmp_path, monkeypatch, capsys):
    arguments = ["keras-lowbit", "demo", "--epochs=4", "--float_epochs=4", f"--output={tmp_path / 'out'}"]
    assert app.main(arguments) == 0
    shown = capsys.readouterr().out
    table = [line.split() for line in shown.splitlines() if line.endswith((" yes", "kB  "))]
    assert [row[0] for row in table] == ["float", "twn", "sq-twn", "bwn", "sq-bwn"]
    files = {path.name for path in (tmp_path / "out").iterdir()}
    results = {"bwn.tflite", "curves.png", "float.tflite", "sq-bwn.tflite", "sq-twn.tflite", "twn.tflite"}
    assert files == results | {"digits.keras", "digits.npz", "labels.txt", "photos"}
    check_what_is_left(tmp_path / "out", monkeypatch, capsys)


def check_what_is_left(folder, monkeypatch, capsys):
    """The lines of the page on the command line run there as they stand; with fewer photographs, for time."""
    monkeypatch.chdir(folder)
    for photo in sorted((folder / "photos").iterdir())[4:]:
        photo.unlink()
    block = (DOCS / "command_line.md").read_text().split("$ cd demo_output\n")[1].split("```")[0]
    commands = [shlex.split(part) for line in block.splitlines() for part in line.removeprefix("$ ").split(" && ")]
    assert [command[1] for command in commands] == ["convert", "compare", "benchmark", "train", "verify"]
    for command in commands:
        assert app.main(command) == 0, command
    shown = capsys.readouterr()
    assert "top-1 agreement" in shown.out
    assert sorted(path.name for path in folder.glob("[mq].*")) == [
        "m.html",
        "m.json",
        "m.keras",
        "m.tflite",
        "q.keras",
        "q.tflite",
    ]
