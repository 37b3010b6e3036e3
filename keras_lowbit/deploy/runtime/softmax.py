"""The integer softmax in plain TensorFlow, term by term as the reference.

A code's distance from the largest of its row is one of 256: the exponentials are two tables made by the reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_lowbit.deploy.reference import softmax as reference
from keras_lowbit.deploy.runtime.node_kernels import Run
from keras_lowbit.numerics.requantization import INT32_MAX
from keras_lowbit.ops.tf_fallback import rounding_right_shift, saturating_high_mul, to_int8, wrap_int32


def softmax_of(scale: np.float32) -> Run:
    """`exp(x - max) / sum(exp(x - max))` on the last axis for codes of that scale."""
    tables = reference.exponentials(np.arange(-255, 1), np.float64(scale))
    exponentials, terms = (tf.constant(table, tf.int64) for table in tables)

    def run(values: list[Any]) -> Any:
        codes = tf.cast(values[0], tf.int32)
        place = codes - tf.reduce_max(codes, -1, keepdims=True) + 255  # [0, 255]
        exponential, total = tf.gather(exponentials, place), tf.reduce_sum(tf.gather(terms, place), -1, keepdims=True)
        reciprocal, exponent = _reciprocal(total)
        share = rounding_right_shift(saturating_high_mul(reciprocal, exponential), exponent + 31 - 8)
        return to_int8(share - 128)

    return run


def _reciprocal(total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(r, e) with `1 / total = r * 2**-e`, r in Q0.31; 0 < total < 2**53."""
    powers = tf.constant([2**k for k in range(53)], tf.int64)
    bits = tf.reduce_sum(tf.cast(total[..., None] >= powers, tf.int64), -1)
    headroom = 32 - bits  # leading zero bits of an int32
    raised = tf.bitwise.left_shift(total, tf.maximum(headroom, 0))
    leading = tf.bitwise.right_shift(raised, tf.maximum(-headroom, 0))
    return _one_over_one_plus(leading - 2**31), reference.SUM_BITS - headroom


def _one_over_one_plus(x: tf.Tensor) -> tf.Tensor:
    """`1 / (1 + x)` in Q0.31 for x in [0, 1): three Newton steps on half the denominator."""
    half = tf.bitwise.right_shift(x + INT32_MAX + 1, tf.ones_like(x))
    guess = reference.Q2_48_17 + saturating_high_mul(half, reference.Q2_MINUS_32_17)
    for _ in range(3):
        error = reference.Q2_ONE - saturating_high_mul(half, guess)
        guess = wrap_int32(guess + _doubled(saturating_high_mul(guess, error), 2))
    return _doubled(guess, 1)


def _doubled(x: tf.Tensor, exponent: int) -> tf.Tensor:
    """`x * 2**exponent` in 32 bits, saturated."""
    threshold = (1 << (31 - exponent)) - 1
    shifted = tf.where(x > threshold, tf.constant(INT32_MAX, tf.int64), x * 2**exponent)
    return tf.where(x < -threshold, tf.constant(-INT32_MAX - 1, tf.int64), shifted)
