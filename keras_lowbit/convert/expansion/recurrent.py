"""Recurrent layers, step by step: dense layers, gates and products. Their first state may be given, their last one returned.

The products of all inputs are one dense layer; that of the state is one dense layer which runs at every step, so its weights
are quantized once, and its range is the widest that a step needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops, tree

from keras_lowbit.convert.expansion.registry import Compose, Parts, Values, array, expands, sizes_of
from keras_lowbit.convert.expansion.signals import MOST_STEPS
from keras_lowbit.keras_graph.calls import Call

# Of the cell: what the input adds at a step, the state before it (None: zeros) and a suffix of names: the state after it.
Step = Callable[[Parts, Any, "list[Any] | None", str], list[Any]]


def _unrolled(call: Call, step: Callable[[Any], Step], reset_after: bool = False) -> Compose | None:
    """The layer as a chain of steps. reset_after: whether the product of the state has a bias of its own."""
    layer, sizes = call.operation, sizes_of(call.tensors[0])
    cell, states = layer.cell, len(call.inputs) - 1
    drops = getattr(cell, "dropout", 0) or getattr(cell, "recurrent_dropout", 0)
    plain = not layer.stateful and states in (0, len(tree.flatten(layer.state_size)))
    if not plain or drops or sizes is None or sizes[0] > MOST_STEPS or call.arguments.kwargs.get("mask") is not None:
        return None
    bias = None if cell.bias is None else array(cell.bias)
    biases = (None, None) if bias is None else (bias[0], bias[1]) if reset_after else (bias, None)

    def compose(parts: Parts, values: Values) -> Any:
        entering = _dense(parts, "input", array(cell.kernel), biases[0])(values[call.inputs[0]])
        parts.layer("recurrent", *_dense_form(array(cell.recurrent_kernel), biases[1]))
        order = range(sizes[0])[::-1] if layer.go_backwards else range(sizes[0])
        state: list[Any] | None = [values[key] for key in call.inputs[1:]] or None
        found, run = [], step(cell)
        for at, time in enumerate(order):
            state = run(parts, parts.named(entering[:, time], f"at_{at}"), state, f"_{at}")
            found.append(state[0])
        made = parts.named(ops.stack(found, axis=1)) if layer.return_sequences else parts.named(found[-1])
        return [made, *(state or [])] if layer.return_state else made

    return compose


def _dense_form(kernel: Any, bias: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    weights = {"kernel": kernel} | ({} if bias is None else {"bias": bias})
    return lambda **options: keras.layers.Dense(kernel.shape[1], use_bias=bias is not None, **options), weights


def _dense(parts: Parts, part: str, kernel: Any, bias: Any) -> Any:
    return parts.layer(part, *_dense_form(kernel, bias))


def _recurrent(parts: Parts, state: Any) -> Any:
    """The product of the state with the recurrent kernel."""
    return parts.known("recurrent")(state)


@expands("SimpleRNN")
def simple_rnn(call: Call) -> Compose | None:
    """``h = f(W x + b + U h)``."""

    def of(cell: Any) -> Step:
        def step(parts: Parts, entering: Any, state: list[Any] | None, suffix: str) -> list[Any]:
            if state is not None:
                entering = parts.named(ops.add(entering, _recurrent(parts, state[0])), f"sum{suffix}")
            return [parts.named(cell.activation(entering), f"state{suffix}")]

        return step

    return _unrolled(call, of)


@expands("LSTM")
def lstm(call: Call) -> Compose | None:
    """``c = f c + i g``, ``h = o tanh(c)`` with the gates i, f, o and the candidate g of ``W x + b + U h``."""

    def of(cell: Any) -> Step:
        gates = {"in": cell.recurrent_activation, "forget": cell.recurrent_activation, "candidate": cell.activation}
        gates["out"] = cell.recurrent_activation
        return lambda parts, entering, state, suffix: _lstm_step(cell, gates, parts, entering, state, suffix)

    return _unrolled(call, of)


def _lstm_step(
    cell: Any, gates: dict[str, Any], parts: Parts, entering: Any, state: list[Any] | None, suffix: str
) -> list[Any]:
    """One step. gates: functions by name, in the order of the kernel's columns."""
    if state is not None:
        entering = parts.named(ops.add(entering, _recurrent(parts, state[0])), f"sum{suffix}")
    opened = {}
    for k, (name, function) in enumerate(gates.items()):
        cut = parts.named(entering[:, k * cell.units : (k + 1) * cell.units], f"{name}{suffix}")
        opened[name] = parts.named(function(cut), f"{name}_gate{suffix}")
    carry = parts.named(ops.multiply(opened["in"], opened["candidate"]), f"new{suffix}")
    if state is not None:
        kept = parts.named(ops.multiply(opened["forget"], state[1]), f"kept{suffix}")
        carry = parts.named(ops.add(kept, carry), f"carry{suffix}")
    bounded = parts.named(cell.activation(carry), f"bounded{suffix}")
    return [parts.named(ops.multiply(opened["out"], bounded), f"state{suffix}"), carry]


@expands("GRU")
def gru(call: Call) -> Compose | None:
    """``h = z h + (1 - z) g`` as ``g + z (h - g)``, with the candidate ``g = tanh(W x + b + r (U h + c))``."""
    if not call.operation.cell.reset_after:
        return None

    def of(cell: Any) -> Step:
        bias = None if cell.bias is None else array(cell.bias)[1]
        return lambda parts, entering, state, suffix: _gru_step(cell, bias, parts, entering, state, suffix)

    return _unrolled(call, of, reset_after=call.operation.cell.bias is not None)


def _gru_step(cell: Any, bias: Any, parts: Parts, entering: Any, state: list[Any] | None, suffix: str) -> list[Any]:
    """One step. bias: of the product of the state, which is all of it where the state is zero."""
    known = bias if state is None else _recurrent(parts, state[0])

    def third(value: Any, k: int, name: str) -> Any:
        cut = value[..., k * cell.units : (k + 1) * cell.units]
        return parts.named(cut, f"{name}{suffix}")

    def total(first: Any, second: Any, name: str) -> Any:
        return first if second is None else parts.named(ops.add(first, second), f"{name}{suffix}")

    def part(k: int, name: str) -> Any:
        return None if known is None else third(known, k, name)

    update, reset = (
        parts.named(
            cell.recurrent_activation(
                total(third(entering, k, f"{name}_input"), part(k, f"{name}_known"), f"{name}_sum")
            ),
            f"{name}{suffix}",
        )
        for k, name in enumerate(("update", "reset"))
    )
    kept = None if known is None else parts.named(ops.multiply(reset, part(2, "known")), f"remembered{suffix}")
    candidate = parts.named(cell.activation(total(third(entering, 2, "input"), kept, "sum")), f"candidate{suffix}")
    if state is None:
        moved = parts.named(ops.multiply(update, candidate), f"moved{suffix}")
        return [parts.named(ops.subtract(candidate, moved), f"state{suffix}")]
    apart = parts.named(ops.subtract(state[0], candidate), f"apart{suffix}")
    moved = parts.named(ops.multiply(update, apart), f"moved{suffix}")
    return [parts.named(ops.add(candidate, moved), f"state{suffix}")]
