"""Counts what the readers did with damaged files. A reader that ends its process, or does not come back, is counted too."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
BAD = ("raw", "silent", "memory", "crash", "hang")
MOST_SECONDS = 60  # for one file; starting takes longer
_START = 300


def fuzz(kind, files, seed=0, most_bad=20):
    """{"kind", "seed", "files", "counts": outcome -> files, "bad": [what must not be, with file and detail]}."""
    counts, bad, first = Counter(), [], 0
    while first < files and len(bad) < most_bad:
        for line in _lines(kind, seed, first, files):
            if "outcome" not in line:
                continue
            counts[line["outcome"]] += 1
            first = line["file"] + 1
            if line["outcome"] in BAD:
                bad.append(line)
    return {"kind": kind, "seed": seed, "files": first, "counts": dict(counts), "bad": bad}


def _lines(kind, seed, first, last):
    """What a worker says; after its end, a line of ours for the file at which it ended."""
    command = [sys.executable, "-m", "tests.fuzz.worker", kind, str(seed), str(first), str(last)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile("w+") as errors:
        worker = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=errors, text=True)
        with worker:
            try:
                reading, ended = yield from _listen(worker)
            finally:
                worker.kill()
        errors.seek(0)
        tail = errors.read()[-1500:]
    if ended == "done":
        return
    if reading is None:
        raise RuntimeError(f"the worker for {kind} ended between files ({worker.returncode}): {tail}")
    yield {"file": reading, "outcome": ended, "detail": f"exit status {worker.returncode}: {tail}"}


def _pump(lines, said):
    for text in lines:
        said.put(text)
    said.put(None)


def _listen(worker):
    """Yield its lines; return the file it was at when it ended, and how it ended."""
    said = queue.Queue()
    threading.Thread(target=_pump, args=(worker.stdout, said), daemon=True).start()
    reading, limit = None, _START
    while True:
        try:
            text = said.get(timeout=limit)
        except queue.Empty:
            return reading, "hang"
        if text is None:
            return reading, "crash" if worker.wait() else "done"
        if text.startswith("{"):
            line, limit = json.loads(text), MOST_SECONDS
            reading = line["file"] if "outcome" not in line else None
            yield line
