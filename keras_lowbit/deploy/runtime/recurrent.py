"""How the runtime makes the LSTM: the reference's steps in a loop of TensorFlow, with its tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_lowbit.deploy.graph import IntegerGraph, Node
from keras_lowbit.deploy.graph.operations.recurrent import GATES, factors
from keras_lowbit.deploy.reference.fixed_point_16 import HIGH, LOW, gate_table, tanh_table
from keras_lowbit.deploy.runtime.node_kernels import Keep, Run, runs, static_call
from keras_lowbit.numerics.requantization import Multiplier
from keras_lowbit.ops import tf_fallback

State = tuple[Any, Any]  # codes of the result less their zero point, codes of the cell; int64 [batch, units]


@runs("lstm")
def lstm(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """All steps, one behind the other; sums in float64, which holds each of them."""
    call = static_call(graph, node)
    kernel, recurrent, bias = (np.asarray(tensor.data) for tensor in call.inputs[1:])
    units, scaled, output = kernel.shape[1], factors(call.inputs, call.output), call.output
    weights, known = (
        keep(codes, f"{node.name}/{part}") for part, codes in (("kernel", kernel), ("recurrent", recurrent))
    )
    step = _Step(known, _each(scaled.states, units), scaled.hidden, output.zero_point, node.attributes["cell_bits"])

    def run(values: list[Any]) -> Any:
        x = tf.cast(values[0], tf.float64) - call.inputs[0].zero_point
        total = tf.einsum("bti,gui->btgu", x, tf.cast(weights, tf.float64)) + bias.astype(np.float64)
        entering = _saturated(tf_fallback.fixed_product(_flat(total), *_each(scaled.inputs, units)))
        zeros = tf.zeros([tf.shape(x)[0], units], tf.int64)
        hidden, _ = tf.scan(step, tf.transpose(entering, [1, 0, 2]), (zeros, zeros))
        return tf_fallback.to_int8(tf.transpose(hidden, [1, 0, 2]) + output.zero_point)

    return run


class _Step:
    """One step: from a state and what enters the gates to the next state."""

    def __init__(self, recurrent: Any, factor: Multiplier, hidden: Multiplier, zero_point: int, cell_bits: int) -> None:
        self.recurrent, self.factor, self.hidden = recurrent, factor, hidden
        self.zero_point, self.cell_bits = zero_point, cell_bits

    def __call__(self, state: State, entering: Any) -> State:
        hidden, cell = state
        total = tf.einsum("bj,guj->bgu", tf.cast(hidden, tf.float64), tf.cast(self.recurrent, tf.float64))
        sums = _saturated(entering + tf_fallback.fixed_product(_flat(total), *self.factor)) - LOW
        entered, forget, candidate, out = (
            tf.gather(gate_table(gate), part) for gate, part in zip(GATES, tf.split(sums, len(GATES), -1), strict=True)
        )
        kept = tf_fallback.rounding_right_shift(forget * cell, 15)
        cell = _saturated(kept + tf_fallback.rounding_right_shift(entered * candidate, 15 + self.cell_bits))
        product = tf.cast(out * tf.gather(tanh_table(self.cell_bits), cell - LOW), tf.int32)
        codes = tf_fallback.fixed_product(product, *self.hidden) + self.zero_point
        return tf.clip_by_value(codes, -128, 127) - self.zero_point, cell


def _flat(total: Any) -> Any:
    """Sums [..., gates, units] as int32 [..., gates * units]."""
    shape = tf.concat([tf.shape(total)[:-2], [-1]], 0)
    return tf.cast(tf.reshape(total, shape), tf.int32)


def _each(gates: list[Multiplier], units: int) -> Multiplier:
    """The factor of each unit of each gate."""
    parts = zip(*gates, strict=True)
    return Multiplier(*(np.repeat(np.asarray(part, np.int64), units) for part in parts))


def _saturated(x: Any) -> Any:
    return tf.clip_by_value(x, LOW, HIGH)
