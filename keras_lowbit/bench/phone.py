"""Latency on a phone: LiteRT's own `benchmark_model`, run there by adb."""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence

FOLDER = "/data/local/tmp"
BINARY = f"{FOLDER}/benchmark_model"
BINARIES = "https://ai.google.dev/edge/litert/models/measurement"
_PATIENCE_S = 600


@dataclasses.dataclass(frozen=True)
class PhoneLatency:
    """One file with one number of threads, as `benchmark_model` measured it; milliseconds for one call.

    median_ms: None where this `benchmark_model` gives means alone.   runs: calls that were measured.
    """

    path: str
    threads: int
    mean_ms: float
    std_ms: float
    min_ms: float
    max_ms: float
    median_ms: float | None
    runs: int


@dataclasses.dataclass(frozen=True)
class AdbCommand:
    """A call of adb. arguments: behind "adb".   measures: (file, threads) whose times it prints; None for the others."""

    arguments: tuple[str, ...]
    measures: tuple[str, int] | None = None

    def __str__(self) -> str:
        return shlex.join(("adb", *self.arguments))


def adb_commands(files: Sequence[str], threads: Sequence[int], runs: int, binary: str | None) -> list[AdbCommand]:
    """What measures .tflite files on a phone, in order; what is put there goes at the end, `benchmark_model` stays.

    binary: `benchmark_model` for Android on this machine; None where the phone has it.
    """
    found = []
    if binary is not None:
        found += [AdbCommand(("push", binary, BINARY)), AdbCommand(("shell", "chmod", "+x", BINARY))]
    for place, path in enumerate(files):
        there = f"{FOLDER}/keras_lowbit_{place}.tflite"
        found.append(AdbCommand(("push", path, there)))
        for count in threads:
            flags = (f"--graph={there}", f"--num_threads={count}", f"--num_runs={runs}", "--use_xnnpack=true")
            found.append(AdbCommand(("shell", BINARY, *flags), (path, count)))
        found.append(AdbCommand(("shell", "rm", "-f", there)))
    return found


def why_no_phone() -> str:
    """Why adb can run nothing: it is not here, or there is not one phone that it reaches; "" if it can."""
    if shutil.which("adb") is None:
        return "there is no adb on PATH (it comes with Android's platform tools)"
    try:
        lines = _adb(AdbCommand(("devices",))).splitlines()
    except OSError as error:
        return str(error)
    states = dict(line.split("\t")[:2] for line in lines if "\t" in line)
    wanted = os.environ.get("ANDROID_SERIAL")
    ready = [serial for serial, state in states.items() if state == "device" and wanted in (None, "", serial)]
    if len(ready) > 1:
        return f"adb reaches {', '.join(ready)}: say which with ANDROID_SERIAL={ready[0]}"
    if not ready:
        seen = ", ".join(f"{serial} ({state})" for serial, state in states.items())
        which = f" ANDROID_SERIAL={wanted}" if wanted else ""
        return f"adb reaches no phone{which}" + (f", but sees {seen}: unlock it and allow debugging" if seen else "")
    return ""


def measure(commands: Sequence[AdbCommand]) -> list[PhoneLatency]:
    """Runs the commands one after the other. OSError, with what adb or the phone said, where one of them fails."""
    found = []
    for command in commands:
        said = _adb(command)
        if command.measures is not None:
            found.append(_latency(said, *command.measures))
    return found


def _adb(command: AdbCommand) -> str:
    """What a command prints, on both streams: `benchmark_model` writes to either."""
    try:
        done = subprocess.run(
            ["adb", *command.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{command} gave no result in {_PATIENCE_S} s") from error
    said = done.stdout.decode(errors="replace")
    if done.returncode:
        last = (said.strip().splitlines() or ["nothing"])[-1]
        remedy = f". Give --binary, its Android build from {BINARIES}" if BINARY in last else ""
        raise OSError(f"{command} ended with status {done.returncode} and said {last!r}{remedy}")
    return said


def _latency(said: str, path: str, threads: int) -> PhoneLatency:
    """The last line of counts: those before it are of the calls that warm up. Microseconds there."""
    lines = [line for line in said.splitlines() if re.search(r"\bcount=\d+ ", line)]
    us = {name: float(value) for name, value in re.findall(r"(\w+)=([\d.e+]+)", lines[-1] if lines else "")}
    if not {"count", "avg", "std", "min", "max"} <= set(us):
        last = (said.strip().splitlines() or ["nothing"])[-1]
        raise OSError(f"benchmark_model printed no times of {path!r}; its last line: {last!r}")
    ms = {name: value / 1000 for name, value in us.items()}
    spread = (ms["std"], ms["min"], ms["max"], ms.get("median"))
    return PhoneLatency(path, threads, ms["avg"], *spread, runs=int(us["count"]))
