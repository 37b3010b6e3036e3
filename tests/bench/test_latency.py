"""`klb.bench.latency`: figures with their conditions, and refusals."""

import json

import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.bench import packed, timing
from keras_lowbit.cli import main
from keras_lowbit.deploy.litert import writer as litert
from keras_lowbit.deploy.litert.format_choice import LatencyTable


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small and a larger file."""
    folder = tmp_path_factory.mktemp("bench")
    for name, channels in (("small", 16), ("large", 256)):
        litert.write(packed.layer(packed.Shape(100, channels, channels)), folder / f"{name}.tflite")
    return [folder / "small.tflite", folder / "large.tflite"]


def test_rows_conditions_and_ratio(files):
    report = klb.bench.latency(files, threads=1, repeats=12, warmup=2)
    small, large = report.rows
    assert (small.path, small.kernels, small.resolver) == (str(files[0]), "xnnpack", "AUTO")
    assert small.ratio == 1
    assert large.ratio == pytest.approx(large.median_ms / small.median_ms)
    for row in report.rows:
        assert 0 < row.p10_ms <= row.median_ms <= row.p90_ms
        assert row.size_bytes > 0
        assert row.batch_size == 1
    found = json.loads(report.to_json())
    assert (found["threads"], found["repeats"], found["warmup"]) == (1, 12, 2)
    assert found["machine"]["cpu"]
    assert found["machine"]["ai-edge-litert"].startswith("2.")
    for words in ("XNNPACK delegate", "12 interleaved repeats", "1 thread(s)", "median ms", "x first"):
        assert words in str(report)


def test_both_kernels_have_a_first_each(files):
    report = klb.bench.latency(files, repeats=2, warmup=0, xnnpack="both")
    assert [row.kernels for row in report.rows] == ["xnnpack", "xnnpack", "built-in", "built-in"]
    assert [row.ratio == 1 for row in report.rows] == [True, False, True, False]
    assert klb.bench.latency(files[0], repeats=1, xnnpack=False).rows[0].resolver == "BUILTIN_WITHOUT_DEFAULT_DELEGATES"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repeats": 0}, "repeats=0.*at least 1"),
        ({"threads": 0}, "threads=0"),
        ({"threads": True}, "threads=True"),
        ({"warmup": -1}, "warmup=-1.*at least 0"),
        ({"xnnpack": "on"}, "xnnpack='on'.*'both'"),
    ],
)
def test_arguments_that_mean_nothing(files, arguments, message):
    with pytest.raises(ValueError, match=message):
        klb.bench.latency(files, **arguments)


def test_files_that_are_none(files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No file at .*none\.tflite"):
        klb.bench.latency([*files, tmp_path / "none.tflite"])
    with pytest.raises(ValueError, match="got no files"):
        klb.bench.latency([])
    (tmp_path / "bad.tflite").write_bytes(b"\x00" * 64)
    with pytest.raises(ValueError, match=r"LiteRT \(xnnpack kernels\) refuses .*bad\.tflite"):
        klb.bench.latency([tmp_path / "bad.tflite"])


def test_calls_are_interleaved_and_everything_is_counted():
    order = []
    runs = [lambda name=name: order.append(name) for name in "abc"]
    times = timing.interleaved(runs, repeats=3, warmup=1, inner=[1, 2, 1])
    assert "".join(order) == "abc" + "abbc" + "bbca" + "cabb"
    assert times.shape == (3, 3)
    assert (times >= 0).all()
    assert timing.calls_for(lambda: None, 0.0) == 1


def test_packed_table_is_what_auto_reads(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(packed, "measure", lambda **given: measured(packed.LatencyTable, given))
    arguments = ["--output", str(tmp_path / "t.json"), "--repeats", "3"]
    assert main(["keras-lowbit", "bench", "packed", *arguments]) == 0
    found = LatencyTable.load(tmp_path / "t.json")
    shapes = ["1 x 16 -> 8", "16 x 8 -> 16", "16 x 4 -> 8, 9 taps, 2 groups", "16 x 8 -> 1, 9 taps"]
    assert [str(row) for row in found.rows] == shapes
    assert [row.int2 is None for row in found.rows] == [False, False, True, True]
    assert found.machine["repeats"] == 3
    assert "times int8: int4" in capsys.readouterr().out


_measure = packed.measure


def measured(_, given):
    shapes = [packed.Shape(1, 16, 8), packed.Shape(16, 8, 16), packed.Shape(16, 4, 8, "CONV_2D", 9, 2)]
    return _measure([*shapes, packed.Shape(16, 8, 1, "DEPTHWISE_CONV_2D", 9)], milliseconds=0.01, **given)


def test_packed_measures_what_a_file_has():
    for shape in packed.SHAPES:
        graph = packed.layer(shape)
        rows = [litert.to_bytes(graph, weights=kind)[1][0] for kind in shape.kinds]
        assert [row.weight_type for row in rows] == list(shape.kinds)
        assert [row.op for row in rows[1:]] == [shape.op] * (len(rows) - 1)
        assert rows[0].op == ("CONV_2D" if shape.op == "FULLY_CONNECTED" and shape.pixels > 1 else shape.op)
        assert np.unique(graph.tensors["y/kernel"].data).tolist() == [-1, 0, 1]


@pytest.mark.parametrize("flag", ["repeats", "threads"])
def test_packed_refuses_nonsense(flag, tmp_path, capsys):
    arguments = ["--output", str(tmp_path / "t.json"), f"--{flag}=0"]
    assert main(["keras-lowbit", "bench", "packed", *arguments]) == 2
    assert f"--{flag}=0" in capsys.readouterr().err
