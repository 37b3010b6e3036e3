"""The stand-ins that the converter takes give the values of the operations they stand for."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_lowbit.deploy.lowering.float_forms import run_convertible
from keras_lowbit.keras_graph.calls import calls_of
from keras_lowbit.keras_graph.variables import to_numpy

L = keras.layers
ROWS = np.random.default_rng(0).integers(0, 4, (5, 3, 4)).astype("float32")  # with ties

CASES = {
    "argmax": lambda x: ops.argmax(x, axis=-1),
    "argmax kept": lambda x: ops.argmax(x, axis=1, keepdims=True),
    "argmin": lambda x: ops.argmin(x, axis=2),
    "products so far": lambda x: ops.cumprod(x, axis=-1),
    "products so far of rows": lambda x: ops.cumprod(x, axis=1),
    "multi hot": lambda x: L.CategoryEncoding(6, output_mode="multi_hot")(x[:, 0]),
    "count": lambda x: L.CategoryEncoding(6, output_mode="count")(x[:, 1]),
    "one hot": lambda x: L.CategoryEncoding(6, output_mode="one_hot")(x[:, 1, 0]),
    "weighed count": lambda x: L.CategoryEncoding(6, output_mode="count")(x[:, 1], count_weights=x[:, 2]),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_a_stand_in_gives_the_same_values(make):
    entry = keras.Input((3, 4))
    model = keras.Model(entry, make(entry))
    graph = calls_of(model)
    other = keras.Input((3, 4))
    [output] = graph.run([other], run_convertible)
    got = keras.Model(other, output)(ROWS)
    np.testing.assert_array_equal(to_numpy(got), to_numpy(model(ROWS)))
    assert to_numpy(got).dtype == to_numpy(model(ROWS)).dtype
