"""What reads files here: how a sound one is made, how it is damaged, and what a reader did with the damaged one.

The outcomes that must not occur are "raw" (an exception that is not the reader's own), "silent" (taken for sound, and it means
something else) and "memory"; "crash" and "hang" are seen from outside.
"""

import io
import json
import os
import zipfile
from functools import cache
from pathlib import Path

import flatbuffers  # noqa: F401 - loaded before memory is measured
import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

import keras_lowbit as klb
from keras_lowbit.deploy import Runtime
from keras_lowbit.deploy.graph import GraphFileError, IntegerGraph
from keras_lowbit.deploy.litert.metadata import append_labels
from keras_lowbit.deploy.litert.metadata_schema_py_generated import ModelMetadataT
from keras_lowbit.deploy.litert.writer import to_bytes
from keras_lowbit.deploy.reference.interpreter import trace
from keras_lowbit.deploy.verification import verify as verify_module
from keras_lowbit.distill import state
from keras_lowbit.keras_graph.variables import to_numpy
from tests.fuzz.damage import (
    bytes_at_random,
    json_at_random,
    metadata_at_random,
    sealed_at_random,
    tables_at_random,
)
from tests.support.distill_models import VECTORS, inflated, teacher_model

FORMER = Path(__file__).parents[1] / "fixtures" / "v1" / "graph.klb"
IMAGES = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)).astype("float32")
LABELS = list("abcde")
SMALL = 1e5  # elements of the largest tensor of a graph that is run


@cache
def quantized():
    """A residual network with a float subgraph."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(image)
    y = keras.layers.DepthwiseConv2D(3, padding="same", name="deep")(x)
    x = keras.layers.Add(name="add")([x, keras.layers.Activation("gelu", name="gelu")(y)])
    x = keras.layers.GlobalAveragePooling2D(name="pool")(keras.layers.MaxPooling2D(name="window")(x))
    model = keras.Model(image, keras.layers.Dense(5, activation="softmax", name="head")(x), name="tiny")
    found, _ = klb.quantize_model(model, "int8")
    klb.calibrate(found, IMAGES, verbose=0)
    return found


@cache
def any_size():
    """A network for images of any size."""
    keras.utils.set_random_seed(1)
    image = keras.Input((None, None, 3), name="image")
    x = keras.layers.Conv2D(3, 3, strides=2, name="first")(image)
    model = keras.Model(image, keras.layers.Dense(2, name="head")(keras.layers.GlobalAveragePooling2D(name="pool")(x)))
    found, _ = klb.quantize_model(model, "int8")
    klb.calibrate(found, IMAGES, verbose=0)
    return found


class Graph:
    """.klb files: bytes of both versions, and descriptions with a digest that is right."""

    def __init__(self, folder):
        self.path = folder / "damaged.klb"
        klb.deploy.lower(quantized()).save(self.path)
        self.contents = [self.path.read_bytes(), FORMER.read_bytes()]
        self.graphs = [IntegerGraph.load(self.path), IntegerGraph.load(FORMER)]

    def examine(self, random):
        """Outcome and detail for one damaged file."""
        if random.integers(0, 2):
            which = int(random.integers(0, 2))
            self.path.write_bytes(bytes_at_random(self.contents[which], random))
            found, outcome = self._load()
            return outcome if found is None else ("equal" if found.equals(self.graphs[which]) else "silent", "")
        self.path.write_bytes(_former(self.contents[1], random) if random.integers(0, 3) == 0 else
                              sealed_at_random("graph", self.contents[0], random))  # fmt: skip
        found, outcome = self._load()
        return outcome if found is None else self._use(found, random.integers(0, 10) == 0)

    def _load(self):
        try:
            return IntegerGraph.load(self.path), None
        except GraphFileError as error:
            return None, ("refused", str(error))

    def _use(self, graph, with_runtime):
        """What was accepted must print, save, export and run."""
        if not str(graph):
            return "silent", "no text"
        graph.save(self.path)
        if not IntegerGraph.load(self.path).equals(graph):
            return "silent", "saved it is another"
        to_bytes(graph)
        if max(np.prod([d or 1 for d in t.shape], dtype=float) for t in graph.tensors.values()) < SMALL:
            inputs = {n: _zeros(graph.tensors[n]) for n in graph.inputs}
            trace(graph, inputs)
            if with_runtime:
                Runtime(graph)(inputs)
        return "equal", ""


def _zeros(tensor):
    return np.zeros([d or 1 for d in tensor.shape], tensor.dtype)


def _former(content, random):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        text, arrays = archive.read("graph.json"), archive.read("arrays.bin")
    changed = json.dumps(json_at_random(json.loads(text), random))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("graph.json", changed)
        archive.writestr("arrays.bin", arrays)
    return stream.getvalue()


class File:
    """.tflite files under `verify`: bytes, and tables changed field by field."""

    def __init__(self, folder):
        self.path = folder / "damaged.tflite"
        self.models = [quantized(), quantized(), any_size()]
        self.contents = []
        labelled = {"io": "float32", "labels": LABELS, "normalization": (127.5, 64.0)}
        for model, more in zip(self.models, ({}, labelled, {"input_shapes": (8, 8, 3)}), strict=True):
            klb.export_litert(model, self.path, **more)
            self.contents.append(self.path.read_bytes())
        self.meanings = [_meaning(content) for content in self.contents]
        verify_module.lower_model = _remembered(verify_module.lower_model)

    def examine(self, random):
        """Outcome and detail for one damaged file."""
        which = int(random.integers(0, len(self.contents)))
        content = self.contents[which]
        ways = (bytes_at_random, _labelled(tables_at_random), _labelled(metadata_at_random))
        damaged = ways[random.integers(0, len(ways))](content, random)
        self.path.write_bytes(damaged)
        try:
            parity = klb.verify(self.models[which], self.path, IMAGES, layer_samples=1)
        except ValueError as error:
            return "refused", str(error)
        if not parity.ok:
            return "reported", ""
        return ("equal" if _meaning(damaged) == self.meanings[which] else "silent"), ""


def _remembered(lower):
    """`lower` once for each model and its arguments: the models stand still."""
    kept = {}

    def lowered(model, *args, **more):
        key = repr((id(model), args, more))
        if key not in kept:
            kept[key] = lower(model, *args, **more)
        return kept[key]

    return lowered


def _labelled(change):
    """Tables changed; the labels behind them as they were."""

    def changed(content, random):
        found = change(content, random)
        return found if found == content or content.rfind(b"PK\x03\x04") < 0 else append_labels(found, LABELS)

    return changed


def _meaning(content):
    """All that an app sees, read without our readers."""
    found = []
    for resolver in (OpResolverType.AUTO, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES):
        interpreter = Interpreter(model_content=content, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
        found.append(interpreter.get_signature_list())
        for detail in (*interpreter.get_input_details(), *interpreter.get_output_details()):
            found.append([detail["name"], detail["shape"].tolist(), str(detail["dtype"]), detail["quantization"]])
        for scale in (1, 40):
            [end] = interpreter.get_input_details()
            interpreter.set_tensor(end["index"], (scale * IMAGES[:1]).astype(end["dtype"]))
            interpreter.invoke()
            found += [interpreter.get_tensor(d["index"]).tobytes() for d in interpreter.get_output_details()]
    about = ModelMetadataT.InitFromPackedBuf(_entry(content, b"TFLITE_METADATA"))
    units = about.subgraphMetadata[0].inputTensorMetadata[0].processUnits or []
    found += [[unit.options.mean.tolist(), unit.options.std.tolist()] for unit in units]
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found.append(archive.read("labels.txt"))
    return found


def _entry(content, name):
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content)
    entries = {model.Metadata(i).Name(): model.Metadata(i).Buffer() for i in range(model.MetadataLength())}
    return model.Buffers(entries[name]).DataAsNumpy().tobytes()


class Checkpoint:
    """Checkpoints of `distill`: bytes, and descriptions with a digest that is right."""

    def __init__(self, folder):
        self.path = folder / "tuning"
        teacher = teacher_model()
        student = inflated(teacher)
        klb.distill(student, teacher, VECTORS, epochs=2, checkpoint=self.path, verbose=0)
        self.content = self.path.read_bytes()
        self.distiller = klb.Distiller(student, teacher)
        self.distiller.compile(keras.optimizers.Adam(0.1))
        self.distiller.optimizer.build(self.distiller.trainable_variables)
        self.variables = [*self.distiller.trainable_variables, *self.distiller.optimizer.variables]
        self.progress = self._state(state.load(self.path, self.distiller))

    def _state(self, progress):
        held = [to_numpy(variable).tobytes() for variable in self.variables]
        best = [value.tobytes() for value in progress.best.values]
        return held, best, progress.best.loss, progress.epoch, progress.step, progress.history, progress.written

    def examine(self, random):
        """Outcome and detail for one damaged file."""
        sealed = bool(random.integers(0, 2))
        make = (lambda: sealed_at_random("distill", self.content, random)) if sealed else \
            (lambda: bytes_at_random(self.content, random))  # fmt: skip
        self.path.write_bytes(make())
        before = [to_numpy(variable).tobytes() for variable in self.variables]
        try:
            found = self._state(state.load(self.path, self.distiller))
        except ValueError as error:
            same = before == [to_numpy(variable).tobytes() for variable in self.variables]
            return ("refused" if same else "silent"), str(error)
        return ("equal" if sealed or found == self.progress else "silent"), ""


class Model:
    """.keras files whose configuration is another: the quantizers' part of it is ours."""

    def __init__(self, folder):
        self.path = folder / "damaged.keras"
        inputs = keras.Input((4,))
        model = keras.Model(inputs, keras.layers.Dense(3, name="head")(inputs))
        found, _ = klb.quantize_model(model, "sq-twn")
        found.save(self.path)
        with zipfile.ZipFile(self.path) as archive:
            self.parts = {name: archive.read(name) for name in archive.namelist()}

    def examine(self, random):
        """Outcome and detail for one damaged file. Only what our own code raises is looked at; Keras' readers are Keras'."""
        config = json.loads(self.parts["config.json"])
        layers = [layer for layer in config["config"]["layers"] if layer["module"].startswith("keras_lowbit")]
        layer = layers[random.integers(0, len(layers))]
        layer["config"] = json_at_random(layer["config"], random)
        with zipfile.ZipFile(self.path, "w") as archive:
            for name, content in self.parts.items():
                archive.writestr(name, json.dumps(config) if name == "config.json" else content)
        try:
            keras.saving.load_model(self.path)
        except (ValueError, TypeError) as error:
            return "refused", str(error)
        except MemoryError:
            raise
        except Exception as error:
            trail = error.__traceback__
            while trail.tb_next is not None:
                trail = trail.tb_next
            if f"{os.sep}keras_lowbit{os.sep}" in trail.tb_frame.f_code.co_filename:
                raise
            return "refused", f"by Keras: {error}"
        return "equal", ""


class Every:
    """Files of all kinds by turns, for a short run: starting takes longer than a hundred files."""

    def __init__(self, folder):
        self.targets = [make(folder) for make in (Graph, File, Checkpoint, Model)]

    def examine(self, random):
        """Outcome and detail for one damaged file."""
        return self.targets[random.integers(0, len(self.targets))].examine(random)


TARGETS = {"klb": Graph, "tflite": File, "checkpoint": Checkpoint, "keras": Model, "every": Every}
