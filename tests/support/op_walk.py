"""Every op in each of its forms, with the right result: what the walks over the ways of running an op go through.

A case is (arrays, call, expected): int8 arrays, what makes a tensor of them, and NumPy's own result. `ALL` has several for each
op of the compiled library; a form of the epilogue is one that some kernel treats in its own way.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_lowbit import ops
from keras_lowbit.numerics import requantization as fp
from keras_lowbit.ops import functions
from tests.support import integer_layers as oracle

RNG = np.random.default_rng(0)


class Case(NamedTuple):
    """op: of the compiled library.   arrays: int8, handed to `call` as tensors.   expected: what comes out."""

    name: str
    op: str
    arrays: list[np.ndarray]
    call: Callable[..., tf.Tensor]
    expected: np.ndarray


def codes(*shape):
    """Random int8."""
    return RNG.integers(-128, 128, shape).astype(np.int8)


def weights(*shape):
    """Random int8 as a kernel has them: as far below zero as above."""
    return np.maximum(codes(*shape), -127)


def epilogues(channels: int) -> dict[str, Any]:
    """Forms of the epilogue: what vectors do in fixed point or in doubles, and what only numbers one by one can."""
    small, large = (
        fp.quantize_multiplier(2.0 ** RNG.uniform(-9, -4, channels)),
        fp.quantize_multiplier(2.0 ** RNG.uniform(-1, 2, channels)),
    )
    return {
        "int32": None,
        "float": ops.Rescale(RNG.uniform(0.001, 0.1, channels).astype(np.float32), low=-1.0, high=6.0),
        "fixed": ops.Requantize(*small, zero_point=-3, low=-100),
        "fixed, factors above one half": ops.Requantize(*large, zero_point=4, high=99),
        "double": ops.Requantize(factor=2.0 ** RNG.uniform(-9, -4, channels), zero_point=7),
        "double, factors without a bound": ops.Requantize(factor=np.where(np.arange(channels) % 3, 0.7, 1e9)),
    }


def residuals(shape: tuple[int, ...]) -> dict[str, Any]:
    """Additions of codes: none, one that float32 can do, and one of factors that vectors do not take."""
    usual = [tuple(map(int, fp.quantize_multiplier(real))) for real in (0.5, 0.31, 1.3 / 2**20)]
    return {
        "": None,
        "residual": ops.ResidualAdd(codes(*shape), *usual, zero_point=-9, output_zero_point=4, low=-90),
        "residual, left shift": ops.ResidualAdd(codes(*shape), (2**30, 1), (2**30, 0), (2**30, -18), 1, -2),
    }


def layer(op, name, arrays, total, call) -> list[Case]:
    """A layer with each of its epilogues.   total: its int64 sums.   call: its op on tensors and an epilogue's arguments."""
    cases, bias = [], RNG.integers(-900, 900, total.shape[-1]).astype(np.int32)
    for kind, output in epilogues(total.shape[-1]).items():
        for addition, residual in residuals(total.shape).items():
            if residual is not None and (
                not isinstance(output, ops.Requantize) or ("left" in addition and kind != "fixed")
            ):
                continue
            words = {"bias": bias, "output": output}
            if residual is None:
                made = [*arrays], lambda *given, words=words: call(*given, **words)
            else:

                def added(*given, words=words, residual=residual):
                    return call(*given[:-1], **words, residual=dataclasses.replace(residual, codes=given[-1]))

                made = [*arrays, residual.codes], added
            title = " ".join(filter(None, (name, kind, addition)))
            cases.append(Case(title, op, *made, oracle.finish(total, bias, output, residual)))
    return cases


def convolutions() -> list[Case]:
    """Narrow and wide blocks, images that are copied and not, ternary with scales and int8."""
    cases = []
    for channels, outputs, packed in (
        (3, 5, ops.pack_ternary(RNG.integers(-1, 2, (3, 3, 3, 5)))),
        (20, 70, ops.pack_ternary(RNG.integers(-1, 2, (3, 3, 20, 70)), RNG.integers(0, 128, (5, 70)), 4)),
        (4, 16, ops.pack_int8(weights(2, 2, 4, 16))),
    ):
        x = codes(2, 9, 8, channels)
        words = {"input_zero_point": -5, "padding": "SAME", "strides": 1}
        total = oracle.convolve(x, ops.unpack(packed), -5, padding="SAME")

        def call(x, packed=packed, words=words, **epilogue):
            return functions.clustered_ternary_conv2d(x, packed, **words, **epilogue)

        cases += layer("PackedConv2D", f"convolution to {outputs}", [x], total, call)
    return cases


def dense() -> list[Case]:
    """A few rows, whose weights are decoded in registers, and one row."""
    cases = []
    for rows, packed in ((7, ops.pack_ternary(RNG.integers(-1, 2, (33, 70)))), (1, ops.pack_int8(weights(12, 9)))):
        x = codes(rows, packed.layout.window[2])
        total = (x.astype(np.int64) - 3) @ ops.unpack(packed).astype(np.int64)

        def call(x, packed=packed, **epilogue):
            return functions.ternary_dense(x, packed, input_zero_point=3, **epilogue)

        cases += layer("PackedDense", f"dense of {rows} rows", [x], total, call)
    return cases


def depthwise() -> list[Case]:
    """A block and a bit of channels, and several outputs of each channel."""
    cases = []
    for channels, multiplier in ((66, 1), (4, 2)):
        x, kernel = codes(1, 6, 7, channels), weights(3, 3, channels, multiplier)
        one_by_one = kernel.reshape(3, 3, 1, channels * multiplier)
        total = oracle.convolve(x, one_by_one, 7, padding="SAME", groups=channels)

        def call(x, kernel, **epilogue):
            return functions.int8_depthwise_conv2d(x, kernel, input_zero_point=7, padding="SAME", **epilogue)

        cases += layer("DepthwiseConv2D", f"depthwise {channels} x {multiplier}", [x, kernel], total, call)
    return cases


def unweighted() -> list[Case]:
    """Pools and tables."""
    x, more, table, pairs = codes(2, 9, 7, 37), codes(2, 9, 7, 37), codes(256), codes(256, 256)
    words = {"strides": (2, 1), "padding": ((1, 1), (0, 2)), "padding_code": -7, "low": -90, "high": 100}
    pooled = oracle.pool(x, (3, 2), (2, 1), words["padding"], -7, -90, 100)
    place = x.astype(int) + 128, more.astype(int) + 128
    return [
        Case("pool", "MaxPool2D", [x], lambda x: functions.max_pool2d(x, (3, 2), **words), pooled),
        Case("look up", "LookUp", [x, table], functions.look_up, table[place[0]]),
        Case("look up pair", "LookUpPair", [x, more, pairs], functions.look_up_pair, pairs[place]),
    ]


ALL = [*convolutions(), *dense(), *depthwise(), *unweighted()]
# A narrow layer of each kind: for what XLA compiles. Some of 4 n + 1 channels: see `tf_fallback.to_int8`.
NARROW = [case for case in ALL if case.expected.shape[-1] < 16 or case.op in ("MaxPool2D", "LookUp", "LookUpPair")]


def eagerly(cases: list[Case] = ALL) -> list[tf.Tensor]:
    """Each op on its own, on tensors that the caller keeps."""
    return [case.call(*map(tf.constant, case.arrays)) for case in cases]


def function(cases: list[Case] = ALL, **options) -> Callable[[], list[tf.Tensor]]:
    """All in one `tf.function`; another op makes every operand and one reads it: TensorFlow lends its memory to that."""
    inverted = [[tf.constant(~array) for array in case.arrays] for case in cases]

    @tf.function(**options)
    def run(inverted):
        return [case.call(*map(tf.bitwise.invert, given)) for case, given in zip(cases, inverted, strict=True)]

    return lambda: run(inverted)


def check(results: list[tf.Tensor], how: str, cases: list[Case] = ALL) -> None:
    """AssertionError with the name of the first case that differs."""
    for case, result in zip(cases, results, strict=True):
        np.testing.assert_array_equal(result, case.expected, err_msg=f"{case.name}, {how}", strict=True)
