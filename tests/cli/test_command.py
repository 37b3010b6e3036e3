"""The program as a shell runs it: what it leaves out of standard error, and what it must not."""

import signal
import subprocess
import sys

import pytest

import keras_lowbit_command
from tests.support.commands import program
from tests.support.process import ROOT

STARTING = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795962571.553554   23023 port.cc:153] oneDNN custom operations are on. You may see slightly different
E0000 00:00:1795962968.292433   29467 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error: Failed call
I0000 00:00:1795965618.941217   15082 generator_dataset_op.cc:213] Memory patch applied: M_TRIM_THRESHOLD=128 kb was set.
To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow with the appropriate compiler flags.
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
"""


def test_start_up_lines_are_left_out_and_verbose_shows_them():
    quiet, verbose = program("recipes", "nothing"), program("recipes", "nothing", "--verbose")
    assert quiet.refused("Unknown recipe 'nothing'")
    assert quiet.err.count("\n") == 2
    assert verbose.status == 2
    assert "Traceback" in verbose.err
    assert "oneDNN" in verbose.err or "absl::InitializeLog" in verbose.err


def filtered(script):
    """Standard error of a script, behind the filter, and how its process ended."""
    source = f"""
import sys, keras_lowbit_command
def run():
    import os, time
    {script}
keras_lowbit_command._run = run
sys.exit(keras_lowbit_command.main())
"""
    found = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, timeout=60, check=False)
    return found.stderr.decode(), found.returncode


def test_only_whole_start_up_lines_are_left_out():
    said, status = filtered(
        f"os.write(2, {STARTING.encode()!r} + b'W0000 00:00:1.2  3 other.cc:1] mind this\\nno end'); return 3"
    )
    assert (said, status) == ("W0000 00:00:1.2  3 other.cc:1] mind this\nno end", 3)


def test_what_is_written_just_before_a_signal_kills_the_process_comes_through():
    said, status = filtered("os.write(2, b'the reason'); os.abort()")
    assert (said, status) == ("the reason", -signal.SIGABRT)


def test_a_line_shows_before_it_ends():
    said, status = filtered("os.write(2, b'10 %'); time.sleep(1); os.write(2, b' 20 %'); return 0")
    assert (said, status) == ("10 % 20 %", 0)


@pytest.mark.parametrize("line", STARTING.splitlines())
def test_each_start_up_line_is_known(line):
    assert keras_lowbit_command.STARTING.match(line.encode())
