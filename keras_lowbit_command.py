"""The program `keras-lowbit`: keras_lowbit's command line without the lines that TensorFlow and LiteRT print as they start.

It stands beside the package because importing any part of that imports TensorFlow. Standard error goes through a process that
leaves those lines out and hands on everything else at once, also what is written just before this process dies of a signal;
no setting of TensorFlow silences what it writes before its own logging begins. `--verbose` leaves standard error alone.
"""

import os
import re
import select
import sys

_OPENINGS = (
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR",
    rb"[IWE]\d{4} [\d:.]+ +\d+ "
    rb"(port|cudart_stub|cpu_feature_guard|generator_dataset_op|computation_placer|cuda_\w+|gpu_\w+)\.cc:\d+\]",
    rb"To enable the following instructions: .* rebuild TensorFlow with the appropriate compiler flags\.",
    rb"INFO: (Created TensorFlow Lite|Initialized TensorFlow Lite)",
)
STARTING = re.compile(rb"|".join(_OPENINGS))
_WAIT_S = 0.1  # for the rest of a line, before its beginning is shown


def main() -> int:
    """Runs the command line of `sys.argv`; its exit status."""
    if os.name != "posix" or "--verbose" in sys.argv:
        return _run()
    sys.stderr.flush()
    reading, writing = os.pipe()
    filtering = os.fork()  # nothing has been imported yet: one thread, little memory
    if not filtering:
        os.close(writing)
        _filter(reading, 2)
        os._exit(0)
    shown = os.dup(2)
    os.dup2(writing, 2)
    os.close(reading)
    os.close(writing)
    try:
        return _run()
    finally:
        sys.stderr.flush()
        os.dup2(shown, 2)
        os.waitpid(filtering, 0)


def _run() -> int:
    from keras_lowbit.cli import main as run  # imports TensorFlow

    return run()


def _filter(source: int, target: int) -> None:
    """Copies until the end, whole lines that match `STARTING` left out."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to both: what the command says of it comes through
    rest = b""
    while True:
        if rest and not select.select([source], [], [], _WAIT_S)[0]:
            _write(target, rest)
            rest = b""
        part = os.read(source, 65536)
        *lines, rest = (rest + part).split(b"\n")
        _write(target, b"".join(line + b"\n" for line in lines if not STARTING.match(line)))
        if not part:
            _write(target, b"" if STARTING.match(rest) else rest)
            return


def _write(target: int, content: bytes) -> None:
    while content:
        content = content[os.write(target, content) :]


if __name__ == "__main__":
    sys.exit(main())
