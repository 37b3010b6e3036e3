"""Memory that runs out inside a compiled op: ResourceExhaustedError, as from TensorFlow's own ops, and the next call works.

Each script has a process of its own, which an exception that nobody catches would end.
"""

import subprocess

import pytest

from keras_lowbit import ops
from keras_lowbit.ops import build
from tests.support.process import ROOT, run_python

pytestmark = [
    pytest.mark.skipif(bool(ops.why_not()), reason=f"no compiled library: {ops.why_not()}"),
    pytest.mark.slow,
]

# Each call needs scratch that does not fit, on the caller's thread or on TensorFlow's.
LIMITED = """
import resource, sys
import numpy as np
import tensorflow as tf
from keras_lowbit import ops
from keras_lowbit.ops import functions
tf.config.threading.set_intra_op_parallelism_threads(3)
ones = lambda *shape: tf.constant(np.ones(shape, np.int8))
image, thin, ternary = ones(1, 3000, 3000, 3), ones(1, 4, 4, 3), ops.pack_ternary(np.ones((3, 3, 3, 8), np.int8))
wide, deep = ones(1, 10, 10, 30000), ops.pack_ternary(np.ones((3, 3, 30000, 8), np.int8))
wall, small, line = ones(1100, 1100, 1, 1), ones(1, 1, 1, 3), {"padding": ((0, 0), (2**23, 2**23)), "strides": 2**22}
calls = {
    "a padded copy": (lambda: functions.clustered_ternary_conv2d(image, ternary, strides=8, padding="SAME"),
                      lambda: functions.clustered_ternary_conv2d(thin, ternary, strides=8, padding="SAME")),
    "unpacked weights of each thread": (lambda: functions.clustered_ternary_conv2d(wide, deep, padding="SAME"), None),
    "a pointer for each tap": (lambda: functions.int8_depthwise_conv2d(ones(1, 1, 1, 1), wall, padding="SAME"), None),
    "a line of maxima": (lambda: functions.max_pool2d(small, (1, 1), **line), None),
}
def used():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for name, (call, before) in calls.items():
    if before is not None:
        before()
    for megabytes in (0, 1, 5, 12):
        resource.setrlimit(resource.RLIMIT_AS, (used() + (megabytes << 20), resource.RLIM_INFINITY))
        try:
            call()
            print("fits:", name, megabytes)
        except tf.errors.ResourceExhaustedError as error:
            words = str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    again = call()
    assert int(tf.size(again)) > 0, name
    del again
    print(name, "|", words.splitlines()[0])
print("done")
"""


def test_too_little_for_a_large_layer():
    said = run_python(LIMITED, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_ARENA_MAX="1")
    assert said.split()[-1] == "done"
    assert "fits:" not in said, said
    assert "no memory for a compiled op: use smaller batches or images (no " in said
    assert "bytes of scratch memory)" in said


# Every allocation of every op in turn: made, shaped by a function that is being traced, and run on three threads.
EACH = """
import ctypes, sys
import numpy as np
import tensorflow as tf
from keras_lowbit import ops
from tests.support import op_walk
tf.config.threading.set_intra_op_parallelism_threads(3)
control = ctypes.CDLL(sys.argv[1])
chosen = {}
for case in op_walk.ALL:
    if case.name.endswith(("fixed residual", "pool", "look up", "look up pair")):
        chosen.setdefault(case.op, case)
assert len(chosen) == len(ops.library.OP_NAMES)
refusals = 0
for case in chosen.values():
    for function in (False, True):
        fine = n = 0
        while fine < 8:  # some runs end well although one was refused: a helper less
            tf.random.set_seed(n)  # makes the eager kernels anew
            run = (lambda: op_walk.function([case])()[0]) if function else (lambda: op_walk.eagerly([case])[0])
            control.FailFrom(n)
            try:
                result, refused = run(), control.Refused()
                op_walk.check([result], f"allocation {n}", [case])
                fine += 1
            except tf.errors.ResourceExhaustedError:
                refused, fine = control.Refused(), 0
                refusals += 1
            finally:
                control.Refused()
            n += 1
        op_walk.check([run()], "after all", [case])
    print(case.name, n, flush=True)
print("refused", refusals)
"""


def test_each_allocation_of_each_op(tmp_path):
    try:
        compiler = build.find_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    library = tmp_path / "failing_new.so"
    command = [*compiler, "-O1", "-g", "-fPIC", "-shared", "-o", str(library)]
    subprocess.run([*command, str(ROOT / "tests" / "support" / "failing_new.cc")], check=True)
    said = run_python(EACH, library, LD_PRELOAD=str(library))
    assert int(said.split()[-1]) > 100, said
