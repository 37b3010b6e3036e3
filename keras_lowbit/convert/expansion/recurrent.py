"""Recurrent layers, step by step: dense layers, gates and products. Their first state may be given, their last one returned.

The products of all inputs are one dense layer; that of the state is one dense layer which runs at every step, so its weights
are quantized once, and its range is the widest that a step needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops, tree

from keras_lowbit.convert.analysis.masks import reals_of
from keras_lowbit.convert.expansion.registry import Compose, Parts, Values, array, expands, sizes_of
from keras_lowbit.convert.expansion.signals import MOST_STEPS
from keras_lowbit.keras_graph.calls import Call

# Of the cell: what the input adds at a step, the state before it (None: zeros) and a suffix of names: the state after it.
Step = Callable[[Parts, Any, "list[Any] | None", str], list[Any]]


class _Cell(NamedTuple):
    """bias: of what all inputs add.   products: kernel and bias of each dense layer of the state, by the name of its part."""

    bias: Any
    products: dict[str, tuple[Any, Any]]
    step: Step


@expands("GRU", "LSTM", "RNN", "SimpleRNN")
def recurrent(call: Call) -> Compose | None:
    """The layer as a chain of steps."""
    layer, cell, (source, *states) = call.operation, _cell_of(call.operation), reals_of(call)
    if cell is None or not _has_form(call, len(states)) or len(states) not in (0, _states(layer)):
        return None

    def compose(parts: Parts, values: Values) -> Any:
        state = [values[key] for key in states] or None
        found, state = _run(parts, layer, cell, values[source], state, _mask_of(call, values))
        made = parts.named(ops.stack(found, axis=1)) if layer.return_sequences else parts.named(found[-1])
        return [made, *state] if layer.return_state else made

    return compose


_MERGED: dict[str, Callable[[Parts, Any, Any], Any]] = {
    "concat": lambda parts, ahead, back: ops.concatenate([ahead, back], axis=-1),
    "sum": lambda parts, ahead, back: ops.add(ahead, back),
    "mul": lambda parts, ahead, back: ops.multiply(ahead, back),
    "ave": lambda parts, ahead, back: ops.multiply(parts.named(ops.add(ahead, back), "sum"), 0.5),
}


@expands("Bidirectional")
def bidirectional(call: Call) -> Compose | None:
    """Two layers, one from the last step to the first, and what joins them."""
    both = {"forward": call.operation.forward_layer, "backward": call.operation.backward_layer}
    cells = {name: cell for name, layer in both.items() if (cell := _cell_of(layer)) is not None}
    counts = [_states(layer) for layer in both.values()]
    given = len(reals_of(call)) - 1
    if len(cells) < 2 or not _has_form(call, given) or given not in (0, sum(counts)):
        return None

    def compose(parts: Parts, values: Values) -> Any:
        source, *given = (values[key] for key in reals_of(call))
        states, made = {"forward": given[: counts[0]], "backward": given[counts[0] :]}, {}
        for name, layer in both.items():
            inner = parts.within(name)
            found, states[name] = _run(inner, layer, cells[name], source, states[name] or None, _mask_of(call, values))
            order = found[::-1] if name == "backward" else found
            made[name] = inner.named(ops.stack(order, axis=1)) if layer.return_sequences else found[-1]
        merged = _MERGED.get(call.operation.merge_mode)
        joined = [*made.values()] if merged is None else [parts.named(merged(parts, *made.values()))]
        return joined + (states["forward"] + states["backward"] if call.operation.return_state else [])

    return compose


def _has_form(call: Call, states: int) -> bool:
    """Whether a call has known sizes, few steps, and a mask only where its states begin with zeros."""
    sizes, layer, mask = sizes_of(call.tensors[0]), call.operation, call.arguments.kwargs.get("mask")
    if layer.stateful or sizes is None or len(sizes) != 2 or sizes[0] > MOST_STEPS:
        return False
    zeroed = any(
        getattr(part, "zero_output_for_mask", False) for part in (layer, getattr(layer, "forward_layer", None))
    )
    return mask is None or (isinstance(mask, keras.KerasTensor) and not states and not zeroed)


def _mask_of(call: Call, values: Values) -> Any:
    """Which steps of each sample count, [steps]; None for all."""
    mask = call.arguments.kwargs.get("mask")
    places = [key for key, tensor in zip(call.inputs, call.tensors, strict=True) if tensor is mask]
    return values[places[0]] if places else None


def _states(layer: Any) -> int:
    return len(tree.flatten(layer.state_size))


def _cell_of(layer: Any) -> _Cell | None:
    """What a layer does at a step; None for another cell than Keras' three, and for one that drops parts of its state."""
    cell: Any = getattr(layer, "cell", None)
    made = _CELLS.get(type(cell).__name__) if type(cell).__module__.startswith("keras.") else None
    return None if made is None or cell.recurrent_dropout else made(cell)


def _run(
    parts: Parts, layer: Any, cell: _Cell, x: Any, state: list[Any] | None, mask: Any
) -> tuple[list[Any], list[Any]]:
    """The result of each step in the order in which they run, and the last state. What a mask leaves out changes none."""
    if rate := layer.cell.dropout:  # the same features at every step
        x = parts.layer("dropout", lambda **options: keras.layers.SpatialDropout1D(rate, **options))(x)
    entering = parts.layer("input", *_dense_form(array(layer.cell.kernel), cell.bias))(x)
    for part, (kernel, bias) in cell.products.items():
        parts.layer(part, *_dense_form(kernel, bias))
    steps, found = range(int(x.shape[1])), []
    for at, time in enumerate(steps[::-1] if layer.go_backwards else steps):
        before, state = state, cell.step(parts, parts.named(entering[:, time], f"at_{at}"), state, f"_{at}")
        if mask is not None:
            counts = parts.named(mask[:, time : time + 1], f"counts_{at}")
            pairs = enumerate(_pairs(state, before))
            state = [parts.named(ops.where(counts, *pair), f"kept_{k}_{at}") for k, pair in pairs]
        found.append(state[0])
    return found, state or []


def _pairs(state: list[Any], before: list[Any] | None) -> list[tuple[Any, Any]]:
    """The parts of a state, each with what it was before: zeros at first."""
    return list(zip(state, before or [0.0] * len(state), strict=True))


def _dense_form(kernel: Any, bias: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    weights = {"kernel": kernel} | ({} if bias is None else {"bias": bias})
    return lambda **options: keras.layers.Dense(kernel.shape[1], use_bias=bias is not None, **options), weights


def _recurrent(parts: Parts, state: Any) -> Any:
    """The product of the state with the recurrent kernel."""
    return parts.known("recurrent")(state)


def _bias(cell: Any) -> Any:
    return None if cell.bias is None else array(cell.bias)


def _simple_rnn(cell: Any) -> _Cell:
    """``h = f(W x + b + U h)``."""

    def step(parts: Parts, entering: Any, state: list[Any] | None, suffix: str) -> list[Any]:
        if state is not None:
            entering = parts.named(ops.add(entering, _recurrent(parts, state[0])), f"sum{suffix}")
        return [parts.named(cell.activation(entering), f"state{suffix}")]

    return _Cell(_bias(cell), {"recurrent": (array(cell.recurrent_kernel), None)}, step)


def _lstm(cell: Any) -> _Cell:
    """``c = f c + i g``, ``h = o tanh(c)`` with the gates i, f, o and the candidate g of ``W x + b + U h``."""
    gates = {"in": cell.recurrent_activation, "forget": cell.recurrent_activation, "candidate": cell.activation}
    gates["out"] = cell.recurrent_activation

    def step(parts: Parts, entering: Any, state: list[Any] | None, suffix: str) -> list[Any]:
        return _lstm_step(cell, gates, parts, entering, state, suffix)

    return _Cell(_bias(cell), {"recurrent": (array(cell.recurrent_kernel), None)}, step)


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


def _gru(cell: Any) -> _Cell:
    """``h = z h + (1 - z) g`` as ``g + z (h - g)``, with the candidate ``g = tanh(W x + b + r (U h + c))``.

    Without `reset_after` it is ``g = tanh(W x + b + U (r h))``, whose U is a dense layer of its own.
    """
    kernel, bias, gates = array(cell.recurrent_kernel), _bias(cell), 2 * cell.units
    if cell.reset_after:
        bias, added = (None, None) if bias is None else (bias[0], bias[1])
        products = {"recurrent": (kernel, added)}
    else:
        added, products = None, {"recurrent": (kernel[:, :gates], None), "reset": (kernel[:, gates:], None)}

    def step(parts: Parts, entering: Any, state: list[Any] | None, suffix: str) -> list[Any]:
        return _gru_step(cell, added, parts, entering, state, suffix)

    return _Cell(bias, products, step)


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
    if cell.reset_after:
        kept = None if known is None else parts.named(ops.multiply(reset, part(2, "known")), f"remembered{suffix}")
    else:
        kept = None if state is None else parts.named(ops.multiply(reset, state[0]), f"remembered{suffix}")
        kept = None if kept is None else parts.known("reset")(kept)
    candidate = parts.named(cell.activation(total(third(entering, 2, "input"), kept, "sum")), f"candidate{suffix}")
    if state is None:
        moved = parts.named(ops.multiply(update, candidate), f"moved{suffix}")
        return [parts.named(ops.subtract(candidate, moved), f"state{suffix}")]
    apart = parts.named(ops.subtract(state[0], candidate), f"apart{suffix}")
    moved = parts.named(ops.multiply(update, apart), f"moved{suffix}")
    return [parts.named(ops.add(candidate, moved), f"state{suffix}")]


_CELLS: dict[str, Callable[[Any], _Cell]] = {"SimpleRNNCell": _simple_rnn, "LSTMCell": _lstm, "GRUCell": _gru}
