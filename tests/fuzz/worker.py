"""Examines files FIRST to LAST of one kind in this process; a line of JSON for each, written before and after."""

import json
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np

from tests.fuzz.targets import TARGETS

MOST_MEMORY = 512 << 20  # that one file may add to what the process has ever used
MOST_ADDRESSES = 6 << 30  # beyond what the libraries take: an allocation that asks for more is a MemoryError


def main(kind, seed, first, last):
    """Print {"file": i} before a file is read and {"file": i, "outcome": ...} after it."""
    warnings.simplefilter("ignore")
    target = TARGETS[kind](Path(tempfile.mkdtemp(prefix="klb-fuzz-")))
    target.examine(np.random.default_rng((seed, 10**9)))  # what loads late is loaded
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_ADDRESSES, resource.RLIM_INFINITY))
    for index in range(first, last):
        print(json.dumps({"file": index}), flush=True)
        before, start = _peak(), time.time()
        try:
            outcome, detail = target.examine(np.random.default_rng((seed, sorted(TARGETS).index(kind), index)))
        except MemoryError:
            outcome, detail = "memory", traceback.format_exc()
        except Exception:
            outcome, detail = "raw", traceback.format_exc()
        if _peak() - before > MOST_MEMORY:
            outcome, detail = "memory", f"{(_peak() - before) >> 20} MiB more; {outcome} {detail}"
        line = {"file": index, "outcome": outcome, "detail": detail[-2000:], "seconds": round(time.time() - start, 2)}
        print(json.dumps(line), flush=True)


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
