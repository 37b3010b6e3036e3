"""Fingerprints of what the library computes: a refactoring must leave every one of them equal.

    python -m tests.support.fingerprint --output before.json          # on the old sources
    python -m tests.support.fingerprint --compare before.json         # on the new ones, same machine

Each entry is the sha256 of bits: quantized weights, integer graphs, written files, thresholds after two seeded steps of
distillation. Entries under "portable" hold integers only, so they are equal on every machine: a test compares them with
tests/fixtures/fingerprint.json. The others go through float convolutions, whose last bits depend on the processor.

Files are written without the graph's metadata (names of options, version of the library), which may change their words.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from unittest import mock

import keras
import numpy as np

import keras_lowbit as klb
from keras_lowbit.deploy.litert import metadata, to_bytes
from tests.support import distill_models, lowering_zoo, model_zoo

L = keras.layers
# Operations that were renamed since the first fingerprints.
FORMER_NAMES = {"float_subgraph": "float_island"}


def digest(*parts) -> str:
    """sha256 of arrays (with type and shape), bytes and plain values."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype.str}{part.shape}".encode())
            part = np.ascontiguousarray(part).tobytes()
        found.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=list).encode())
    return found.hexdigest()


def of_graph(graph) -> str:
    """Tensors and nodes of an integer graph; metadata left out."""
    parts = [list(graph.inputs), list(graph.outputs)]
    for name, tensor in sorted(graph.tensors.items()):
        parts += [name, list(tensor.shape), tensor.dtype, tensor.zero_point]
        parts += [part for part in (tensor.scale, tensor.data) if part is not None]
    for node in graph.nodes:
        attributes = {k: digest(v) if isinstance(v, bytes) else v for k, v in node.attributes.items()}
        parts += [FORMER_NAMES.get(node.op, node.op), node.name, list(node.inputs), list(node.outputs), attributes]
    return digest(*parts)


def of_file(graph, **options) -> str:
    """The .tflite file of a graph without its metadata; TFLite's own may have its tables in any order."""
    graph = klb.deploy.IntegerGraph(graph.tensors, graph.nodes, graph.inputs, graph.outputs, {})
    with mock.patch.object(metadata, "describe", return_value=b"left out"):
        return digest(to_bytes(graph, **options)[0])


def of_weights(model) -> str:
    """Codes and scales of every quantized layer."""
    found = klb.quantized_weights(model)
    return digest(*(part for path in sorted(found) for part in (path, found[path].codes, found[path].scale)))


def of_variables(model) -> str:
    """Every variable of a model, in its own order."""
    return digest(*(keras.ops.convert_to_numpy(keras.ops.copy(variable)) for variable in model.weights))


def built_graph(seed: int):
    """A graph made of integers alone: every weighted operation, an addition, pools, a table."""
    rng = np.random.default_rng(seed)
    b, grid = klb.deploy.GraphBuilder(), lambda e, z: klb.deploy.Range(float(np.float32(2.0**e)), z)

    def weights(shape, channels):
        scales = np.float32(2.0) ** -rng.integers(4, 9, channels).astype(np.float32)
        return rng.integers(-127, 128, shape, np.int8), scales, rng.integers(-500, 500, channels)

    x = b.input("x", (8, 8, 4), range=grid(-5, -7))
    a = b.conv2d(x, *weights((3, 3, 4, 8), 8), grid(-3, -128), "conv", padding="same", activation="relu")
    d = b.depthwise_conv2d(a, *weights((3, 3, 8, 1), 8), grid(-3, 5), "depthwise", padding="same", activation="relu6")
    s = b.add(a, d, grid(-2, -100), "sum", "relu")
    t = b.transpose_conv(s, *weights((2, 2, 4, 8), 4), grid(-2, 3), "up", strides=(2, 2), padding="valid")
    p = b.average_pool2d(b.max_pool2d(t, "max", (2, 2)), "average", (2, 2))
    m = b.mean(p, grid(-3, 1), "mean")
    f = b.fully_connected(m, *weights((4, 6), 6), grid(-2, 0), "dense")
    c = b.concatenation([f, b.reshape(f, "same", (6,))], "both")
    return b.build([b.softmax(b.leaky_relu(c, grid(-2, 2), "leaky", 0.25), "softmax")])


def portable() -> dict[str, str]:
    """Integers in, integers out."""
    found = {}
    for seed in range(6):
        graph = built_graph(seed)
        found[f"graph {seed}"] = of_graph(graph)
        for weights in ("int8", "int4", "int2"):
            found[f"file {seed} {weights}"] = of_file(graph, weights=weights)
        found[f"float32 ends {seed}"] = of_file(graph, io="float32", batch_size=2)
        codes = np.random.default_rng(seed).integers(-128, 128, (3, 8, 8, 4), np.int8)
        outputs = klb.deploy.run_reference(graph, codes)
        found[f"outputs {seed}"] = digest(
            np.asarray(outputs[graph.outputs[0]] if isinstance(outputs, dict) else outputs)
        )
    return found


def every_operation() -> dict[str, str]:
    """Each model of the lowering zoo: weights, graph, file."""
    found = {}
    for name, entry in lowering_zoo.ZOO.items():
        keras.utils.clear_session()
        keras.utils.set_random_seed(0)
        model, _ = lowering_zoo.trained(entry)
        graph = klb.deploy.lower(model, entry.input_shapes)
        found[f"zoo {name}: graph"] = of_graph(graph)
        found[f"zoo {name}: file"] = of_file(graph)
        if any(isinstance(layer, klb.layers.QuantizedLayer) for layer in model._flatten_layers()):
            try:
                found[f"zoo {name}: weights"] = of_weights(model)
            except ValueError:
                found[f"zoo {name}: weights"] = "no quantized kernel"
    return found


def every_recipe() -> dict[str, str]:
    """Each recipe on a residual and a separable network: weights, graph, packed files, packed layers."""
    found = {}
    for recipe in klb.recipes.names():
        for make in (model_zoo.residual, model_zoo.separable, model_zoo.sequential):
            keras.utils.clear_session()  # names that Keras counts up begin anew
            keras.utils.set_random_seed(1)
            model = model_zoo.randomize(make())
            data = model_zoo.inputs_of(model, count=8)
            quantized, _ = klb.quantize_model(model, recipe)
            klb.calibrate(quantized, data, verbose=0)
            key = f"{recipe} {make.__name__}"
            found[f"{key}: weights"] = of_weights(quantized)
            graph = klb.deploy.lower(quantized)
            found[f"{key}: graph"] = of_graph(graph)
            found[f"{key}: int2 file"] = of_file(graph, weights="int2")
            try:
                packed = klb.pack(quantized)
            except ValueError:
                continue
            found[f"{key}: packed"] = of_variables(packed)
            found[f"{key}: packed outputs"] = digest(np.asarray(packed.predict(data, verbose=0)))
    return found


def mobile() -> keras.Model:
    """A small network with batch norms, relu6 and depthwise layers."""
    image = keras.Input((12, 12, 3), name="image")
    value = L.ReLU(6.0)(L.BatchNormalization()(L.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(image)))
    value = L.ReLU(6.0)(
        L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same", use_bias=False, name="deep")(value))
    )
    value = L.ReLU(6.0)(L.BatchNormalization()(L.Conv2D(12, 1, use_bias=False, name="wide")(value)))
    return keras.Model(image, L.Dense(5, name="head")(L.GlobalAveragePooling2D()(value)), name="mobile")


def post_training() -> dict[str, str]:
    """Folding, equalizing, rescaling, bias correction, rounding, two steps of distillation."""
    found = {}
    keras.utils.set_random_seed(2)
    model = model_zoo.randomize(mobile())
    images = np.random.default_rng(5).normal(size=(16, 12, 12, 3)).astype("float32")
    folded = klb.fold_batch_norms(model)
    found["folded"] = of_variables(folded)
    for name, change in {
        "equalized": lambda: klb.equalize(folded, images, verbose=0),
        "equalized as relu": lambda: klb.equalize(folded, relu6="relu"),
        "rescaled": lambda: klb.rescale_depthwise(folded, images, verbose=0),
    }.items():
        found[name] = of_variables(change())
    for recipe in ("fat", "fat-scalar", "fat-w4", "int8"):
        quantized, _ = klb.quantize_model(folded, recipe)
        klb.calibrate(quantized, images, verbose=0)
        klb.correct_biases(quantized, folded, images, verbose=0)
        found[f"{recipe}: corrected"] = of_variables(quantized)
        klb.round_weights(quantized, folded, images, verbose=0)
        found[f"{recipe}: rounded"] = of_variables(quantized)
        if recipe != "int8":
            klb.distill(quantized, model, images, epochs=1, batch_size=8, seed=3, verbose=0)
            found[f"{recipe}: distilled"] = of_variables(quantized)
            found[f"{recipe}: file"] = of_file(klb.deploy.lower(quantized))
    teacher, student = distill_models.teacher_and_student()
    klb.distill(student, teacher, distill_models.VECTORS, epochs=1, batch_size=24, verbose=0)
    found["thresholds after two steps"] = of_variables(student)
    return found


def training() -> dict[str, str]:
    """Two seeded steps of `fit` under SQ and INQ."""
    found = {}
    for recipe in ("sq-twn", "sq-bwn", "inq-5", "dfp-2w8a-n4", "int8"):
        keras.utils.set_random_seed(4)
        model = model_zoo.randomize(model_zoo.residual())
        data = model_zoo.inputs_of(model, count=16)
        quantized, _ = klb.quantize_model(model, recipe)
        quantized.compile("sgd", "mse")
        targets = np.random.default_rng(6).normal(size=(16, 3)).astype("float32")
        callbacks = klb.recipes.get(recipe).callbacks(epochs=6)
        quantized.fit(data, targets, epochs=6, batch_size=8, shuffle=False, callbacks=callbacks, verbose=0)
        found[f"fit {recipe}"] = of_variables(quantized)
    return found


def collect() -> dict[str, dict[str, str]]:
    """All fingerprints by group."""
    groups = (portable, every_operation, every_recipe, post_training, training)
    return {group.__name__: group() for group in groups}


def differences(before: dict, after: dict) -> list[str]:
    """Entries that differ or are missing, "group: entry"."""
    return [
        f"{group}: {name}"
        for group, entries in before.items()
        for name in sorted({*entries, *after.get(group, {})})
        if entries.get(name) != after.get(group, {}).get(name)
    ]


def main() -> int:
    """Write or compare; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--compare", type=Path)
    given = parser.parse_args()
    found = collect()
    if given.output:
        given.output.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    changed = differences(json.loads(given.compare.read_text()), found) if given.compare else []
    print(
        "\n".join(changed) or f"{sum(map(len, found.values()))} fingerprints, all equal" if given.compare else "written"
    )
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
