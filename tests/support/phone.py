"""Libraries that cannot be installed beside TensorFlow: `make phone-libraries` gives each an environment in `build/phone`.

`KERAS_LOWBIT_PHONE` names another folder with the environments `mediapipe`, `tflite-support` and `tflite-micro`.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

MICRO = """
import json, sys
import numpy as np
from tflite_micro.python.tflite_micro import runtime
for line in sys.stdin:
    job = json.loads(line)
    print("STARTS", flush=True)
    try:
        interpreter = runtime.Interpreter.from_file(job["path"], arena_size=1 << 24)
        given = np.load(job["inputs"])
        for place, name in enumerate(sorted(given.files)):
            interpreter.set_input(given[name], place)
        interpreter.invoke()
        made = [interpreter.get_output(place) for place in range(job["outputs"])]
        np.savez(job["results"], *made)
        print("ENDS", flush=True)
    except Exception as error:
        print("FAILS", json.dumps(f"{type(error).__name__}: {error}"), flush=True)
"""


def interpreter_of(library):
    """The Python of a library's environment, or a skip that says how to get it."""
    python = Path(os.environ.get("KERAS_LOWBIT_PHONE", ROOT / "build" / "phone")) / library / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no {library} in {python.parents[1]}: `make phone-libraries` installs it")
    return python


def environment():
    """Variables for the Python of another environment."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def run_micro(files, folder):
    """What tflite-micro makes of files: name -> its outputs, or why there are none.

    files: name -> (bytes of the file, inputs in its order, how many outputs).   folder: for what is handed over.
    """
    python, jobs = interpreter_of("tflite-micro"), []
    for place, (content, inputs, outputs) in enumerate(files.values()):
        path = folder / f"{place}.tflite"
        path.write_bytes(content)
        np.savez(folder / f"{place}_in.npz", **{f"{n:03}": value for n, value in enumerate(inputs)})
        names = {
            "path": str(path),
            "inputs": str(folder / f"{place}_in.npz"),
            "results": str(folder / f"{place}_out.npz"),
        }
        jobs.append({**names, "outputs": outputs})
    said = []
    while len(said) < len(jobs):  # again for those behind one that ended the process
        text = "\n".join(json.dumps(job) for job in jobs[len(said) :])
        found = subprocess.run(
            [python, "-c", MICRO],
            input=text,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        lines = [line for line in found.stdout.splitlines() if line.startswith(("ENDS", "FAILS"))]
        assert "STARTS" in found.stdout, f"tflite-micro: {found.returncode}, {found.stderr[-3000:]}"
        said += lines
        if len(said) < len(jobs):
            said.append(f"FAILS the process ended with {found.returncode}: {found.stderr[-300:]}")
    return {
        name: _results(job["results"]) if line == "ENDS" else line.removeprefix("FAILS ")
        for name, job, line in zip(files, jobs, said, strict=True)
    }


def _results(path):
    with np.load(path) as found:
        return [found[name] for name in found.files]
