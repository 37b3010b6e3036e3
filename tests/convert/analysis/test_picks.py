"""Which places of an axis an operation picks, against the operation itself; what is not known beforehand is None."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_lowbit.convert.analysis.picks import picks
from keras_lowbit.keras_graph.calls import calls_of
from keras_lowbit.keras_graph.variables import to_numpy

SIZES = (5, 4, 3)
X = np.arange(60, dtype="float32").reshape(1, *SIZES)
KNOWN = {
    "flip": lambda x: ops.flip(x, (1, -1)),
    "roll": lambda x: ops.roll(x, -7, 1),
    "roll by nothing": lambda x: ops.roll(x, 0, 1),
    "repeat": lambda x: ops.repeat(x, 2, -1),
    "repeat each": lambda x: ops.repeat(x, [2, 0, 1, 3], 2),
    "tile": lambda x: ops.tile(x, (1, 2, 3)),
    "take": lambda x: ops.take(x, np.array([4, -5, 0]), 1),
}
UNKNOWN = {
    "flip of all": ops.flip,
    "flip of the batch": lambda x: ops.flip(x, 0),
    "roll of all": lambda x: ops.roll(x, 1),
    "tile of the batch": lambda x: ops.tile(x, (2, 1, 1, 1)),
    "tile of more axes": lambda x: ops.tile(x, (2, 1, 1, 1, 1)),
    "take of all": lambda x: ops.take(x, np.array([1])),
    "take of the batch": lambda x: ops.take(x, np.array([0]), 0),
    "take in two dimensions": lambda x: ops.take(x, np.array([[0, 1]]), 1),
    "take behind the end": lambda x: ops.take(x, np.array([0, 5]), 1),
    "take before the start": lambda x: ops.take(x, np.array([-6]), 1),
}


def found(body, shape=SIZES, sizes=SIZES):
    entry = keras.Input(shape)
    [call] = calls_of(keras.Model(entry, body(entry))).calls
    return picks(call, call.kind, sizes)


@pytest.mark.parametrize("body", KNOWN.values(), ids=KNOWN)
def test_the_places_are_those_of_the_operation(body):
    picked = X
    for axis, places in found(body).items():
        picked = np.take(picked, places, axis)
    assert np.array_equal(picked, to_numpy(body(ops.convert_to_tensor(X))))


@pytest.mark.parametrize("body", UNKNOWN.values(), ids=UNKNOWN)
def test_parts_of_the_batch_and_places_that_are_none_are_not_picked(body):
    assert found(body) is None


def test_one_number_for_each_place_waits_until_the_size_is_known():
    def each(x):
        return ops.repeat(x, [2, 0, 1, 3, 1], 1)

    assert found(each, (None, 4, 3), (1, 4, 3)) is None
    assert found(each, (None, 4, 3)) == {1: [0, 0, 2, 3, 3, 3, 4]}
