"""Every compiled op on one thread and on several: TensorFlow's threads are set once, so each count has a process."""

import pytest

from keras_lowbit import ops
from tests.support.process import run_python

SCRIPT = """
import sys
import numpy as np
import tensorflow as tf
from keras_lowbit import ops
from keras_lowbit.ops import functions

tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
rng = np.random.default_rng(0)
codes = lambda *shape: rng.integers(-128, 128, shape).astype(np.int8)
x, more = codes(2, 60, 61, 40), codes(2, 60, 61, 40)
ternary = ops.pack_ternary(rng.integers(-1, 2, (3, 3, 40, 130)).astype(np.int8))
output = ops.Requantize(np.full(130, 1 << 30, np.int32), np.full(130, -5, np.int32), zero_point=3)
add = ops.ResidualAdd(codes(2, 60, 61, 130), (1 << 30, 0), (1 << 30, -1), (1 << 30, -18))
calls = {
    "conv": lambda: functions.clustered_ternary_conv2d(x, ternary, padding="SAME", output=output),
    "residual": lambda: functions.clustered_ternary_conv2d(x, ternary, padding="SAME", output=output, residual=add),
    "dense": lambda: functions.ternary_dense(codes(70, 40), ops.pack_kernel(codes(40, 9))),
    "depthwise": lambda: functions.int8_depthwise_conv2d(x, codes(3, 3, 40, 1), padding="SAME"),
    "pool": lambda: functions.max_pool2d(x, (3, 3), strides=2, padding="SAME"),
    "look up": lambda: functions.look_up(x, codes(256)),
    "look up pair": lambda: functions.look_up_pair(x, more, codes(256, 256)),
}
for name, call in calls.items():
    results = []
    for kernel in (ops.active_kernel(), ops.library.TF_FALLBACK):
        rng = np.random.default_rng(1)
        with ops.using_kernel(kernel):
            results.append(np.asarray(call()))
    np.testing.assert_array_equal(*results, err_msg=name)
print("equal")
"""


@pytest.mark.skipif(ops.available_kernels()[0] == ops.library.TF_FALLBACK, reason="no compiled library")
@pytest.mark.parametrize("threads", [1, 3])
def test_thread_counts_give_the_same(threads):
    assert "equal" in run_python(SCRIPT, threads)
