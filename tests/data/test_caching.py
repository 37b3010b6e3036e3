"""`data.cached`: the same batches, decoded once, from the disk, in constant memory."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_lowbit import data

BATCHES, SIZE = 64, 2**18  # of floats: 1 MiB each


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_batches_are_the_same_read_once_and_gone_with_the_set(tmp_path):
    read = []

    def batches():
        for number in range(3):
            read.append(number)
            yield np.full((2, 4), number, np.float32), np.array([number, 7])

    spec = (tf.TensorSpec((2, 4), tf.float32), tf.TensorSpec((2,), tf.int64))
    kept = data.cached(tf.data.Dataset.from_generator(batches, output_signature=spec), tmp_path)
    for _ in range(2):
        found = [(x.numpy().tolist(), y.numpy().tolist()) for x, y in kept]
        assert found == [([[number] * 4] * 2, [number, 7]) for number in range(3)]
    assert len(list(kept.skip(1).take(1))) == 1
    assert read == [0, 1, 2]
    part = kept.skip(2)
    del kept
    gc.collect()
    assert len(list(part)) == 1  # what is made of it keeps the files
    assert len(os.listdir(tmp_path)) == 1
    del part
    gc.collect()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_data(tmp_path):
    numbers = tf.data.Dataset.range(BATCHES).map(lambda number: tf.fill((1, SIZE), tf.cast(number, tf.float32)))
    next(iter(numbers))
    before, most = resident_bytes(), 0
    kept = data.cached(numbers, tmp_path)
    for batch in kept:
        most = max(most, resident_bytes())
        assert batch.shape == (1, SIZE)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) > BATCHES * SIZE * 4
    assert most - before < BATCHES * SIZE * 4 / 2


def test_what_cannot_be_read_leaves_nothing(tmp_path):
    def broken():
        yield np.zeros(4, np.float32)
        raise ValueError("a broken picture")

    spec = tf.TensorSpec((4,), tf.float32)
    with pytest.raises(ValueError, match="a broken picture"):
        data.cached(tf.data.Dataset.from_generator(broken, output_signature=spec), tmp_path)
    with pytest.raises(OSError, match="none"):
        data.cached(tf.data.Dataset.range(3).batch(1), tmp_path / "none")
    with pytest.raises(TypeError, match="got ndarray"):
        data.cached(np.zeros(3))
    with pytest.raises(ValueError, match="never ends"):
        data.cached(tf.data.Dataset.range(3).batch(1).repeat(), tmp_path)
    gc.collect()
    assert os.listdir(tmp_path) == []
