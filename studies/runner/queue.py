"""Works through the lists of runs, a few processes at a time, at idle priority.

    python -m studies.runner.queue                                   # the lists of studies/papers/queue.json, one process
    python -m studies.runner.queue --processes 2 studies/papers/sq_random_start.json
    KERAS_BACKEND=jax python -m studies.runner.queue --processes 1   # on a GPU
    python -m studies.runner.queue --status                          # what is done and what is missing

Ctrl-C or SIGTERM ends it at any time, in the middle of an epoch too: at most that epoch is lost, and the next start goes on
from the checkpoint to the same bits. Several queues may work on the same lists: a run is locked while it is made.
"""

import argparse
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studies.runner.runs import PAPERS, RESULTS, WORK, Run, all_lists, read_queue, result_path, stored_result

BUSY = 75  # exit status of a process whose run another one is making
IDLE = 19


@contextlib.contextmanager
def locked(run: Run, work: Path = WORK) -> Iterator[bool]:
    """Whether this process now has the run to itself; the system lets go of it however the process ends."""
    path = work / f"{run.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def make(run: Run, work: Path = WORK, results: Path = RESULTS) -> bool:
    """Makes one run in this process, if it is neither stored nor being made; whether it is stored now."""
    from keras_lowbit.files import atomic_write
    from studies.common.cifar10 import data_folder, load_cifar10
    from studies.runner.training import as_json, train

    with locked(run, work) as mine:
        if not mine or stored_result(run, results) is not None:
            return mine
        checkpoint = work / f"{run.name}.npz"
        record = train(run, load_cifar10(cache=work / "cifar10.npz"), data_folder(), checkpoint)
        path = result_path(run, results)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, as_json(record).encode())
        checkpoint.unlink()
    return True


class Queue:
    """Starts a process for each missing run, so many at once, until none is left that nobody else makes."""

    def __init__(self, runs: list[Run], command: list[str], processes: int, results: Path = RESULTS):
        self.runs, self.command, self.processes, self.results = runs, command, processes, results
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.failed: list[str] = []
        self._tried: set[str] = set()

    def work(self, pause: float = 1.0) -> list[str]:
        """Returns the names of the runs that failed; they were left aside."""
        signal.signal(signal.SIGTERM, _stop)
        try:
            while True:
                self._collect()
                while len(self.children) < self.processes and (run := self._next()) is not None:
                    self._tried.add(run.name)
                    self.children[run.name] = subprocess.Popen([*self.command, "--make", run.name])
                if not self.children:
                    return self.failed
                time.sleep(pause)
        finally:
            for child in self.children.values():
                child.terminate()
            for child in self.children.values():
                child.wait()

    def _next(self) -> Run | None:
        waiting = (run for run in self.runs if run.name not in self._tried)
        return next((run for run in waiting if stored_result(run, self.results) is None), None)

    def _collect(self) -> None:
        for name, child in list(self.children.items()):
            status = child.poll()
            if status is not None:
                del self.children[name]
                if status not in (0, BUSY):
                    self.failed.append(name)


def _stop(signal_number: int, frame: Any) -> None:
    raise SystemExit(128 + signal_number)


def status(runs: list[Run], results: Path = RESULTS) -> str:
    """One line for each run: its accuracies, or that it is missing."""
    lines = []
    for run in runs:
        found = stored_result(run, results)
        if found is None:
            lines.append(f"{run.name:<50} missing")
        else:
            held_out, test = (100 * found[name] for name in ("held_out_accuracy", "test_accuracy"))
            lines.append(f"{run.name:<50} held out {held_out:.2f} %  test {test:.2f} %  {found['processor_s']:.0f} s")
    return "\n".join(lines)


def one_thread(idle: bool = True) -> None:
    """What a process of the queue is: one thread at idle priority, oneDNN's kernels on any processor."""
    if idle:
        os.setpriority(os.PRIO_PROCESS, 0, IDLE)
    for name, value in {"TF_ENABLE_ONEDNN_OPTS": "1", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}.items():
        os.environ.setdefault(name, value)
    if os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", nargs="*", type=Path, help=f"JSON files; default: those of {PAPERS.name}/queue.json")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--status", action="store_true", help="only say what is stored and what is missing")
    parser.add_argument("--make", metavar="RUN", help="make this one run in this process")
    parser.add_argument("--work", type=Path, default=WORK, help="checkpoints and locks")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parsed = parser.parse_args(arguments)
    runs = read_queue(parsed.lists or all_lists())
    if parsed.status:
        print(status(runs, parsed.results))
        return 0
    if parsed.make:
        run = next((run for run in runs if run.name == parsed.make), None)
        if run is None:
            parser.error(f"no run {parsed.make!r} in these lists; --status shows all")
        one_thread()
        return 0 if make(run, parsed.work, parsed.results) else BUSY
    folders = ["--work", str(parsed.work), "--results", str(parsed.results)]
    command = [sys.executable, "-m", "studies.runner.queue", *map(str, parsed.lists), *folders]
    failed = Queue(runs, command, parsed.processes, parsed.results).work()
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
