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
from keras_lowbit.ops import Requantize, Rescale, ResidualAdd, jax_functions as functions, pack_int8, pack_ternary, unpack
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
    "channels": lambda: functions.clustered_ternary_conv2d(x[..., :4], ternary),
    "factor": lambda: functions.clustered_ternary_conv2d(jnp.asarray(x), ternary, output=Requantize(factor=scale)),
    "residual": lambda: functions.ternary_dense(rows, dense, output=Requantize(factor=0.5), residual=ResidualAdd(
        np.zeros((3, 4, 6), np.int8), (1 << 30, 0), (1 << 30, 0), (1 << 30, 0))),
    "shift": lambda: jax.block_until_ready(functions.ternary_dense(rows, dense, output=Requantize(
        jnp.full(7, 1 << 30), jnp.full(7, 40)))),
    "size": lambda: jax.block_until_ready(jax.ffi.ffi_call(functions.CALLS["MaxPool2D"], jax.ShapeDtypeStruct((1,), jnp.int8))(
        x, **{name: np.int64(1) for name in ("kernel_height", "kernel_width", "stride_height", "stride_width",
              "dilation_height", "dilation_width", "pad_top", "pad_bottom", "pad_left", "pad_right",
              "padding_code", "low", "high")})),
    "attribute": lambda: jax.block_until_ready(
        jax.ffi.ffi_call(functions.CALLS["MaxPool2D"], jax.ShapeDtypeStruct((1,), jnp.int8))(x)),
    "arguments": lambda: jax.block_until_ready(
        jax.ffi.ffi_call(functions.CALLS["OutputFactors"], jax.ShapeDtypeStruct((3, 1), jnp.int32))(
            np.ones(1, np.float32), input_scale=np.float32(1), output_scale=np.float32(1))),
}.items():
    try:
        call()
    except (ValueError, TypeError, RuntimeError) as error:
        errors[name] = str(error)
print(json.dumps({"equal": equal, "errors": errors}))
"""


@pytest.mark.slow(30)
def test_functions_give_the_integers_of_numpy(library):
    found = run_on_jax(library, FUNCTIONS)
    assert len(found["equal"]) == 7
    assert all(found["equal"].values()), found["equal"]
    expected = {
        "type": "an array of float32 of shape (1, 4, 4, 20); expected int8 codes",
        "channels": "meet a kernel for 20 channels",
        "factor": "a JAX array of float32; expected NumPy's float64 numbers",
        "residual": "the residual has shape (3, 4, 6); expected the output's, (3, 4, 7)",
        "shift": "40",
        "size": "has 1 elements; expected 5720",
        "attribute": "without the attribute",
        "arguments": "argument 1 of an XLA call",
    }
    assert found["errors"].keys() == expected.keys()
    for name, words in expected.items():
        assert words in found["errors"][name], found["errors"][name]


@pytest.mark.slow(60)
def test_random_layers_give_the_integers_of_loops_in_numpy(library):
    """Convolutions, dense and depthwise layers with every epilogue, maxima, look-ups; compiled and not, batches of 0 to 3."""
    count = int(os.environ.get("KLB_CASES", "140"))
    script = f"from tests.support import jax_walk; jax_walk.main({count})"
    found = run_on_jax(library, script)
    assert sum(found["kinds"].values()) == count
    assert len(found["kinds"]) == 5
    assert found["differ"] == []


FACTORS = """
import json
import jax, numpy as np
from keras_lowbit.ops import jax_functions
from keras_lowbit.numerics import requantization

random = np.random.default_rng(2)
scale = np.concatenate([2.0 ** random.uniform(-60, 10, 2000), [0, 1e-45, 1, 2 - 2**-23, 0.5]]).astype(np.float32)
bias = (random.normal(0, 1, len(scale)) * np.maximum(scale, 1e-3)).astype(np.float32)
bias[:3] = np.float32([1e30, -1e30, np.nan])
source, target = np.float32(0.037), np.float32(0.041)
real = np.float64(source) * scale.astype(np.float64) / np.float64(target)
want = requantization.quantize_multiplier(real)
step = (scale * source).astype(np.float64)
with np.errstate(all="ignore"):
    steps = np.where(step == 0, 0, np.round(bias.astype(np.float64) / step))
whole = np.where(np.abs(steps) < 2.0**31, steps, -(2.0**31)).astype(np.int64)
got = jax.jit(lambda s, b: jax_functions.output_factors(s, b, source, target))(scale, bias)
none = jax_functions.output_factors(scale, None, source, target)
pairs = zip(got + none, (want.multiplier, want.shift, whole, want.multiplier, want.shift, 0 * whole), strict=True)
print(json.dumps([int((np.asarray(one) != other).sum()) for one, other in pairs]))
"""


@pytest.mark.slow(20)
def test_factors_of_int8_outputs_are_made_in_float64(library):
    assert run_on_jax(library, FACTORS) == [0] * 6


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


CODES = """
import json, sys
import jax, keras, numpy as np
import keras_lowbit

model, given = keras.saving.load_model(sys.argv[1]), np.load(sys.argv[2])
assert keras.backend.backend() == "jax"
assert [str(layer.output.dtype) for layer in model.layers[1:]] == ["int8"] * 4
found = {}
for size in (1, 2, 5):
    found[f"predict {size}"] = model.predict(given["x"], batch_size=size, verbose=0)
found["called"] = np.asarray(model(given["x"]))
found["compiled"] = np.asarray(jax.jit(lambda x: model(x, training=False))(given["x"]))
print(json.dumps({name: [str(y.dtype), bool(np.array_equal(y, given["y"]))] for name, y in found.items()}))
"""


def model_of_codes():
    """Four layers that hand int8 codes to one another."""
    random = np.random.default_rng(8)
    grids = [(0.03, 4), (0.05, -128), (0.04, -20), (0.07, 9), (0.02, 1)]
    kinds = [
        (klb.deploy.PackedTernaryConv2D, (3, 3, 8, 20), 4, {"padding": "same", "activation": "relu"}),
        (klb.deploy.PackedTernaryConv2D, (3, 3, 20, 70), 0, {"strides": 2, "activation": "relu6"}),
        (klb.deploy.PackedTernaryConv2D, (1, 1, 70, 6), 16, {"use_bias": False}),
        (klb.deploy.PackedTernaryDense, (6, 5), 0, {}),
    ]
    x = entry = keras.Input((11, 10, 8))
    for number, (cls, shape, cluster, given) in enumerate(kinds):
        scales = random.integers(1, 90, (-(-shape[-2] // cluster), shape[-1])) if cluster else None
        kernel = ops.pack_ternary(random.integers(-1, 2, shape), scales, cluster or None)
        layer = cls(kernel.layout, input_range=grids[number], output_range=grids[number + 1], **given)
        x = layer(x)
        inputs = np.prod(shape[:-1]) * (50 if cluster else 1) ** 2  # outputs of about 40 steps either way
        step = grids[number + 1][0] / grids[number][0] / np.sqrt(0.67 * inputs)
        layer.load(kernel, step * random.uniform(0.5, 1.5, shape[-1]), random.uniform(-0.1, 0.1, shape[-1]))
    return keras.Model(entry, x)


@pytest.mark.slow(40)
def test_a_model_of_int8_codes_predicts_the_integers_of_tensorflow(library, tmp_path):
    model, x = model_of_codes(), np.random.default_rng(1).normal(0, 2, (5, 11, 10, 8)).astype("float32")
    assert [layer.output.dtype for layer in model.layers[1:]] == ["int8"] * 4
    y = model.predict(x, verbose=0)
    assert y.dtype == np.int8
    assert len(np.unique(y)) > 40  # neither end holds them all
    model.save(tmp_path / "codes.keras")
    np.savez(tmp_path / "arrays.npz", x=x, y=y)
    found = run_on_jax(library, CODES, tmp_path / "codes.keras", tmp_path / "arrays.npz")
    assert found == {name: ["int8", True] for name in ("predict 1", "predict 2", "predict 5", "called", "compiled")}


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
