"""The CUDA benchmark with PyTorch's kernels among ours, by turns in one process: `torch_bench.py LIBRARY [--batch 64]`.

LIBRARY: libcuda_api_bench.so of the build. Prints JSON on standard output, as `cuda_bench` does, with the opponents' rows and,
for every row of ours, how many times as fast it is. Needs PyTorch with CUDA; without a device it says so and ends with 77.

Opponents: cuDNN's float16 convolutions, channels last; cuBLAS in float16 and int8 for dense layers and, in int8, for 1x1
convolutions; a ResNet-50 of the same layers in float16, eager and compiled (with a CUDA graph). What one of them cannot do is a
row with its own words in place of figures.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

NO_DEVICE = 77
COLD_BYTES, MOST_COPIES, CALLS = 256 << 20, 64, 8  # as bench/cuda_jobs_bench.h
# What the issue asks for: weights, opponent, list, the least ratio.
GOALS = (
    ("ternary", "cuDNN float16", "ResNet-50", 1.5),
    ("ternary", "cuBLAS float16", "dense 25088->4096, 1 row", 6.0),
    ("ternary", "cuBLAS int8", "dense 25088->4096, 1 row", 3.0),
    ("ternary", "PyTorch float16, compiled", "networks", 1.3),
)


class Library:
    """Our kernels, from the shared library of the benchmark's jobs."""

    def __init__(self, path: Path) -> None:
        """path: of libcuda_api_bench.so."""
        self._calls = ctypes.CDLL(str(path))
        for name in ("Device", "Jobs"):
            getattr(self._calls, f"KlbBench{name}").restype = ctypes.c_char_p
        self._calls.KlbBenchJobs.argtypes = [ctypes.c_int64]
        self._calls.KlbBenchOpen.restype = ctypes.c_void_p
        self._calls.KlbBenchOpen.argtypes = [ctypes.c_int64, ctypes.c_int, ctypes.c_int]
        self._calls.KlbBenchMilliseconds.restype, self._calls.KlbBenchWeightBytes.restype = (
            ctypes.c_double,
            ctypes.c_int64,
        )
        for name in ("Milliseconds", "WeightBytes", "Close"):
            getattr(self._calls, f"KlbBench{name}").argtypes = [ctypes.c_void_p]

    def device(self) -> dict[str, Any]:
        """The device and its ceilings, measured now; empty where there is none."""
        said = self._calls.KlbBenchDevice()
        return json.loads(said) if said else {}

    def jobs(self, batch: int) -> dict[str, Any]:
        """Names of the kinds of weights, and the jobs."""
        return json.loads(self._calls.KlbBenchJobs(batch))

    def open(self, batch: int, job: int, weights: int) -> tuple[Callable[[], float], int, Callable[[], None]]:
        """Milliseconds of a call, bytes of its weights, and how to close it."""
        runner = self._calls.KlbBenchOpen(batch, job, weights)
        return (
            lambda: self._calls.KlbBenchMilliseconds(runner),
            self._calls.KlbBenchWeightBytes(runner),
            lambda: self._calls.KlbBenchClose(runner),
        )


def measure(library: Any, opponents: Any, batch: int, rounds: int, say: Callable[[str], Any] = lambda _: None) -> Any:
    """All jobs, ours and the opponents' by turns; the whole report, or None where there is no device."""
    device = library.device()
    if not device:
        return None
    described, rows = library.jobs(batch), []
    for number, job in enumerate(described["jobs"]):
        say(job["layer"])
        rows += _turns(library, opponents, batch, number, job, described["weights"], rounds, device)
    report = device | {"opponents": opponents.versions(), "batch": batch, "rounds": rounds, "results": rows}
    return report | {"goals": goals(rows, device)}


def _turns(
    library: Any,
    opponents: Any,
    batch: int,
    number: int,
    job: dict[str, Any],
    kinds: list[str],
    rounds: int,
    device: dict[str, Any],
) -> list[dict[str, Any]]:
    opened = {name: library.open(batch, number, index) for index, name in enumerate(kinds)}
    runs = {name: milliseconds for name, (milliseconds, _, _) in opened.items()}
    facts = {key: job[key] for key in ("layer", "list", "batch", "macs")}
    rows = {name: facts | {"weights": name, "weight_bytes": size} for name, (_, size, _) in opened.items()}
    for name, make in opponents.runners(job).items():
        rows[name] = facts | {"opponent": name}
        try:
            runs[name] = make()
            runs[name]()
        except Exception as error:  # whatever a library that is not ours cannot do
            runs.pop(name, None)
            rows[name]["cannot"] = f"{type(error).__name__}: {error}"[:300]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            taken = run()
            if turn:
                times[name].append(taken)
    for name, taken in times.items():
        rows[name] |= _figures(job, min(taken), statistics.median(taken), rows[name].get("weight_bytes"), device)
    for name in kinds:
        rows[name]["times_as_fast_as"] = {
            other: min(times[other]) / min(times[name]) for other in times if other not in kinds
        }
    for _, _, close in opened.values():
        close()
    return list(rows.values())


def _figures(
    job: dict[str, Any], best: float, median: float, size: int | None, device: dict[str, Any]
) -> dict[str, Any]:
    gmacs = job["macs"] / best / 1e6
    found = {"ms": best, "median_ms": median, "gmacs": gmacs, "of_int8_peak": gmacs / device["int8_peak_gmacs"]}
    if size:
        found |= {"weight_gb_s": size / best / 1e6, "of_read_peak": size / best / 1e6 / device["read_gb_s"]}
    return found


def goals(rows: Iterable[dict[str, Any]], device: dict[str, Any]) -> list[dict[str, Any]]:
    """What was asked for beside what was found: geometric means of ratios, and the large layers' part of the peak."""
    rows, found = list(rows), []
    for weights, opponent, where, least in GOALS:
        ratios = [
            row["times_as_fast_as"][opponent]
            for row in rows
            if where in (row["list"], _with_rows(row))
            and row.get("weights") == weights
            and opponent in row.get("times_as_fast_as", {})
        ]
        mean = math.exp(statistics.fmean(map(math.log, ratios))) if ratios else None
        found.append(
            {"work": where, "weights": weights, "against": opponent, "goal": least, "ratio": mean, "of": len(ratios)}
        )
    own = [row for row in rows if row.get("weights") == "ternary"]
    large = [row["of_int8_peak"] for row in own if row["list"] == "ResNet-50" and row["macs"] >= 50e6 * row["batch"]]
    reads = [row["of_read_peak"] for row in own if _with_rows(row) == "dense 25088->4096, 1 row"]
    for work, parts, goal in (("large layers of ResNet-50", large, 0.5), ("dense 25088->4096, 1 row", reads, 0.7)):
        kind = "int8_peak_gmacs" if goal == 0.5 else "read_gb_s"
        part = statistics.geometric_mean(parts) if parts else None
        found.append(
            {"work": work, "weights": "ternary", "of": kind, "ceiling": device[kind], "goal": goal, "part": part}
        )
    return found


def _with_rows(row: dict[str, Any]) -> str:
    rows = (
        row["macs"] // math.prod(int(size) for size in row["layer"].split(" ")[1].split("->"))
        if row["list"] == "dense"
        else 0
    )
    return f"{row['layer']}, {rows} row{'s' if rows > 1 else ''}"


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints; 0, or 77 where there is no device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args(arguments)
    library = Library(given.library)
    if not library.device():
        print("skipped: no device", file=sys.stderr)
        return NO_DEVICE
    sys.path.insert(0, str(Path(__file__).parent))
    from torch_opponents_bench import Opponents

    report = measure(
        library, Opponents("cuda"), given.batch, given.rounds, lambda name: print(name, file=sys.stderr, flush=True)
    )
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
