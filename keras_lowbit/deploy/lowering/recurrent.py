"""LSTM layers as LiteRT's own."""

import math
from typing import Any

import numpy as np

from keras_lowbit.deploy.graph.operations.recurrent import GATES, MOST_CELL_BITS
from keras_lowbit.deploy.lowering.registry import lowers
from keras_lowbit.deploy.lowering.state import Lowering
from keras_lowbit.deploy.lowering.values import PartialCall
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.keras_graph.variables import to_numpy

_ANY_SCALE = 2.0**-10  # of zeros; small, for the bias has its steps
_CELL_BITS = 15  # of a code, beside its sign


@lowers("QuantLSTM")
def lower_lstm(state: Lowering, call: Call) -> bool:
    """All steps, of which the last one is taken where the layer gives that alone. ValueError without quantizers."""
    layer, key = call.operation, call.outputs[0]
    if missing := [role for role in ("kernel", "output") if getattr(layer, f"{role}_host") is None]:
        raise ValueError(
            f"{call.path!r} has no {missing[0]}_quantizer: its loop has no file in float. Give it kernel_quantizer='uniform' "
            "and output_quantizer='activation'."
        )
    source, name = state.stored(call.inputs[0], call), state.name(call.path)
    if layer.return_sequences:
        state.store(key, _steps(state, call, source.tensor, name), source.provenance.add(call=call))
        return True
    every = state.fresh_key()
    made = _steps(state, call, source.tensor, state.name(f"{call.path}/steps"))
    stored = state.store(every, made, source.provenance.add(call=PartialCall(layer.steps, call.inputs[:1], (every,))))
    count, units = state.static_shape(made)
    last = state.builder.strided_slice(made, state.name(f"{call.path}/last"), [count - 1, 0], [count, units])
    tail = PartialCall(lambda steps: steps[:, -1], (every,), (key,))
    state.store(key, state.builder.reshape(last, name, [units]), stored.provenance.add(call=tail))
    return True


def _steps(state: Lowering, call: Call, source: str, name: str) -> str:
    layer, builder = call.operation, state.builder
    kernel, recurrent = (_codes(layer, role, call.path) for role in ("kernel", "recurrent"))
    bias = _bias(layer, builder.tensor(source).range.scale, kernel[1])
    grid, cell = (state.range_of(host, call.path) for host in (layer.output_host, layer.cell_host))
    return builder.lstm(source, *kernel, *recurrent, bias, grid, name, _cell_bits(cell.scale))


def _codes(layer: Any, role: str, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes [4, units, inputs] of a kernel, and the scale of each gate; of a gate of zeros any."""
    found = getattr(layer, f"{role}_host").encode(layer.kernels()[role])
    codes, scale = to_numpy(found.codes), np.broadcast_to(to_numpy(found.scale).reshape(-1), (len(GATES),))
    if np.any(to_numpy(found.zero_point)) or np.abs(codes).max(initial=0) > 127:
        raise ValueError(
            f"The weights of {path!r} ({layer.kernel_quantizer!r}) have a zero point, or codes beyond 127: LiteRT's LSTM has "
            "neither. Give it kernel_quantizer='uniform'."
        )
    return codes.astype(np.int8), np.where(scale > 0, scale, _ANY_SCALE).astype(np.float32)


def _bias(layer: Any, scale: float, kernel_scales: np.ndarray) -> np.ndarray | None:
    """The bias in the steps of the inputs' sums, [4, units]."""
    if layer.cell.bias is None:
        return None
    steps = np.float32(scale) * kernel_scales
    return np.round(to_numpy(layer.cell.bias).reshape(len(GATES), -1).astype(np.float64) / steps[:, None])


def _cell_bits(step: float) -> int:
    """The bits of the cell before its point, by its step: a power of two, but for ranges that stand in for others."""
    return min(max(math.ceil(math.log2(step)) + _CELL_BITS, 0), MOST_CELL_BITS)
