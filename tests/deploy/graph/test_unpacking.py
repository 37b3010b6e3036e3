"""Flatbuffers that say that they hold more than their bytes can are refused before they are unpacked."""

import inspect
import time
import tracemalloc

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as litert_schema

import keras_lowbit as klb
from keras_lowbit.deploy.graph import float_subgraph
from keras_lowbit.deploy.graph.unpacking import fields_of, members_of, unpack
from keras_lowbit.deploy.litert import metadata_schema_py_generated as metadata_schema
from keras_lowbit.deploy.litert.file_tree import file_tree, first_difference
from keras_lowbit.deploy.litert.reader import LiteRTFile
from keras_lowbit.deploy.litert.writer import read_metadata
from tests.support import bombs

SCHEMAS = [litert_schema, metadata_schema]


def refused_at_once(read, words):
    """Within a second, without memory."""
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(ValueError, match=words):
        read()
    seconds, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20
    assert seconds < 10


@pytest.mark.parametrize("bomb", bombs.MODELS, ids=lambda bomb: bomb.__name__)
def test_models(bomb, tmp_path):
    path = tmp_path / "bomb.tflite"
    path.write_bytes(bomb(3000))
    assert path.stat().st_size < 50_000
    refused_at_once(lambda: LiteRTFile(path), r"bomb\.tflite' is damaged.*cannot hold the tables")
    refused_at_once(lambda: read_metadata(path), r"bomb\.tflite' is damaged.*cannot hold the tables")
    refused_at_once(lambda: float_subgraph.load(path.read_bytes(), "part"), "'part' holds a damaged .tflite model")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(model, data, path of its file)."""
    inputs = keras.Input((4,))
    model, _ = klb.quantize_model(keras.Model(inputs, keras.layers.Dense(3)(inputs)), "int8")
    data = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    klb.calibrate(model, data, verbose=0)
    path = tmp_path_factory.mktemp("unpacking") / "m.tflite"
    klb.export_litert(model, path)
    return model, data, path


@pytest.mark.parametrize("bomb", bombs.METADATA, ids=lambda bomb: bomb.__name__)
def test_metadata_inside_a_sound_file(exported, bomb, tmp_path):
    model, data, sound = exported
    path = tmp_path / "bomb.tflite"
    path.write_bytes(bombs.with_metadata(sound.read_bytes(), lambda _: bomb(3000)))
    assert path.stat().st_size < 100_000
    refused_at_once(lambda: read_metadata(path), r"bomb\.tflite' is damaged.*cannot hold the tables")
    refused_at_once(lambda: klb.verify(model, path, data), r"bomb\.tflite' is damaged.*cannot hold the tables")


def test_sound_files_are_unpacked_as_they_are(exported):
    content = exported[2].read_bytes()
    found, plain = unpack(litert_schema, "Model", content), litert_schema.ModelT.InitFromPackedBuf(content)
    names = [[tensor.name for tensor in graph.tensors] for model in (found, plain) for graph in model.subgraphs]
    assert names[0] == names[1] != []
    trees = [file_tree(model, [name.decode() for name in names[0]]) for model in (found, plain)]
    assert first_difference(*trees, "") is None


def tables(schema):
    return [kind for name, kind in vars(schema).items() if hasattr(kind, "GetRootAs") and hasattr(schema, f"{name}T")]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_every_field_of_a_schema_is_counted(schema):
    """Whatever the installed LiteRT adds: each field has an accessor, each union's classes are known."""
    assert len(tables(schema)) > 15
    unions = 0
    for kind in tables(schema):
        for name, _ in fields_of(schema, kind):
            if "Table(bytearray" in inspect.getsource(getattr(kind, name)):
                unions += 1
                assert members_of(schema, name), f"{kind.__name__}.{name}"
    assert unions == inspect.getsource(schema).count("Table(bytearray")
