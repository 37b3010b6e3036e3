"""A command that is killed while it works, at given moments of its processor time.

By that clock the moments stay where they are whatever else the machine does. The kernel sends SIGPROF by it, which nothing
handles: as abrupt as SIGKILL.

`python -m tests.support.kills FILE` imports TensorFlow, computes nothing with it, and forks a process for each run, which saves
its import. It prints what `killed` returns.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.process import ROOT

KILLED = -signal.SIGPROF


def killed(folder, whole, command, moments):
    """[status, output] of `whole`, run to its end, and of `command`, killed and begun again until it ends by itself.

    moments: when to kill, as shares of the processor time of `whole`; after them it may go on. The status of a killed
    run is `KILLED`.
    """
    file = Path(folder, "runs.json")
    file.write_text(
        json.dumps({"whole": list(map(str, whole)), "command": list(map(str, command)), "moments": moments})
    )
    program = [sys.executable, "-m", "tests.support.kills", str(file)]
    found = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1])


def _run(arguments, kill_after):
    """[status, output], and the processor seconds that it took."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if not child:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            signal.setitimer(signal.ITIMER_PROF, kill_after)
            os._exit(_status(arguments))
        _, status, used = os.wait4(child, 0)
        said.seek(0)
        return (os.waitstatus_to_exitcode(status), said.read().decode()), used.ru_utime + used.ru_stime


def _status(arguments):
    from keras_lowbit.cli import main

    status = main(["keras-lowbit", *arguments])
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _all(whole, command, moments):
    first, seconds = _run(whole, 0)
    found = [first]
    for moment in [*moments, 0]:  # 0: never
        found.append(_run(command, moment * seconds)[0])
        if found[-1][0] != KILLED:
            break
    return found


if __name__ == "__main__":
    import keras

    import keras_lowbit.cli  # noqa: F401

    # Without XLA: compiling takes longer than the few steps.
    keras.Model.compile = functools.partialmethod(keras.Model.compile, jit_compile=False)
    print(json.dumps(_all(**json.loads(Path(sys.argv[1]).read_text()))))
