"""Our kernels, TensorFlow's and LiteRT's in turns on several threads of one process.

Where the processor has AMX, each of the three configures its tiles as it likes: all must give the right numbers.
"""

import threading

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import keras_lowbit as klb
from keras_lowbit.deploy.graph import GraphBuilder, Range
from keras_lowbit.deploy.litert import to_bytes
from keras_lowbit.deploy.reference.interpreter import run_reference

THREADS, TURNS = 4, 12


def network(rng):
    """Ternary and int8 convolutions that tiles take, and a dense layer."""
    builder = GraphBuilder()
    x = builder.input("x", (14, 14, 64), range=Range(0.05, -3))
    for name, codes in (("ternary", (-1, 2)), ("int8", (-127, 128))):
        weights, scales = rng.integers(*codes, (3, 3, 64, 64)), rng.uniform(0.001, 0.003, 64).astype(np.float32)
        x = builder.conv2d(x, weights, scales, rng.integers(-99, 99, 64), Range(0.1, 5), name, padding="same")
    x = builder.mean(x, Range(0.05, 2), "mean", [1, 2], False)
    scales = rng.uniform(0.01, 0.1, 10).astype(np.float32)
    return builder.build(
        [
            builder.fully_connected(
                x, rng.integers(-1, 2, (64, 10)), scales, rng.integers(-99, 99, 10), Range(0.3, 0), "dense"
            )
        ]
    )


def run_litert(content, images):
    interpreter = Interpreter(model_content=content, num_threads=1)
    [given], [found] = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], images)
    interpreter.invoke()
    return interpreter.get_tensor(found["index"])


@pytest.mark.parametrize("target", ["x86_amx", "best"])
def test_three_libraries_in_turns(target):
    if klb.ops.why_not():
        pytest.skip(klb.ops.why_not())
    available = klb.ops.available_kernels()
    if target not in available and target != "best":
        pytest.skip(f"{target} does not run here: this processor, or its system, has no AMX for this process")
    rng = np.random.default_rng(7)
    graph = network(rng)
    content, images = to_bytes(graph, batch_size=3)[0], rng.integers(-128, 128, (3, 14, 14, 64)).astype(np.int8)
    expected = run_reference(graph, images)
    # Of -1, 0 and 1 every partial sum is at most 256, which bfloat16 holds: some processors add up in it.
    a, b = (rng.integers(-1, 2, shape) for shape in ((128, 256), (256, 192)))
    product = tf.cast(a @ b, tf.bfloat16).numpy()
    left, right = tf.cast(a, tf.bfloat16), tf.cast(b, tf.bfloat16)
    runtime, wrong = klb.deploy.Runtime(graph), []

    def take_turns(first):
        try:
            for turn in range(first, first + TURNS):
                if turn % 3 == 0:
                    np.testing.assert_array_equal(runtime(images), expected, "ours")
                elif turn % 3 == 1:
                    np.testing.assert_array_equal(tf.matmul(left, right).numpy(), product, "TensorFlow's")
                else:
                    steps = np.abs(run_litert(content, images).astype(int) - expected)
                    assert steps.max() <= 1, "LiteRT's"  # XNNPACK may differ by a step
        except Exception as error:  # of a thread: told below
            wrong.append(error)

    with klb.ops.using_kernel(available[0] if target == "best" else target):
        threads = [threading.Thread(target=take_turns, args=(first,)) for first in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong, wrong
