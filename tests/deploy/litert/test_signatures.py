"""Several networks in one file: each gives what its own file gives, and what they share is stored once."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import keras_lowbit as klb
from keras_lowbit.deploy import join_signatures

L = keras.layers
DATA = np.random.default_rng(0).normal(size=(8, 12, 12, 3)).astype("float32")


@pytest.fixture(scope="module")
def parts():
    """A classifier, and the network of its features."""
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 12, 3), name="image")
    features = L.Conv2D(16, 3, activation="relu", name="features")(L.Conv2D(64, 3, activation="relu")(image))
    head = L.Dense(4, name="kind")(L.GlobalAveragePooling2D()(features))
    quantized, _ = klb.quantize_model(keras.Model(image, head))
    klb.calibrate(quantized, DATA, verbose=0)
    inner = quantized.get_layer("features_range").output
    return {"classify": quantized, "features": keras.Model(quantized.input, inner)}


@pytest.fixture(scope="module")
def joined(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    files = {name: folder / f"{name}.tflite" for name in parts}
    for name, model in parts.items():
        klb.export_litert(model, files[name], io=("uint8", "float32"))
    join_signatures(files, folder / "both.tflite")
    return files, folder / "both.tflite"


def test_each_signature_gives_what_its_file_gives(parts, joined):
    files, both = joined
    pixels = np.random.default_rng(1).integers(0, 256, (1, 12, 12, 3), np.uint8)
    together = Interpreter(str(both))
    assert set(together.get_signature_list()) == set(parts)
    for name, path in files.items():
        [want] = Interpreter(str(path)).get_signature_runner()(image=pixels).values()
        [got] = together.get_signature_runner(name)(image=pixels).values()
        np.testing.assert_array_equal(got, want)


def test_what_they_share_is_stored_once(joined):
    files, both = joined
    sizes = [path.stat().st_size for path in files.values()]
    assert both.stat().st_size < max(sizes) + min(sizes) - 9000  # the kernel of the second convolution has 9,216 bytes


def test_each_signature_is_verified(parts, joined):
    _, both = joined
    for name, model in parts.items():
        parity = klb.verify(model, both, DATA, signature=name)
        assert parity.ok, parity
        assert parity.reference.equal
    with pytest.raises(ValueError, match="not exported from this model"):
        klb.verify(parts["features"], both, DATA, signature="classify")
    with pytest.raises(ValueError, match=r"no signature 'decode', but 'classify', 'features'"):
        klb.verify(parts["features"], both, DATA, signature="decode")


def test_what_cannot_be_joined_is_refused_and_leaves_the_file_whole(parts, joined, tmp_path):
    files, both = joined
    klb.export_litert(parts["classify"], tmp_path / "labels.tflite", labels=list("abcd"))
    (tmp_path / "m.tflite").write_bytes(b"before")
    for wrong, error, words in (
        ({"a": both}, ValueError, "has 2 subgraphs, 2 signatures"),
        ({"a": tmp_path / "labels.tflite"}, ValueError, "4 labels"),
        ({"a": tmp_path / "none.tflite"}, FileNotFoundError, "No file"),
        ({}, TypeError, "give a dict"),
        ([files["classify"]], TypeError, "give a dict"),
    ):
        with pytest.raises(error, match=words):
            join_signatures(wrong, tmp_path / "m.tflite")
    assert (tmp_path / "m.tflite").read_bytes() == b"before"
