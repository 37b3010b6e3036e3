"""Interleaved worker processes: measurements with different thread counts of TensorFlow in one run.

TensorFlow's threads are set once in a process, so each count has a process of its own. All workers start first; then one call
at a time is made, in an order that moves on by one each repeat, so that a slow moment of the machine falls on all of them.
"""

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from keras_lowbit.bench.timing import calls_for, on_cores

Maker = Callable[..., Mapping[str, Callable[[], Any]]]  # maker(threads, **arguments) -> runs by name


def interleaved_workers(
    maker: Maker, threads: Sequence[int], repeats: int, milliseconds: float = 40.0, **arguments: Any
) -> dict[tuple[int, str], np.ndarray]:
    """Milliseconds [repeats] of every run at every thread count; each time is the mean of calls that take about so long.

    maker: a function of a module (it is called in another process) that makes the runs; TensorFlow's thread counts are set
    before.
    """
    context = multiprocessing.get_context("spawn")
    ends, processes = [], []
    try:
        for count in threads:
            here, there = context.Pipe()
            processes.append(context.Process(target=_serve, args=(there, maker, count, milliseconds, arguments)))
            processes[-1].start()
            there.close()
            ends.append(here)
        places = [(count, name, end) for count, end in zip(threads, ends, strict=True) for name in _answer(end)]
        times = np.zeros((len(places), repeats))
        for repeat in range(repeats):
            for offset in range(len(places)):
                which = (repeat + offset) % len(places)
                places[which][2].send(places[which][1])
                times[which, repeat] = _answer(places[which][2])
    finally:
        for end in ends:
            end.close()  # ends the worker
        for process in processes:
            process.join()
    return {(count, name): times[i] for i, (count, name, _) in enumerate(places)}


def _answer(end: Connection) -> Any:
    try:
        answer = end.recv()
    except EOFError:
        raise RuntimeError("a worker process ended; what it wrote above says why") from None
    return answer


def _serve(end: Connection, maker: Maker, threads: int, milliseconds: float, arguments: dict[str, Any]) -> None:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with on_cores(threads):
        _answer_calls(end, maker, threads, milliseconds, arguments)


def _answer_calls(end: Connection, maker: Maker, threads: int, milliseconds: float, arguments: dict[str, Any]) -> None:
    runs = maker(threads, **arguments)
    calls = {name: calls_for(run, milliseconds) for name, run in runs.items()}
    end.send(list(runs))
    while True:
        try:
            name = end.recv()
        except EOFError:
            return
        start = time.perf_counter()
        for _ in range(calls[name]):
            runs[name]()
        end.send((time.perf_counter() - start) * 1e3 / calls[name])
