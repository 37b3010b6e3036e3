"""Blocks: between points where one tensor carries everything, each with one output, every layer in one."""

import itertools

import keras
import pytest
from keras import layers

from keras_lowbit.convert.post_training.reconstruction.blocks import find_blocks
from keras_lowbit.keras_graph.calls import calls_of


def has_kernel(call):
    return hasattr(call.operation, "kernel")


def blocks(model, unit="block"):
    return [list(block.layers) for block in find_blocks(calls_of(model, inline=True), has_kernel, unit)]


def residual_net():
    inputs = x = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(x)
    x = layers.ReLU(name="stem_relu")(x)
    y = layers.Conv2D(4, 3, padding="same", activation="relu", name="a")(x)
    y = layers.Conv2D(4, 3, padding="same", name="b")(y)
    x = layers.ReLU(name="joined")(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Softmax(name="probabilities")(layers.Dense(3, name="logits")(x)))


def test_residual_block_is_one_and_its_followers_are_in_it():
    found = find_blocks(calls_of(residual_net()), has_kernel)
    assert [list(block.layers) for block in found] == [["stem"], ["a", "b"], ["logits"]]
    last = [block.calls[-1].path for block in found]
    assert last == ["stem_relu", "global_average_pooling2d", "logits"]  # no softmax: its inputs are what is learnt


def test_each_layer_alone():
    found = find_blocks(calls_of(residual_net()), has_kernel, "layer")
    assert [block.layers for block in found] == [("stem",), ("a",), ("b",), ("logits",)]
    assert [block.calls[-1].path for block in found] == ["stem_relu", "a", "b", "logits"]


def test_depthwise_goes_with_its_neighbours():
    inputs = x = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="stem")(x)
    x = layers.DepthwiseConv2D(3, name="v1_dw")(x)
    x = layers.Conv2D(8, 1, name="v1_pw")(x)
    x = layers.Conv2D(16, 1, name="expand")(x)
    x = layers.DepthwiseConv2D(3, name="v2_dw")(x)
    x = layers.Conv2D(8, 1, name="project")(x)
    model = keras.Model(inputs, layers.Conv2D(9, 1, name="head")(x))
    assert blocks(model) == [["stem"], ["v1_dw", "v1_pw"], ["expand", "v2_dw", "project"], ["head"]]


def test_heads_that_part_are_taken_layer_by_layer():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="stem")(inputs)
    boxes = layers.Conv2D(4, 1, name="boxes")(layers.Conv2D(4, 1, activation="relu", name="before_boxes")(x))
    model = keras.Model(inputs, [boxes, layers.Conv2D(2, 1, name="classes")(x)])
    assert sorted(blocks(model)) == [["before_boxes"], ["boxes"], ["classes"], ["stem"]]


@pytest.mark.parametrize(
    ("name", "count"), [("MobileNet", 15), ("MobileNetV2", 20), ("ResNet50", 18), ("EfficientNetB0", 19)]
)
def test_families_of_keras_applications(name, count):
    model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classes=7)
    graph = calls_of(model, inline=True)
    found = find_blocks(graph, has_kernel)
    print(name, *(block.name for block in found), sep="\n  ")
    assert len(found) == count
    assert all(len(block.inputs) == 1 for block in found)
    made = [path for block in found for path in block.layers]
    assert sorted(made) == sorted(call.path for call in graph.calls if has_kernel(call))
    for block, after in itertools.pairwise(found):
        assert after.inputs == (block.output,)
