"""Random integer layers on JAX against plain loops in NumPy; run in a process on that backend. Prints what differs."""

import json
import sys

import jax
import numpy as np

from keras_lowbit.ops import Requantize, Rescale, ResidualAdd, jax_functions, pack_int8, pack_ternary, unpack
from tests.support.integer_layers import convolve, finish, pool

PADDINGS = ("SAME", "VALID", ((2, 0), (1, 3)))


def int8(random, shape):
    return random.integers(-128, 128, shape).astype(np.int8)


def pair(random, low, high):
    return tuple(int(size) for size in random.integers(low, high, 2))


def multiplier(random):
    return int(random.integers(1 << 30, 1 << 31)), -int(random.integers(0, 12))


def draw_output(random, channels, shape):
    """An epilogue and a residual for an output of that shape."""
    codes = {"zero_point": int(random.integers(-30, 30)), "low": -100, "high": 90}
    each = random.integers(0, 2)  # one value for all channels, or one for each
    count = channels if each else 1
    kind = random.integers(0, 4)
    if kind == 0:
        return None, None
    if kind == 1:
        return Rescale(random.uniform(0.001, 0.1, count).astype(np.float32), -2.5, 6.0), None
    if kind == 2:
        output = Requantize(factor=2.0 ** random.uniform(-12, 1, count), **codes)
    else:
        fixed = [multiplier(random) for _ in range(count)]
        output = Requantize(np.array([m for m, _ in fixed]), np.array([s for _, s in fixed]), **codes)
    if random.integers(0, 2):
        return output, None
    added = {name: multiplier(random) for name in ("first", "second", "output")}
    return output, ResidualAdd(int8(random, shape), zero_point=7, output_zero_point=-9, low=-120, high=110, **added)


def draw_weights(random, window, inputs, groups):
    """Packed weights of a convolution, or of a dense layer where the window is None."""
    shape = (inputs, int(random.integers(1, 80)))
    if window is not None:
        shape = (*window, inputs, groups * int(random.integers(1, 40)))
    if random.integers(0, 4) == 0:
        return pack_int8(random.integers(-127, 128, shape), groups)
    codes, size = random.integers(-1, 2, shape), int(random.integers(1, 12))
    if random.integers(0, 2):
        return pack_ternary(codes, groups=groups)
    clusters = -(-inputs // min(size, inputs))
    per_tap = window is not None and random.integers(0, 2)
    scales = random.integers(0, 128, (*(window if per_tap else ()), clusters, shape[-1]))
    return pack_ternary(codes, scales, size, groups)


def draw_images(random, channels):
    return int8(random, (int(random.integers(0, 4)), *pair(random, 4, 10), channels))


def check(random, call, wanted, x):
    """Whether a function of x and a bias gives the wanted integers: as it stands, or compiled."""
    sums = wanted(None, None, None)
    channels = sums.shape[-1]
    bias = random.integers(-999, 999, channels).astype(np.int32) if random.integers(0, 2) else None
    output, residual = draw_output(random, channels, sums.shape)
    run = jax.jit(call, static_argnums=(2, 3)) if random.integers(0, 2) else call
    got, want = np.asarray(run(x, bias, output, residual)), wanted(bias, output, residual)
    return got.dtype == want.dtype and np.array_equal(got, want)


def convolution(random):
    groups, window = int(random.choice([1, 1, 1, 2, 3])), pair(random, 1, 4)
    inputs = int(random.integers(1, 24))
    packed, x = draw_weights(random, window, inputs, groups), draw_images(random, groups * inputs)
    kernel, zero = unpack(packed), int(random.integers(-128, 128))
    where = (pair(random, 1, 3), PADDINGS[random.integers(0, 3)], pair(random, 1, 3))

    def call(x, bias, output, residual):
        names = dict(zip(("strides", "padding", "dilations"), where, strict=True))
        given = {"bias": bias, "output": output, "residual": residual, **names}
        return jax_functions.clustered_ternary_conv2d(x, packed, input_zero_point=zero, **given)

    return check(random, call, lambda *tail: finish(convolve(x, kernel, zero, *where, groups), *tail), x)


def dense(random):
    inputs, zero = int(random.integers(1, 300)), int(random.integers(-128, 128))
    packed, x = draw_weights(random, None, inputs, 1), int8(random, (*pair(random, 0, 4), inputs))
    total = (x.astype(np.int64) - zero) @ unpack(packed).astype(np.int64)

    def call(x, bias, output, residual):
        given = {"bias": bias, "output": output, "residual": residual}
        return jax_functions.ternary_dense(x, packed, input_zero_point=zero, **given)

    return check(random, call, lambda *tail: finish(total, *tail), x)


def depthwise(random):
    channels, multiply, window = int(random.integers(1, 40)), int(random.choice([1, 1, 2])), pair(random, 1, 4)
    kernel, x = random.integers(-127, 128, (*window, channels, multiply)).astype(np.int8), draw_images(random, channels)
    zero, where = int(random.integers(-128, 128)), (pair(random, 1, 3), PADDINGS[random.integers(0, 3)], (1, 1))
    grouped = kernel.reshape(*window, 1, channels * multiply)

    def call(x, bias, output, residual):
        given = {"bias": bias, "output": output, "residual": residual, "strides": where[0], "padding": where[1]}
        return jax_functions.int8_depthwise_conv2d(x, kernel, input_zero_point=zero, **given)

    return check(random, call, lambda *tail: finish(convolve(x, grouped, zero, *where, channels), *tail), x)


def maximum(random):
    x, window, strides = draw_images(random, int(random.integers(1, 40))), pair(random, 1, 4), pair(random, 1, 3)
    edges, code = ((1, 2), (0, 1)), int(random.integers(-128, 128))
    run = jax.jit(
        lambda x: jax_functions.max_pool2d(
            x, window, strides=strides, padding=edges, padding_code=code, low=-90, high=100
        )
    )
    return np.array_equal(run(x), pool(x, window, strides, edges, code, -90, 100))


def look_ups(random):
    x, y, table = int8(random, (3, 5)), int8(random, (3, 5)), int8(random, 65536)
    one = np.array([table[:256][int(a) + 128] for a in x.flat]).reshape(x.shape)
    two = np.array([table[(int(a) + 128) * 256 + int(b) + 128] for a, b in zip(x.flat, y.flat, strict=True)])
    got = jax_functions.look_up(x, table[:256]), jax_functions.look_up_pair(x, y, table.reshape(256, 256))
    return np.array_equal(got[0], one) and np.array_equal(got[1], two.reshape(x.shape))


KINDS = (convolution, convolution, convolution, dense, depthwise, maximum, look_ups)


def main(count):
    differ, kinds = [], {}
    for seed in range(count):
        kind = KINDS[seed % len(KINDS)]
        kinds[kind.__name__] = kinds.get(kind.__name__, 0) + 1
        if not kind(np.random.default_rng(seed)):
            differ.append(f"{kind.__name__} {seed}")
    print(json.dumps({"differ": differ, "kinds": kinds}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
