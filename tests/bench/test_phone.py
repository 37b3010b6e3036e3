"""`bench.phone`: the commands, and what `benchmark_model` prints."""

import pytest

from keras_lowbit.bench import phone

# The lines that count, of benchmark_model on an Android phone; the second is of the calls behind the warm-up.
SAID = """\
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=15 first=49060 curr=33682 min=32825 max=49060 avg=34825.1 std=3930
INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=50 first=32891 curr=33978 min=32641 max=34005 avg=33209.4 std=450{more}
INFO: Inference timings in us: Init: 855, First inference: 49060, Warmup (avg): 34825.1, Inference (avg): 33209.4
"""


def test_the_commands_are_those_of_the_manual():
    found = [str(command) for command in phone.adb_commands(["a b.tflite"], [1, 4], 50, "their/benchmark_model")]
    there = "/data/local/tmp/keras_lowbit_0.tflite"
    runs = [
        f"adb shell /data/local/tmp/benchmark_model --graph={there} --num_threads={threads} --num_runs=50 --use_xnnpack=true"
        for threads in (1, 4)
    ]
    assert found == [
        "adb push their/benchmark_model /data/local/tmp/benchmark_model",
        "adb shell chmod +x /data/local/tmp/benchmark_model",
        f"adb push 'a b.tflite' {there}",
        *runs,
        f"adb shell rm -f {there}",
    ]
    assert len(phone.adb_commands(["a.tflite", "b.tflite"], [1], 50, None)) == 6


@pytest.mark.parametrize(("more", "median"), [("", None), (" p5=32700 median=33100 p95=33900", 33.1)])
def test_times_are_those_behind_the_warm_up(monkeypatch, more, median):
    monkeypatch.setattr(phone, "_adb", lambda command: SAID.format(more=more))
    commands = phone.adb_commands(["a.tflite"], [2], 50, None)
    assert phone.measure(commands) == [phone.PhoneLatency("a.tflite", 2, 33.2094, 0.45, 32.641, 34.005, median, 50)]


def test_no_times_are_an_error_with_the_last_line(monkeypatch):
    monkeypatch.setattr(phone, "_adb", lambda command: "INFO: STARTING!\nERROR: Failed to load graph\n")
    with pytest.raises(OSError, match=r"no times of 'a\.tflite'.*Failed to load graph"):
        phone.measure(phone.adb_commands(["a.tflite"], [2], 50, None))
