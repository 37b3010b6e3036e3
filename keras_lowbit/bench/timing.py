"""Interleaves the calls of several things, so that a busy moment of the machine falls on all of them."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np


@contextlib.contextmanager
def on_cores(count: int) -> Iterator[None]:
    """This thread, and those that it starts, on the first `count` cores that it may use (Linux; elsewhere nothing happens).

    Cores of a virtual machine may differ by two times, and change. Without it what is compared stands on different ones:
    TensorFlow computes in threads of its own, LiteRT in the caller's.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def interleaved(
    runs: Sequence[Callable[[], None]],
    repeats: int,
    warmup: int,
    inner: Sequence[int] | None = None,
    clock: Callable[[], float] = time.perf_counter,
):
    """Milliseconds [runs, repeats]: each repeat times every run once, in an order that moves on by one.

    inner: how often each run is called for one time (its mean is taken), once by default.   clock: seconds;
    `time.process_time` counts what this process alone computes, on all its threads.
    """
    calls = list(inner or [1] * len(runs))
    for run in runs:
        for _ in range(warmup):
            run()
    times = np.zeros((len(runs), repeats))
    for repeat in range(repeats):
        for offset in range(len(runs)):
            which = (repeat + offset) % len(runs)
            start = clock()
            for _ in range(calls[which]):
                runs[which]()
            times[which, repeat] = (clock() - start) * 1e3 / calls[which]
    return times


def calls_for(run: Callable[[], None], milliseconds: float) -> int:
    """How many calls of `run` take about so long, at least one.

    Timed from the third call on: ops prepare in the first two.
    """
    run()
    run()
    start = time.perf_counter()
    run()
    return max(1, int(milliseconds / max((time.perf_counter() - start) * 1e3, 1e-6)))
