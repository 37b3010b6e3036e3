"""The libraries that apps use open our files: MediaPipe Tasks, and TensorFlow Lite's task library with its metadata reader.

Neither can be installed beside TensorFlow and NumPy 2: see `tests.support.phone`.
"""

import json
import subprocess
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.deploy.litert.file_runner import FileRunner
from tests.support.phone import environment, interpreter_of

LABELS = ["tench", "goldfish", "white shark"]
MEAN, STD = 127.5, 64.0
PIXELS = (
    np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
)  # an image of the size that the model takes

MEDIAPIPE = """
import json, sys
import mediapipe, numpy as np
from mediapipe.tasks.python import BaseOptions, vision
image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.load(sys.argv[1]))
found = {}
for path in sys.argv[2:]:
    try:
        options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=path))
        with vision.ImageClassifier.create_from_options(options) as classifier:
            [head] = classifier.classify(image).classifications
            found[path] = [[c.index, c.category_name, float(c.score)] for c in head.categories]
    except Exception as error:
        found[path] = f"{type(error).__name__}: {error}"
print("FOUND", json.dumps(found))
"""

TFLITE_SUPPORT = """
import json, sys
import numpy as np
from tflite_support import metadata
from tflite_support.task import vision
found = {}
for path in sys.argv[2:]:
    reader = metadata.MetadataDisplayer.with_model_file(path)
    files = {name: reader.get_associated_file_buffer(name).decode() for name in reader.get_packed_associated_file_list()}
    try:
        image = vision.TensorImage.create_from_array(np.load(sys.argv[1]))
        [head] = vision.ImageClassifier.create_from_file(path).classify(image).classifications
        classes = [[c.index, c.category_name, float(c.score)] for c in head.categories]
    except Exception as error:
        classes = f"{type(error).__name__}: {error}"
    found[path] = {"metadata": json.loads(reader.get_metadata_json()), "files": files, "classes": classes}
print("FOUND", json.dumps(found))
"""


def ask(library, script, files, tmp_path):
    np.save(tmp_path / "pixels.npy", PIXELS)
    command = [interpreter_of(library), "-c", script, tmp_path / "pixels.npy", *files]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    said = [line for line in result.stdout.splitlines() if line.startswith("FOUND ")]
    assert said, f"{library}: {result.returncode}, {result.stderr[-3000:]}"
    return json.loads(said[0].removeprefix("FOUND "))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Name -> (path, has labels): each kind of file of one classifier."""
    keras.utils.set_random_seed(2)
    image = keras.Input((16, 16, 3), name="image")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(16, 3, activation="relu", name="spatial")(image))
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax", name="classes")(x))
    quantized, _ = klb.quantize_model(model, "twn")
    klb.calibrate(quantized, (PIXELS[None].astype("float32") - MEAN) / STD, verbose=0)
    folder = tmp_path_factory.mktemp("phone")
    found = {}
    for weights in ("int8", "int4", "int2", "auto"):
        for labels in (LABELS, None):
            path = folder / f"{weights}{'_labels' * bool(labels)}.tflite"
            klb.export_litert(quantized, path, weights=weights, io="float32", labels=labels, normalization=(MEAN, STD))
            found[path.stem] = str(path), bool(labels)
    for name, io, more in (("codes", "int8", {"labels": LABELS}), ("bare", "float32", {})):
        klb.export_litert(quantized, folder / f"{name}.tflite", io=io, **more)
    return {"opens": found, "codes": str(folder / "codes.tflite"), "bare": str(folder / "bare.tflite")}


def check_classes(path, labelled, classes):
    """Ours, in falling order, under our labels; normalized as the file says."""
    assert isinstance(classes, list), classes
    [scores] = FileRunner(path).run([(PIXELS[None].astype("float32") - MEAN) / STD])
    order = np.argsort(-scores[0], kind="stable")
    assert sorted(c[0] for c in classes) == sorted(order)
    for index, name, score in classes:
        assert score == pytest.approx(
            float(scores[0][index]), abs=1 / 256
        )  # a step: pixels are normalized in float32 twice
        assert name == (LABELS[index] if labelled else name)


def test_labels_stand_uncompressed_behind_the_model(files):
    """What MediaPipe asks of the zip file; holds where neither library is installed."""
    for path, labelled in files["opens"].values():
        assert zipfile.is_zipfile(path) == labelled
        if not labelled:
            continue
        content = Path(path).read_bytes()
        text = "".join(f"{label}\n" for label in LABELS).encode()
        head = content.index(b"PK\x03\x04")
        assert content[head + 6 : head + 10] == bytes(4), "no flags (a size that follows, a cipher), method 0: stored"
        assert int.from_bytes(content[head + 18 : head + 22], "little") == len(text)
        assert content[head + 30 : head + 40] == b"labels.txt"
        assert content[head + 40 :].startswith(text)
        with zipfile.ZipFile(path) as archive:
            [entry] = archive.infolist()
            assert (entry.filename, entry.compress_type) == ("labels.txt", zipfile.ZIP_STORED)
            assert archive.testzip() is None


def test_mediapipe_classifies_with_every_kind_of_file(files, tmp_path):
    paths = [path for path, _ in files["opens"].values()]
    found = ask("mediapipe", MEDIAPIPE, [*paths, files["codes"], files["bare"]], tmp_path)
    for path, labelled in files["opens"].values():
        check_classes(path, labelled, found[path])
    # What its own rules exclude, as the docstring of export_litert says.
    assert "uint8/float32, got INT8" in found[files["codes"]]
    assert "NormalizationOptions" in found[files["bare"]]


def test_tflite_support_reads_the_metadata_and_classifies(files, tmp_path):
    found = ask("tflite-support", TFLITE_SUPPORT, [path for path, _ in files["opens"].values()], tmp_path)
    for path, labelled in files["opens"].values():
        [subgraph] = found[path]["metadata"]["subgraph_metadata"]
        [image], [classes] = subgraph["input_tensor_metadata"], subgraph["output_tensor_metadata"]
        assert (image["name"], classes["name"]) == ("image", "classes/softmax")
        assert image["content"]["content_properties"]["color_space"] == "RGB"
        assert image["process_units"][0]["options"] == {"mean": [MEAN], "std": [STD]}
        assert found[path]["files"] == ({"labels.txt": "".join(f"{label}\n" for label in LABELS)} if labelled else {})
        if path.rpartition("/")[2].startswith("int8"):
            check_classes(path, labelled, found[path]["classes"])
        else:  # its LiteRT is one of 2023, before packed weights
            refused = "classes/kernel invalid type" if "auto" in path.rpartition("/")[2] else "spatial/kernel requires"
            assert refused in found[path]["classes"]
