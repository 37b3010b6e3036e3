"""Every op in every way that TensorFlow may run it: eagerly, in a function that lends it memory, with XLA, from many threads.

On every ISA target and in plain TensorFlow. Operands of an eager call are never lent: it cannot see what a function does.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tensorflow as tf

from keras_lowbit import ops
from keras_lowbit.ops.library import OP_NAMES, TF_FALLBACK
from tests.support import op_walk
from tests.support.process import run_python

TARGETS = [name for name in ops.available_kernels() if name != TF_FALLBACK]
compiled = pytest.mark.skipif(not TARGETS, reason="no compiled library")


def cases(kernel):
    """Plain TensorFlow has one way for all widths."""
    return op_walk.NARROW if kernel == TF_FALLBACK else op_walk.ALL


@pytest.fixture(scope="module")
def functions():
    """Kernel -> its cases as one traced function; ISA targets are chosen when it runs and share one."""
    made = {}
    for kernel in (*TARGETS[:1], TF_FALLBACK):
        with ops.using_kernel(kernel):
            made[kernel] = op_walk.function(cases(kernel))
            made[kernel]()
    return made | dict.fromkeys(TARGETS, made.get(TARGETS[0] if TARGETS else TF_FALLBACK))


@pytest.fixture(params=ops.available_kernels())
def kernel(request):
    with ops.using_kernel(request.param):
        yield request.param


def test_every_op_is_walked():
    assert {case.op for case in op_walk.ALL} == set(OP_NAMES)


def test_eagerly(kernel):
    op_walk.check(op_walk.eagerly(), f"eagerly on {kernel}")


def test_in_a_function_that_lends_memory(kernel, functions):
    for turn in range(3):  # the second call of a layer looks for float32 constants, which the third has
        op_walk.check(functions[kernel](), f"lent memory on {kernel}, call {turn}", cases(kernel))


def test_from_several_threads(kernel, functions):
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda _: functions[kernel](), range(8)):
            op_walk.check(results, f"from four threads on {kernel}", cases(kernel))


def test_with_xla_in_plain_tensorflow():
    """Several times: what one thread stores over the codes of another is seen where that was first."""
    with ops.using_kernel(TF_FALLBACK):
        run = op_walk.function(op_walk.NARROW, jit_compile=True)
        for turn in range(5):
            op_walk.check(run(), f"with XLA, call {turn}", op_walk.NARROW)


def test_codes_are_made_without_a_cast_to_int8():
    """XLA's casts to int8 store too many bytes, see `to_int8`: no file of kernels in TensorFlow has one."""
    for name in ("ops/tf_fallback.py", "deploy/runtime/unweighted.py", "deploy/runtime/softmax.py"):
        source = (Path(ops.__file__).parents[1] / name).read_text()
        assert not re.search(r"tf\.cast\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*, tf\.int8\)", source), name


@compiled
def test_xla_refuses_a_compiled_op_by_name():
    """TensorFlow's own words: XLA has no kernel for an op that it does not know."""
    with ops.using_kernel(TARGETS[0]), pytest.raises(tf.errors.InvalidArgumentError, match="KerasLowbit>PackedConv2D"):
        op_walk.function(op_walk.ALL[:1], jit_compile=True)()


ALONE = """
import sys
import tensorflow as tf
from keras_lowbit import ops
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
tf.config.optimizer.set_jit("autoclustering")
from tests.support import op_walk
targets = ops.available_kernels()[:-1]
cases = [case for case in op_walk.ALL if len(case.arrays) > 1][::3]
run = op_walk.function(cases)
for target in targets:
    with ops.using_kernel(target):
        op_walk.check(op_walk.eagerly(), f"eagerly on {target}")
        op_walk.check(run(), f"lent memory between XLA's clusters on {target}", cases)
print("equal")
"""


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
def test_thread_counts_and_clusters_of_xla_around_the_ops(threads):
    """TensorFlow's threads are set once, so each count has a process; there XLA compiles what stands around the ops."""
    flags = "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit --tf_xla_min_cluster_size=1"
    assert "equal" in run_python(ALONE, threads, TF_XLA_FLAGS=flags)
