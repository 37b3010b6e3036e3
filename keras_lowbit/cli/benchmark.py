"""keras-lowbit benchmark: how long .tflite files take, on this machine or on a phone, and their sizes.

    keras-lowbit benchmark m.tflite --threads 1 2
    keras-lowbit benchmark int8.tflite int4.tflite --runs 200 --json
    keras-lowbit benchmark m.tflite --adb --binary android_aarch64_benchmark_model

On this machine: one call of each file on random inputs, with XNNPACK, files in turns; the spread is the 10th and the 90th
percentile. With --adb LiteRT's benchmark_model measures on the phone that adb reaches (--binary puts it there; without it the
phone has it in /data/local/tmp already). Exit status 1 where there is no adb or no phone: the commands to run are printed then.
"""

import dataclasses
import os
from typing import Any

from absl import flags

from keras_lowbit.bench import phone
from keras_lowbit.bench.latency import latency
from keras_lowbit.bench.machine import machine
from keras_lowbit.cli.options import define_json, show, working
from keras_lowbit.files import printable
from keras_lowbit.tables import table

FLAGS = flags.FlagValues()
define_json(FLAGS)
flags.DEFINE_multi_integer(
    "threads", [1], "threads of LiteRT; several numbers are measured each", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_integer("runs", 50, "calls of each file, after a few to warm up", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_bool("adb", False, "measure on a phone in place of this machine", flag_values=FLAGS)
flags.DEFINE_string("binary", None, "benchmark_model for Android, to put on the phone", flag_values=FLAGS)
ARGUMENTS = ("FILE...",)
SEVERAL = ("threads",)
IDENTIFIER = b"TFL3"  # of the flatbuffers that are .tflite files, behind their first four bytes


def run(values: Any, *files: str) -> int:
    """Measures and prints one row for each file and number of threads."""
    for path in files:
        _check_file(path)
    if values.binary is not None and not values.adb:
        raise flags.Error("--binary is what runs on a phone: give --adb too")
    if values.binary is not None and not os.path.isfile(values.binary):
        raise FileNotFoundError(
            f"no file {printable(values.binary)!r}. --binary is benchmark_model from {phone.BINARIES}"
        )
    names, counts = list(dict.fromkeys(files)), list(dict.fromkeys(values.threads))
    return (_on_phone if values.adb else _here)(values, names, counts)


def _check_file(path: str) -> None:
    """Also for a phone, which would say less."""
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"no file {printable(path)!r}. FILE is a .tflite file, as keras-lowbit convert writes it"
        )
    with open(path, "rb") as stream:
        if stream.read(8)[4:] != IDENTIFIER:
            raise ValueError(
                f"{printable(path)} is no .tflite file: it does not begin as one. FILE is what LiteRT runs"
            )


def _here(values: Any, files: list[str], threads: list[int]) -> int:
    with working(values):
        reports = {count: latency(files, count, values.runs) for count in threads}
    rows = [
        {
            "path": row.path,
            "threads": count,
            **{name: getattr(row, name) for name in ("median_ms", "p10_ms", "p90_ms", "size_bytes", "batch_size")},
        }
        for count, report in reports.items()
        for row in report.rows
    ]
    heads = ("file", "threads", "median ms", "p10", "p90", "bytes")
    cells = [
        (printable(row["path"]), *(row[name] for name in ("threads", "median_ms", "p10_ms", "p90_ms", "size_bytes")))
        for row in rows
    ]
    about = machine()
    conditions = f"{values.runs} calls in turns; {about['cpu']}, {about['cores']} cores, {about['system']}"
    fields = {"device": "this machine", "machine": about, "runs": values.runs, "rows": rows}
    show(values, f"{table(heads, cells)}\n{conditions}, LiteRT {about['ai-edge-litert']}, XNNPACK", fields)
    return 0


def _on_phone(values: Any, files: list[str], threads: list[int]) -> int:
    commands = phone.adb_commands(files, threads, values.runs, values.binary)
    if reason := phone.why_no_phone():
        lines = [f"Nothing was measured: {reason}. With a phone connected these commands measure:", *map(str, commands)]
        fields = {"device": None, "reason": reason, "commands": list(map(str, commands)), "rows": []}
        show(values, "\n".join(lines), fields)
        return 1
    rows = [{**dataclasses.asdict(row), "size_bytes": os.path.getsize(row.path)} for row in phone.measure(commands)]
    heads = ("file", "threads", "median ms", "mean ms", "std", "min", "max", "calls", "bytes")
    names = ("threads", "median_ms", "mean_ms", "std_ms", "min_ms", "max_ms", "runs", "size_bytes")
    text = table(heads, [(printable(row["path"]), *(row[name] for name in names)) for row in rows])
    show(values, text, {"device": "phone", "commands": list(map(str, commands)), "rows": rows})
    return 0
