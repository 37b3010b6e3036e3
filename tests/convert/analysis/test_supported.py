"""Which calls run in integers and which in float, and the reason that the report gives for the latter."""

import re

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import keras_lowbit as klb
from keras_lowbit.convert.analysis.operations import Category, category_of, fallback_reason
from keras_lowbit.keras_graph.calls import calls_of

IMAGE, ROW = (8, 8, 4), (6,)
FIRST = {"data_format": "channels_first"}
FIRST_SAYS = "its data format is channels_first, the integer pipeline is channels_last"
COLUMNS = np.ones((8, 1), "float32")
MASK = np.ones((1, 8), bool)


def last_call(body, *shapes):
    """The last call of a model that `body` makes of inputs of these shapes."""
    inputs = [keras.Input(shape) for shape in shapes]
    return calls_of(keras.Model(inputs, body(*inputs))).calls[-1]


def bilinear(size):
    return L.UpSampling2D(size, interpolation="bilinear")


def relu(x):
    """The user's, whatever its name."""
    return x - ops.mean(x, axis=-1, keepdims=True)


def bounds(x):
    return ops.clip(x, np.zeros(6, "float32"), 1.0)


FLOAT = {
    "flatten": (L.Flatten(**FIRST), IMAGE, FIRST_SAYS),
    "pad": (L.ZeroPadding2D(1, **FIRST), IMAGE, FIRST_SAYS),
    "crop": (L.Cropping2D(1, **FIRST), IMAGE, FIRST_SAYS),
    "pool": (L.MaxPooling2D(2, **FIRST), IMAGE, FIRST_SAYS),
    "upsample": (L.UpSampling2D(2, **FIRST), IMAGE, FIRST_SAYS),
    "batch norm": (L.BatchNormalization(axis=1), IMAGE, "normalises axis 1, not the last one"),
    "normalization": (
        L.Normalization(axis=1, mean=0.0, variance=1.0),
        IMAGE,
        r"normalises axes \(1,\), not the last one",
    ),
    "rescaling": (L.Rescaling(COLUMNS), IMAGE, r"scale or offset has the shape \(8, 1\) or \(\)"),
    "columns": (lambda x: x * COLUMNS, IMAGE, r"its constant of shape \(8, 1\) is neither"),
    "widening": (lambda x: L.Dense(1)(x) + np.ones(3, "float32"), ROW, r"its constant of shape \(3,\) is neither"),
    "more axes": (lambda x: x - np.ones((1, 1, 1), "float32"), ROW, r"its constant of shape \(1, 1, 1\) is neither"),
    "three": (lambda x: L.Add()([x, x, x[:, :1]]), ROW, "it joins tensors of several shapes"),
    "average": (lambda x: L.Average()([x, x[:, :1]]), ROW, "it joins tensors of several shapes"),
    "rank 5": (lambda x: L.Multiply()([x, x]), (2, 2, 2, 2), "at most 4 axes"),
    "softmax axis": (L.Softmax(axis=1), IMAGE, "its axis is 1, not the last one"),
    "softmax mask": (lambda x: L.Softmax()(x, mask=MASK), (8,), "it is called with a mask"),
    "average of some": (lambda x: L.GlobalAveragePooling1D()(x, mask=MASK), (8, 4), "it is called with a mask"),
    "mean": (lambda x: ops.mean(x), IMAGE, "mixes the samples of a batch"),
    "new axis": (lambda x: ops.expand_dims(x, 0), ROW, "changes the batch axis"),
    "transpose": (lambda x: ops.transpose(x), ROW, "moves the batch axis"),
    "concatenation": (lambda x: ops.concatenate([x, x], 0), ROW, "joins batches"),
    "pad with numbers": (lambda x: ops.pad(x, 1, constant_values=np.float32(2)), ROW, "other values than zeros"),
    "pad the batch": (lambda x: ops.pad(x, 1), ROW, "pads the batch axis"),
    "backwards": (lambda x: ops.flip(x), ROW, "picks parts of the batch"),
    "unknown places": (lambda x: ops.take(x, np.int32([[1, 2]]), axis=1), ROW, "not known beforehand"),
    "clip by a vector": (bounds, ROW, "other constants than single numbers"),
    "two divided": (lambda x: ops.divide(x, x), ROW, "LiteRT has no int8 division"),
    "by zero": (lambda x: x / np.float32([1, 2, 0, 4, 5, 6]), ROW, "it divides by zero"),
    "several by one": (lambda x: ops.divide(np.ones(6, "float32"), x), ROW, "it divides several numbers by a tensor"),
    "bilinear to many": (L.Resizing(700, 5), (100, 6, 4), r"from \(100, 6\) to \(700, 5\) int8 positions would drift"),
    "bilinear of any size": (bilinear((2, 6)), (None, 5, 4), r"images of unknown sizes by \(2, 6\), neither odd"),
    "bicubic": (L.UpSampling2D(2, interpolation="bicubic"), IMAGE, "its interpolation is 'bicubic'"),
    "maximum of three": (lambda x: L.Maximum()([x, x, x[:, :1]]), ROW, "it joins tensors of several shapes"),
    "split the batch": (lambda x: ops.split(x, [1], axis=0)[0], ROW, "it cuts the batch"),
    "stack batches": (lambda x: ops.stack([x, x]), ROW, "it joins batches"),
    "dot of keras.ops": (lambda x: ops.dot(x, np.eye(6, dtype="float32")), ROW, "Dot has no integer form here"),
    "sorted": (lambda x: ops.sort(x), ROW, "Sort has no integer form here"),
    "sums so far of all": (lambda x: ops.cumsum(x), ROW, "mixes the samples of a batch"),
    "sums so far of batches": (lambda x: ops.cumsum(x, axis=0), ROW, "mixes the samples of a batch"),
    "sums so far of many": (lambda x: ops.cumsum(x, axis=-1), (513,), "it adds up 513 places, 512 at most"),
    "sums so far of any length": (lambda x: ops.cumsum(x, axis=1), (None, 3), "an axis of unknown size"),
    "whole sums": (lambda x: ops.cumsum(x, axis=1, dtype="int32"), ROW, "it makes int32 values"),
    "products so far of all": (lambda x: ops.cumprod(x), ROW, "this call of Cumprod has no integer form"),
    "planes apart": (
        L.Conv3DTranspose(3, 1, strides=2),
        (2, 4, 4, 4),
        "this call of Conv3DTranspose has no integer form",
    ),
    "function": (L.Activation("log_softmax"), ROW, "its function 'log_softmax' has no integer form here"),
    "own function": (L.Activation(relu), ROW, "its function 'relu' is none of Keras'"),
}

INTEGER = {
    "batch norm": (L.BatchNormalization(axis=3), IMAGE),
    "normalization": (L.Normalization(axis=None, mean=0.0, variance=1.0), IMAGE),
    "rescaling": (L.Rescaling([1.0, 2.0, 3.0, 4.0], [0.5]), IMAGE),
    "vector": (lambda x: ops.subtract(np.ones((1, 1, 4), "float32"), x), IMAGE),
    "two": (lambda x: L.Add()([x, x]), IMAGE),
    "gate": (lambda x: x * L.GlobalAveragePooling2D(keepdims=True)(x), IMAGE),
    "dropout": (L.SpatialDropout2D(0.5, **FIRST), IMAGE),
    "softmax": (L.Softmax(axis=1), ROW),
    "transpose": (lambda x: ops.transpose(x, (0, -1, 1, 2)), IMAGE),
    "pad": (lambda x: ops.pad(x, ((0, 0), (1, 2)), constant_values=0.0), ROW),
    "pick": (lambda x: x[..., 1:, 0], IMAGE),
    "bilinear by 4": (bilinear((4, 2)), IMAGE),
    "bilinear of one pixel": (bilinear(7), (1, 1, 4)),
    "relu": (L.ReLU(6.0), ROW),
    "sloped relu": (L.ReLU(negative_slope=0.1), ROW),
    "capped relu": (L.ReLU(5.0, negative_slope=0.1), ROW),
    "logarithm": (lambda x: ops.log(x), ROW),
    "function": (L.Activation("gelu"), ROW),
    "own function": (L.Activation(lambda x: ops.maximum(x, 0.5)), ROW),
    "backwards": (lambda x: x[:, ::-1], ROW),
    "division": (lambda x: x / 255.0, ROW),
    "sums so far": (lambda x: ops.cumsum(x, axis=-2), IMAGE),
    "transposed": (L.Conv2DTranspose(3, 3, strides=2), IMAGE),
}


@pytest.mark.parametrize("name", FLOAT)
def test_a_form_that_integers_lack_runs_in_float_with_its_reason(name):
    body, shape, reason = FLOAT[name]
    call = last_call(body, shape)
    assert category_of(call) is Category.FLOAT
    assert re.search(reason, fallback_reason(call))


@pytest.mark.parametrize("name", INTEGER)
def test_a_form_that_integers_have_does_not(name):
    assert category_of(last_call(*INTEGER[name])) is not Category.FLOAT


def test_flatten_of_a_fixed_batch_runs_in_integers():
    entry = keras.Input(batch_shape=(4, *IMAGE))
    [call] = calls_of(keras.Model(entry, L.Flatten()(entry))).calls
    assert category_of(call) is Category.KEEPS_RANGE


def test_a_range_stands_behind_what_runs_in_float():
    """In front of an operation that would take the range of its input otherwise, or fuse."""
    entry = keras.Input(IMAGE)
    value = L.Flatten(name="flat")(L.Conv2D(4, 3)(entry))
    value = L.ReLU(name="relu")(L.Maximum(name="sum")([value, value, L.Dense(1)(value)]))
    model, report = klb.quantize_model(keras.Model(entry, value), skip=["flat"])
    assert report["flat"].detail == "skip list; runs in float"
    readers = {call.name: call.operation for call in calls_of(model).calls}
    assert isinstance(readers["sum_range"], klb.layers.QuantActivation)
