"""The integer layers as XLA's calls on JAX: the functions against NumPy, packed layers against TensorFlow, on the CPU."""

import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit import ops
from keras_lowbit.ops import build, build_xla
from tests.support.process import OTHERS_ASIDE, ROOT, run_python

pytest.importorskip("jax")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The one that is named, or built now; from the CPU kernels' object files where they were kept."""
    if named := os.environ.get(build_xla.NAMED):
        return Path(named)
    if not build.can_build():
        pytest.skip("no C++ compiler")
    found = ops.library.find()
    kept = build.kept_objects(ROOT / "build" / "objects", found) if found else None
    return build_xla.build_library(tmp_path_factory.mktemp("xla"), say=str, objects=kept)


def run_on_jax(library, script, *arguments):
    environment = {"KERAS_BACKEND": "jax", build_xla.NAMED: str(library)}
    return json.loads(run_python(script, *arguments, absent=OTHERS_ASIDE, **environment).splitlines()[-1])


FUNCTIONS = """
import json
import jax, jax.numpy as jnp, numpy as np
from keras_lowbit.ops import Requantize, Rescale, jax_functions as functions, pack_int8, pack_ternary, unpack
from keras_lowbit.numerics import requantization

random = np.random.default_rng(3)
equal = {}

def sums(x, packed, zero_point, stride):
    kernel = unpack(packed).astype(np.int64).reshape(packed.layout.window)
    padded = np.pad(x.astype(np.int64) - zero_point, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = ((n - 1) // stride + 1 for n in x.shape[1:3])
    total = 0
    for i in range(3):
        for j in range(3):
            total += padded[:, i:i + (rows - 1) * stride + 1:stride, j:j + (columns - 1) * stride + 1:stride] @ kernel[i, j]
    return total

x = random.integers(-128, 128, (2, 9, 11, 20)).astype(np.int8)
ternary = pack_ternary(random.integers(-1, 2, (3, 3, 20, 70)), random.integers(0, 128, (5, 70)), cluster_size=4)
int8 = pack_int8(random.integers(-127, 128, (3, 3, 20, 70)))
bias = random.integers(-999, 999, 70).astype(np.int32)
for name, packed in (("ternary", ternary), ("int8", int8)):
    for stride in (1, 2):
        run = jax.jit(lambda x, b: functions.clustered_ternary_conv2d(
            x, packed, input_zero_point=5, padding=((1, 1), (1, 1)), strides=(stride, stride), bias=b))
        equal[f"{name} {stride}"] = bool((np.asarray(run(x, bias)) == sums(x, packed, 5, stride) + bias).all())
scale = jnp.asarray(random.uniform(0.1, 2, 70), jnp.float32)
reals = jax.jit(lambda s: functions.clustered_ternary_conv2d(x, ternary, padding="SAME", output=Rescale(s, 0.0, 6.0)))(scale)
wanted = np.clip(sums(x, ternary, 0, 1).astype(np.float32) * np.asarray(scale), 0, 6)
equal["reals"] = bool((np.asarray(reals) == wanted).all())
codes = functions.clustered_ternary_conv2d(jnp.asarray(x), ternary, padding="SAME", output=Requantize(1518500250, -9, None, 3))
product = requantization.multiply_by_quantized_multiplier(
    sums(x, ternary, 0, 1), requantization.Multiplier(np.int64(1518500250), np.int64(-9)))
equal["codes"] = bool((np.asarray(codes) == np.clip(product + 3, -128, 127)).all())
rows = jnp.asarray(random.integers(-128, 128, (3, 4, 24)), jnp.int8)
dense = pack_ternary(random.integers(-1, 2, (24, 7)))
equal["dense"] = bool((np.asarray(functions.ternary_dense(rows, dense)) == np.asarray(rows, int) @ unpack(dense)).all())
errors = {}
for name, call in {
    "type": lambda: functions.clustered_ternary_conv2d(jnp.zeros((1, 4, 4, 20)), ternary),
    "factor": lambda: functions.clustered_ternary_conv2d(jnp.asarray(x), ternary, output=Requantize(factor=0.5)),
}.items():
    try:
        call()
    except ValueError as error:
        errors[name] = str(error)
print(json.dumps({"equal": equal, "errors": errors}))
"""


@pytest.mark.slow(30)
def test_functions_give_the_integers_of_numpy(library):
    found = run_on_jax(library, FUNCTIONS)
    assert len(found["equal"]) == 7
    assert all(found["equal"].values()), found["equal"]
    assert "expected int8 [N, H, W, 20]" in found["errors"]["type"]
    assert "Requantize(factor=)" in found["errors"]["factor"]


LAYERS = """
import json, sys
import jax, jax.numpy as jnp, keras, numpy as np
import keras_lowbit
from keras_lowbit.deploy.packed import jax_call

model, given = keras.saving.load_model(sys.argv[1]), np.load(sys.argv[2])
found = {"jit": [], "equal": {}, "near": {}}
for layer in model.layers[1:]:
    x = given[f"{layer.name} in"]
    found["jit"].append(layer.supports_jit)
    found["equal"][layer.name] = bool((np.asarray(jax.jit(layer)(x)) == given[f"{layer.name} out"]).all())
    slope = jax.grad(lambda x: (layer(x) * given[f"{layer.name} out"]).sum())(jnp.asarray(x))
    found["near"][layer.name] = float(np.abs(slope - given[f"{layer.name} slope"]).max() / np.abs(slope).max())
found["predicted"] = model.predict(given["x"], verbose=0).tolist()
print(json.dumps(found))
"""


def packed_model():
    random = np.random.default_rng(5)
    entry = keras.Input((10, 10, 8))
    layers = [
        klb.deploy.PackedTernaryConv2D(
            ops.Layout("ternary", (3, 3, 8, 20), 4),
            input_range=(0.03, 4),
            padding="same",
            activation="relu",
            name="first",
        ),
        klb.deploy.PackedTernaryConv2D(
            ops.Layout("ternary", (1, 1, 10, 24), groups=2), input_range=(0.05, -128), strides=2, name="grouped"
        ),
        klb.deploy.PackedTernaryConv2D(ops.Layout("ternary", (3, 3, 24, 6), 8), name="in_float"),
        klb.deploy.PackedTernaryDense(ops.Layout("ternary", (6, 5)), input_range=(0.1, 0), name="head"),
    ]
    x = entry
    for layer in layers:
        x = layer(x)
    for layer in layers:
        layout = layer.layout
        codes = random.integers(-1, 2, layout.kernel_shape)
        scales = random.integers(1, 90, (layout.clusters, layout.window[3])) if layout.cluster_size else None
        kernel = ops.pack_ternary(codes, scales, layout.cluster_size or None, layout.groups)
        channels = layout.window[3]
        layer.load(kernel, random.uniform(0.001, 0.01, channels), random.uniform(-1, 1, channels))
    return keras.Model(entry, x)


def inside(model, x):
    """What each layer is given, gives, and passes back where its own outputs come back, on TensorFlow."""
    import tensorflow as tf

    arrays = {"x": x}
    for layer in model.layers[1:]:
        given = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(given)
            out = layer(given)
            loss = tf.reduce_sum(out * tf.stop_gradient(out))
        arrays[f"{layer.name} slope"] = tape.gradient(loss, given).numpy()
        arrays[f"{layer.name} in"], arrays[f"{layer.name} out"] = x, out.numpy()
        x = arrays[f"{layer.name} out"]
    return arrays


@pytest.mark.slow(40)
def test_packed_layers_run_on_jax(library, tmp_path):
    model = packed_model()
    arrays = inside(model, np.random.default_rng(1).normal(0, 2, (3, 10, 10, 8)).astype("float32"))
    model.save(tmp_path / "packed.keras")
    np.savez(tmp_path / "arrays.npz", **arrays)
    found = run_on_jax(library, LAYERS, tmp_path / "packed.keras", tmp_path / "arrays.npz")
    assert all(found["jit"])
    integer = {name: same for name, same in found["equal"].items() if name != "in_float"}
    assert len(integer) == 3
    assert all(integer.values()), found["equal"]
    assert max(found["near"].values()) < 1e-5, found["near"]  # float32 sums in another order
    np.testing.assert_allclose(
        found["predicted"], arrays["head out"], rtol=0.1, atol=0.1 * np.abs(arrays["head out"]).max()
    )


def test_without_the_library_the_error_names_the_command(tmp_path):
    script = """
import json, jax.numpy as jnp, numpy as np
from keras_lowbit.ops import LibraryError, jax_functions, pack_ternary
try:
    jax_functions.ternary_dense(jnp.ones((2, 8), jnp.int8), pack_ternary(np.ones((8, 3), np.int8)))
except LibraryError as error:
    print(json.dumps(str(error)))
"""
    assert "does not load" in run_on_jax(tmp_path / "nothing.so", script)
    environment = {"KERAS_BACKEND": "jax", "XDG_CACHE_HOME": str(tmp_path), build_xla.NAMED: ""}
    said = run_python(script, absent=OTHERS_ASIDE, **environment)
    assert f"run `{build_xla.COMMAND}`" in said
