"""`keras-lowbit benchmark`: rows for files and threads, a phone behind adb, and the commands where there is none."""

import json
import shutil
import sys

import keras
import pytest

import keras_lowbit as klb
from tests.support.commands import program

DEVICES = {
    "one": "emulator-5554\tdevice\n",
    "none": "",
    "locked": "0123\tunauthorized\n",
    "two": "a\tdevice\nb\tdevice\n",
}
ADB = """#!{python}
import json, sys
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1] == "devices":
    print("List of devices attached\\n" + {devices!r})
elif sys.argv[2].endswith("benchmark_model") and sys.argv[1] == "shell":
    if {fails!r}:
        sys.exit("/system/bin/sh: /data/local/tmp/benchmark_model: not found")
    threads = int(sys.argv[4].split("=")[1])
    print("count=5 first=9000 curr=9000 min=9000 max=9000 avg=9000 std=1")
    times = f"min=1000 max=3000 avg={{8000 / threads}} std=10 p5=1000 median=1900 p95=2900"
    print("count=50 first=2 curr=2", times, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def file(files):
    path = files.folder / "q.tflite"
    klb.export_litert(keras.saving.load_model(files.quantized), path)
    return path


@pytest.fixture
def adb(tmp_path, monkeypatch):
    """Puts an adb that notes its arguments on PATH, alone; a function that says what it reaches, and gives the notes."""
    folder, log = tmp_path / "bin", tmp_path / "log"
    folder.mkdir()

    def put(devices, fails=False):
        script = ADB.format(python=sys.executable, log=str(log), devices=DEVICES[devices], fails=fails)
        (folder / "adb").write_text(script)
        (folder / "adb").chmod(0o755)
        log.write_text("")
        return lambda: [json.loads(line) for line in log.read_text().splitlines()]

    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    return put


@pytest.mark.slow
def test_the_program_measures_files_on_threads(file, tmp_path):
    other = tmp_path / "other.tflite"
    shutil.copy(file, other)
    found = program("benchmark", "--runs=3", file, "--threads", "1", "2", other, "--json")
    assert found.status == 0, found
    rows = found.fields["rows"]
    assert [(row["path"], row["threads"]) for row in rows] == [(str(p), n) for n in (1, 2) for p in (file, other)]
    assert all(0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"] for row in rows)
    assert {row["size_bytes"] for row in rows} == {file.stat().st_size}
    assert found.fields["machine"]["cpu"]


def test_the_table_names_machine_and_counts(call, file):
    found = call("benchmark", file, "--threads=1", "2", "--runs", 2)
    lines = found.out.splitlines()
    assert [line.split()[1] for line in lines[2:4]] == ["1", "2"]
    assert "2 calls in turns" in lines[4]


def test_a_phone_is_measured_by_the_commands(call, file, adb, tmp_path):
    notes, binary = adb("one"), tmp_path / "binary"
    binary.write_bytes(b"\x7fELF")
    found = call("benchmark", file, "--adb", "--binary", binary, "--threads", 1, 2, "--json")
    assert found.status == 0, found
    assert [(row["threads"], row["mean_ms"], row["median_ms"], row["runs"]) for row in found.fields["rows"]] == [
        (1, 8.0, 1.9, 50),
        (2, 4.0, 1.9, 50),
    ]
    asked, *rest = notes()
    assert asked == ["devices"]
    assert [" ".join(["adb", *arguments]) for arguments in rest] == found.fields["commands"]
    assert rest[0] == ["push", str(binary), "/data/local/tmp/benchmark_model"]
    assert rest[2] == ["push", str(file), "/data/local/tmp/keras_lowbit_0.tflite"]
    assert "--use_xnnpack=true" in rest[3]
    assert "mean ms" in call("benchmark", file, "--adb").out


@pytest.mark.parametrize(
    ("devices", "words"), [("none", "reaches no phone"), ("locked", "0123 (unauthorized)"), ("two", "ANDROID_SERIAL=a")]
)
def test_without_a_phone_the_commands_are_printed(call, file, adb, devices, words):
    notes = adb(devices)
    found = call("benchmark", file, "--adb")
    assert found.status == 1
    said, *commands = found.out.splitlines()
    assert words in said
    assert commands[0] == f"adb push {file} /data/local/tmp/keras_lowbit_0.tflite"
    assert notes() == [["devices"]]


def test_one_of_several_phones_is_chosen_as_adb_does(call, file, adb, monkeypatch):
    adb("two")
    monkeypatch.setenv("ANDROID_SERIAL", "b")
    assert call("benchmark", file, "--adb").status == 0
    monkeypatch.setenv("ANDROID_SERIAL", "c")
    assert "reaches no phone ANDROID_SERIAL=c" in call("benchmark", file, "--adb").out


def test_without_adb_the_commands_are_printed(call, file, adb):
    fields = call("benchmark", file, "--adb", "--threads", 4, "--json").fields
    assert "no adb on PATH" in fields["reason"]
    assert fields["rows"] == []
    assert "--num_threads=4 --num_runs=50 --use_xnnpack=true" in fields["commands"][1]


def test_a_phone_that_fails_is_one_sentence(call, file, adb):
    adb("one", fails=True)
    assert call("benchmark", file, "--adb").refused(
        "ended with status 1", "benchmark_model: not found", "Give --binary"
    )


def test_bad_input_is_one_sentence(call, files, file, tmp_path):
    assert call("benchmark").refused("expected FILE...")
    assert call("benchmark", tmp_path / "none.tflite").refused("no file", "none.tflite")
    assert call("benchmark", file, files.model).refused("small.keras is no .tflite file")
    assert call("benchmark", file, "--threads", 0).refused("--threads=0")
    assert call("benchmark", file, "--threads", "two").refused("two")
    assert call("benchmark", file, "--threads", 1, "--runs=0").refused("--runs=0")
    assert call("benchmark", file, "--binary=none").refused("--adb")
    assert call("benchmark", file, "--adb", "--binary=none").refused("no file 'none'")
    (tmp_path / "half.tflite").write_bytes(file.read_bytes()[:500])
    assert call("benchmark", tmp_path / "half.tflite").refused("half.tflite")
