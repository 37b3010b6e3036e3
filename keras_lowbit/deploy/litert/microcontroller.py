"""tflite-micro's Python interpreter, where it is installed: how much memory a file needs on a microcontroller.

It is no dependency, and may be in an environment of its own: it runs in a process of its own in any case, because an arena that
is too small ends the process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np

from keras_lowbit.deploy.litert.reader import LiteRTFile
from keras_lowbit.files import FilePath, name_of

_SCRIPT = """
import sys
try:
    from tflite_micro.python.tflite_micro import runtime
except ImportError as error:
    sys.exit(f"MISSING {error}")
import numpy as np
interpreter = runtime.Interpreter.from_file(sys.argv[1], arena_size=int(sys.argv[2]))
for place in range(int(sys.argv[3])):
    detail = interpreter.get_input_details(place)
    interpreter.set_input(np.zeros(detail["shape"], detail["dtype"]), place)
interpreter.invoke()
interpreter.print_allocations()
"""
_SPARE = 1 << 20
_SECONDS = 600


def arena_bytes(path: FilePath, python: FilePath | None = None) -> int:
    """Bytes of the arena that tflite-micro needs for a .tflite file.

    It holds activations, buffers of kernels and what tflite-micro keeps of the graph, not the weights. Counted by
    tflite-micro's own interpreter while it runs the file once. Pointers take eight bytes here and four on most
    microcontrollers, so it is a little less there; kernels of a vendor may ask for other buffers.
    path: of the file.
    python: an interpreter in whose environment `tflite-micro` is installed; this one by default.
    Returns an int.
    ImportError where tflite-micro is not installed; ValueError, with its reason, for a file that it does not run; errors of
    reading as `verify` has them.

    >>> try:
    ...     size = klb.deploy.arena_bytes("m.tflite")
    ... except ImportError as error:
    ...     size = None  # tflite-micro is not installed here
    """
    file = LiteRTFile(path)
    program = sys.executable if python is None else os.fspath(python)
    command = [program, "-c", _SCRIPT, os.path.abspath(path), str(_upper_bound(file)), str(len(file.inputs))]
    plain = os.environ if python is None else {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    found = subprocess.run(command, env=plain, capture_output=True, text=True, timeout=_SECONDS, check=False)
    total = re.search(r"Arena allocation total (\d+) bytes", found.stderr)
    if found.returncode == 0 and total:
        return int(total[1])
    said = found.stderr.strip().splitlines()
    if any(line.startswith("MISSING ") for line in said):
        raise ImportError(
            f"tflite-micro is not installed for {name_of(program)!r}. Install it: pip install tflite-micro, in an environment "
            "of its own if need be, and give arena_bytes(path, python=) its interpreter."
        )
    raise ValueError(
        f"tflite-micro does not run {name_of(path)!r} (exit status {found.returncode}): {'; '.join(said[-4:])}. Export it with "
        "target='microcontroller', which says what tflite-micro does not take."
    )


def _upper_bound(file: LiteRTFile) -> int:
    """An arena that is large enough: every tensor and weight in 32 bits, twice."""
    return _SPARE + 8 * sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in file.tensors.values())
