"""TFLite metadata: every field that is set, and none beside it, read with the published schema's classes."""

import numpy as np
import pytest

from keras_lowbit.deploy.graph.builder import GraphBuilder
from keras_lowbit.deploy.litert.metadata import describe
from keras_lowbit.deploy.litert.metadata_schema_py_generated import ModelMetadata, ModelMetadataT
from tests.support.litert_cases import GRID, OUT, codes, scales

IMAGE, FEATURES = 2, 1  # numbers of the union ContentProperties
RGB, GRAYSCALE = 1, 2
ABOUT = {"name": "net", "description": "Four fishes, Größe", "version": "1.2"}
NORMALIZATION = {"mean": [127.5, 120, 110.25], "std": [0.1]}


def image_classifier(channels=3, **metadata):
    builder = GraphBuilder(metadata)
    pooled = builder.mean(builder.input("images", (6, 6, channels), range=GRID), GRID, "pool")
    return builder.build([builder.fully_connected(pooled, codes(channels, 4), scales(4), None, OUT, "scores")])


def feature_model(**metadata):
    builder = GraphBuilder(metadata)
    x = builder.input("measured", (5,), range=GRID)
    outputs = [builder.fully_connected(x, codes(5, 2), scales(2), None, OUT, name) for name in ("first", "second")]
    return builder.build(outputs)


def set_fields(value):
    """What a table of the schema holds, as a dict without the fields that are not set."""
    if isinstance(value, list | tuple):
        return [set_fields(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if not hasattr(value, "__dict__"):
        return value
    return {name: set_fields(held) for name, held in vars(value).items() if held is not None and np.size(held)}


def described(graph):
    return set_fields(ModelMetadataT.InitFromPackedBuf(describe(graph)))


def content(kind, **properties):
    return {"contentPropertiesType": kind, "contentProperties": properties}


def model(inputs, outputs, **about):
    subgraph = {"inputTensorMetadata": inputs, "outputTensorMetadata": outputs}
    return {**about, "subgraphMetadata": [subgraph], "minParserVersion": "1.1.0"}


SCORES = {"name": "scores", "content": content(FEATURES)}


def test_an_image_with_normalization_and_labels():
    graph = image_classifier(**ABOUT, normalization=NORMALIZATION, labels=["a", "b", "c", "d"])
    options = {"mean": [127.5, 120, 110.25], "std": [float(np.float32(0.1))]}
    units = [{"optionsType": 1, "options": options}]
    image = {"name": "images", "content": content(IMAGE, colorSpace=RGB), "processUnits": units}
    file = {"name": "labels.txt", "description": "Name of each entry of the last axis.", "type": 2}
    assert described(graph) == model([image], [{**SCORES, "associatedFiles": [file]}], **ABOUT)


def test_features_and_two_outputs_of_which_the_first_has_labels():
    first, second = ({"name": name, "content": content(FEATURES)} for name in ("first", "second"))
    file = {"name": "labels.txt", "description": "Name of each entry of the last axis.", "type": 2}
    found = described(feature_model(name="net", labels=["no", "yes"]))
    x = {"name": "measured", "content": content(FEATURES)}
    assert found == model([x], [{**first, "associatedFiles": [file]}, second], name="net")


@pytest.mark.parametrize(
    ("channels", "kind"),
    [
        (3, content(IMAGE, colorSpace=RGB)),
        (1, content(IMAGE, colorSpace=GRAYSCALE)),
        (2, content(FEATURES)),
    ],
)
def test_an_image_has_one_or_three_channels(channels, kind):
    assert described(image_classifier(channels)) == model([{"name": "images", "content": kind}], [SCORES])


def test_words_that_are_none_are_left_out():
    assert described(image_classifier(name=3, version=None, recipe={"name": "twn"})).keys() == model([], []).keys()


def test_the_identifier_is_the_schemas():
    assert ModelMetadata.ModelMetadataBufferHasIdentifier(describe(image_classifier()), 0)
