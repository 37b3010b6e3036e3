"""latency: how long .tflite files take on this machine, side by side."""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_lowbit.bench.machine import machine
from keras_lowbit.bench.timing import interleaved
from keras_lowbit.deploy.interpreters import RESOLVERS, make_interpreter
from keras_lowbit.files import FilePath, name_of, printable
from keras_lowbit.tables import table

KERNELS = {"xnnpack": "XNNPACK delegate", "built-in": "built-in kernels"}


@dataclasses.dataclass(frozen=True)
class Latency:
    """One file on one set of kernels. Times in milliseconds for one call: median, 10th and 90th percentile.

    path: of the file.   kernels: "xnnpack" or "built-in".   median_ms, p10_ms, p90_ms: of one call.   size_bytes: of the file.
    batch_size: samples in a call.
    ratio: median over that of the first file on the same kernels.   resolver: LiteRT's name of the kernels.

    >>> row = klb.bench.latency("m.tflite", threads=1, repeats=5).rows[0]
    >>> row.p10_ms <= row.median_ms <= row.p90_ms
    True
    """

    path: str
    kernels: str
    resolver: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    ratio: float
    size_bytes: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class LatencyReport:
    """What `latency` measured, and under what conditions; prints as a table.

    rows: a `Latency` for each file and set of kernels.   threads, repeats, warmup: as given.   machine: processor and versions.

    >>> report = klb.bench.latency("m.tflite", threads=1, repeats=5)
    >>> report.repeats, len(report.rows)
    (5, 1)
    """

    rows: tuple[Latency, ...]
    threads: int
    repeats: int
    warmup: int
    machine: dict[str, Any]

    def to_json(self) -> str:
        """All figures and conditions as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def __str__(self) -> str:
        heads = ("file", "kernels", "median ms", "p10", "p90", "x first", "bytes", "batch")
        rows = [
            (
                printable(r.path),
                KERNELS[r.kernels],
                r.median_ms,
                r.p10_ms,
                r.p90_ms,
                r.ratio,
                r.size_bytes,
                r.batch_size,
            )
            for r in self.rows
        ]
        about = self.machine
        conditions = (
            f"{self.threads} thread(s), {self.repeats} interleaved repeats after {self.warmup} to warm up; {about['cpu']}, "
            f"{about['cores']} cores, {about['system']}, ai-edge-litert {about['ai-edge-litert']}"
        )
        return f"{table(heads, rows)}\n{conditions}"


def latency(
    paths: FilePath | Sequence[FilePath],
    threads: int = 1,
    repeats: int = 50,
    *,
    warmup: int = 5,
    xnnpack: bool | str = True,
) -> LatencyReport:
    """Median time of one call of each file, interleaved, on random inputs.

    paths: .tflite files, of any tool; ratios are to the first.   threads: of LiteRT.   repeats, warmup: calls.
    xnnpack: True (what an app gets), False (LiteRT's built-in kernels) or "both".
    Returns a `LatencyReport`; `print` it.
    Raises FileNotFoundError for a missing file, ValueError for no files, for a file that LiteRT refuses, and for counts
    below 1.

    >>> report = klb.bench.latency(["float.tflite", "m.tflite"], threads=1, repeats=5)
    >>> [row.path for row in report.rows]
    ['float.tflite', 'm.tflite']
    """
    files = [name_of(p) for p in ([paths] if isinstance(paths, (str, bytes, os.PathLike)) else paths)]
    _check(files, threads, repeats, warmup, xnnpack)
    kinds = {True: ["xnnpack"], False: ["built-in"], "both": ["xnnpack", "built-in"]}[xnnpack]
    ends = [(path, kind, make_interpreter(kind, threads, model_path=path)) for kind in kinds for path in files]
    for _, _, interpreter in ends:
        _fill(interpreter)
    times = interleaved([interpreter.invoke for _, _, interpreter in ends], repeats, warmup)
    medians = np.median(times, axis=1)
    rows = []
    for place, (path, kind, interpreter) in enumerate(ends):
        first = medians[place // len(files) * len(files)]
        low, high = np.percentile(times[place], [10, 90])
        shape = interpreter.get_input_details()[0]["shape"]
        median, p10, p90 = (float(value) for value in (medians[place], low, high))
        batch = int(shape[0]) if len(shape) else 1
        size, ratio = os.path.getsize(path), float(median / first)
        rows.append(Latency(path, kind, RESOLVERS[kind], median, p10, p90, ratio, size, batch))
    return LatencyReport(tuple(rows), threads, repeats, warmup, machine())


def _check(files: list[str], threads: int, repeats: int, warmup: int, xnnpack: Any) -> None:
    if not files:
        raise ValueError("latency got no files. Give at least one path of a .tflite file.")
    for path in files:
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"No file at {path!r}. Write it first, for example with keras_lowbit.export_litert."
            )
    for name, value, least in (("threads", threads, 1), ("repeats", repeats, 1), ("warmup", warmup, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"latency got {name}={value!r}; give a whole number of at least {least}.")
    if xnnpack not in (True, False, "both"):
        raise ValueError(f"latency got xnnpack={xnnpack!r}; give True, False or 'both'.")


def _fill(interpreter: Any) -> None:
    """Random inputs: codes over the whole range for integers, uniform reals in [0, 1) for floats."""
    rng = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        kind, shape = np.dtype(detail["dtype"]), tuple(detail["shape"])
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            value = rng.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)
        else:
            value = rng.random(shape).astype(kind)
        interpreter.set_tensor(detail["index"], value)
