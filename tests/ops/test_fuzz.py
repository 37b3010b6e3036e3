"""The compiled ops under wrong ranks, sizes, types and huge numbers: an error each time, never a crash.

Everything runs in one process of its own: a crash would end it, and the test would say so.
"""

import pytest

from keras_lowbit import ops
from tests.support.process import run_python

SCRIPT = """
import numpy as np, tensorflow as tf
import keras_lowbit as klb
from keras_lowbit.ops import library
raw = library._load().ops
rng = np.random.default_rng(0)
packed = klb.ops.pack_ternary(rng.integers(-1, 2, (3, 3, 4, 8)), rng.integers(0, 128, (2, 8)), 2)
none = {k: np.zeros(0, t) for k, t in
        dict(bias="i4", multiplier="i4", shift="i4", factor="f8", float_scale="f4", residual="i1").items()}
conv = dict(input=np.zeros((1, 5, 5, 4), "i1"), codes=packed.data, scales=packed.scales, sums=packed.sums, **none,
            layout="ternary", kernel_shape=[3, 3, 4, 8], cluster_size=2, padding="SAME", out_type=tf.int32)
flat = klb.ops.pack_ternary(rng.integers(-1, 2, (4, 8)))
dense = dict(input=np.zeros((2, 4), "i1"), codes=flat.data, scales=flat.scales, sums=flat.sums, **none, layout="ternary",
             kernel_shape=[1, 1, 4, 8], out_type=tf.int32)
deep = dict(input=np.zeros((1, 5, 5, 4), "i1"), kernel=np.zeros((3, 3, 4, 2), "i1"), **none, padding="VALID",
            out_type=tf.int32)
pool = dict(input=np.zeros((1, 5, 5, 4), "i1"), window=[2, 2], padding="VALID")
ops = {"conv": (raw.keras_lowbit_packed_conv2d, conv), "dense": (raw.keras_lowbit_packed_dense, dense),
       "deep": (raw.keras_lowbit_depthwise_conv2d, deep), "pool": (raw.keras_lowbit_max_pool2d, pool)}
for function, arguments in ops.values():
    function(**arguments)  # as they are, they run

def tensors():
    shape = [int(n) for n in rng.choice([0, 1, 2, 3, 4, 5, 8, 64, 65], rng.integers(0, 6))]
    return rng.integers(-100, 100, shape)

numbers = [-2**63, -2**31 - 1, -129, -1, 0, 1, 2, 3, 5, 128, 2**30, 2**31, 2**40, 2**62, 2**63 - 1]
def mutate(value, key):
    if isinstance(value, np.ndarray):
        if rng.random() < 0.2:
            return tensors().astype(rng.choice(["i1", "u1", "i4", "f4", "f8", "i8"]))
        return tensors().astype(value.dtype)
    if key == "out_type":
        return [tf.int8, tf.int32, tf.float32, tf.float64][rng.integers(4)]
    if key == "padding":
        return ["SAME", "VALID", "EXPLICIT", "CAUSAL"][rng.integers(4)]
    if isinstance(value, list) or key in ("strides", "dilations", "explicit_paddings"):
        return [int(n) for n in rng.choice(numbers, rng.choice([0, 1, 2, 3, 4, 5, 10]))]
    if isinstance(value, str):
        return ["ternary", "int8", "base3"][rng.integers(3)]
    return int(rng.choice(numbers))

window = {"strides": [1, 1], "dilations": [1, 1], "explicit_paddings": []}
residuals = ("zero_point", "first_multiplier", "first_shift", "second_multiplier", "second_shift", "output_multiplier",
             "output_shift", "output_zero_point", "low", "high")
epilogue = {"input_zero_point": 0, "zero_point": 0, "low": 0, "high": 0, "has_residual": 0}
extra = {"conv": {**window, **epilogue, "groups": 1, "scales_per_tap": 0}, "dense": {**epilogue, "scales_per_tap": 0},
         "deep": {**window, **epilogue}, "pool": {**window, "padding_code": -128, "low": -128, "high": 127}}
refused = ran = 0
for trial in range(2000):
    name = ["conv", "dense", "deep", "pool"][trial % 4]
    function, arguments = ops[name]
    known = {**extra[name], **arguments}
    changed = dict(arguments)
    for key in rng.choice(sorted(known), rng.integers(1, 4), replace=False):
        if key == "has_residual":
            changed |= {key: True, **{f"residual_{name}": int(rng.choice(numbers)) for name in residuals}}
        else:
            changed[key] = bool(rng.integers(2)) if key == "scales_per_tap" else mutate(known[key], key)
    try:
        result = function(**changed)
        assert result.shape.num_elements() < 2**31
        ran += 1
    except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError, tf.errors.UnimplementedError, ValueError, TypeError,
            OverflowError, tf.errors.ResourceExhaustedError):
        refused += 1
print("done", refused, ran)

for table in ((255,), (0,), (2, 128, 1), (65536,)):
    for function, inputs in ((raw.keras_lowbit_look_up, 1), (raw.keras_lowbit_look_up_pair, 2)):
        if int(np.prod(table)) == (256 if inputs == 1 else 65536):
            continue
        codes = dict(zip(("input",) if inputs == 1 else ("first", "second"), [np.zeros((3, 3), "i1")] * inputs))
        try:
            function(**codes, table=np.zeros(table, "i1"))
        except tf.errors.InvalidArgumentError:
            continue
        raise SystemExit(f"table {table} was taken")
"""


@pytest.mark.skipif(bool(ops.why_not()), reason=f"no compiled library: {ops.why_not()}")
def test_random_wrong_arguments_are_errors():
    last = run_python(SCRIPT).split()
    assert last[0] == "done"
    assert int(last[1]) > 1400
    assert int(last[2]) > 20
