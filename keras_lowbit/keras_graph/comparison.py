"""Whether a copy computes what its original does: both run once on a small random input."""

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_lowbit.keras_graph.calls import Call, CallGraph, calls_of
from keras_lowbit.keras_graph.copies import first_line

_SIZES = (32, 64, 8)  # of axes whose size is open: the first that the model runs on
_END_TO_END = 0.01  # of the largest output: rounding errors of many layers add up

Stand = Callable[[Call, dict[int, Any]], list[Any] | None]


def check_layers(model: keras.Model, stand_in: Stand) -> None:
    """Run a model once, and beside each of its layers what stands for it in a copy, on the same inputs.

    stand_in: the outputs of what stands for a call, flattened; None for a call that has no counterpart.
    Raises a ValueError that names the first layer whose copy differs by more than rounding. Nothing of the model changes. A
    UserWarning says if the model runs on no random input.
    """
    graph = calls_of(model, inline=True)

    def look(call: Call, values: dict[int, Any]) -> list[Any]:
        wanted = call.run(values)
        found = stand_in(call, values)
        difference = None if found is None else _first_difference(wanted, found)
        if difference and not _first_difference(wanted, call.run(values)):  # a layer that draws differs from itself too
            raise _Differs(
                f"The copy of layer {call.path!r} ({call.kind}) computes something else than the layer: on a random input "
                f"{difference}. Something that it computes with is neither in its configuration nor in its weights. Give "
                "its class a get_config that has it, or leave the layer out of the model."
            )
        return wanted

    _run(graph, model, look)


def check_outputs(model: keras.Model, copy: keras.Model, changed: list[str]) -> None:
    """Run a model and its copy once on the same input; a ValueError if the outputs differ by more than rounding adds up to.

    changed: the paths of the layers that were changed, for the message.
    """
    inputs: list[Any] = []
    if _run(calls_of(model, inline=True), model, None, inputs) is None:
        return
    with keras.StatelessScope():  # in which a generator moves on: a model that draws differs from itself
        wanted, again, found = (calls_of(one, inline=True).run(inputs) for one in (model, model, copy))
    difference = _first_difference(wanted, found, _END_TO_END)
    if difference and not _first_difference(wanted, again, _END_TO_END):
        raise ValueError(
            f"The copy of {model.name!r} computes something else than the model: on a random input {difference}. Changed "
            f"were {', '.join(changed[:5])}{', ...' if len(changed) > 5 else ''}. Leave these layers as they are."
        )


class _Differs(ValueError):
    """A copy that differs, which another input would not mend."""


def _run(graph: CallGraph, model: Any, look: Any, used: list[Any] | None = None) -> list[Any] | None:
    """The outputs on the first kind of random input that the model runs on; None, and a warning, if there is none."""
    error: Exception | None = None
    for size in _SIZES if any(None in graph.tensors[key].shape[1:] for key in graph.inputs) else _SIZES[:1]:
        for signed in (True, False):  # where floats are positions in a table only small counts will do
            inputs = _random_inputs(graph, size, signed)
            try:
                with keras.StatelessScope():  # counters and seeds stay as they are
                    outputs = graph.run(inputs) if look is None else graph.run(inputs, look)
            except _Differs:
                raise
            except Exception as found:  # what a user's layers do with such an input is their own affair
                error = error or found
                continue
            if used is not None:
                used.extend(inputs)
            return outputs
    warnings.warn(
        f"{model.name!r} runs on no random input ({first_line(error or ValueError())}), so it is not compared with its copy. "
        "Compare them on data of yours.",
        stacklevel=4,
    )
    return None


def _random_inputs(graph: CallGraph, size: int, signed: bool) -> list[Any]:
    rng = np.random.default_rng(0)
    return [_random(graph.tensors[key], size, signed, rng) for key in graph.inputs]


def _random(tensor: Any, size: int, signed: bool, rng: np.random.Generator) -> Any:
    shape = tuple(length or (2 if axis == 0 else size) for axis, length in enumerate(tensor.shape))
    if tensor.dtype == "string":
        return keras.ops.convert_to_tensor(np.full(shape, "a"))
    values = rng.normal(size=shape) if signed and "float" in tensor.dtype else rng.integers(0, 2, shape)
    return keras.ops.convert_to_tensor(values.astype("float32"), dtype=tensor.dtype)


def _first_difference(wanted: list[Any], found: list[Any], share: float = 0.0) -> str | None:
    differences = (_difference(want, got, share) for want, got in zip(wanted, found, strict=True))
    return next((difference for difference in differences if difference), None)


def _difference(want: Any, got: Any, share: float = 0.0) -> str | None:
    """How two results differ, in words; None if by no more than that share of the largest value, or half the digits."""
    if not hasattr(want, "dtype"):  # a number or a shape
        return None if want == got else f"it gives {got} where the layer gives {want}"
    kind = keras.backend.standardize_dtype(want.dtype)
    if tuple(want.shape) != tuple(got.shape):
        return f"it gives the shape {tuple(got.shape)} where the layer gives {tuple(want.shape)}"
    if "float" not in kind:
        count = int(np.sum(keras.ops.convert_to_numpy(want) != keras.ops.convert_to_numpy(got)))
        return f"{count} of {np.prod(want.shape)} values differ" if count else None
    want, got = (keras.ops.convert_to_numpy(keras.ops.cast(value, "float32")) for value in (want, got))
    finite = np.isfinite(want)
    if not np.array_equal(finite, np.isfinite(got)):
        return "its values are not finite where the layer's are, or the other way round"
    largest = float(np.abs(want, where=finite, out=np.zeros_like(want)).max(initial=0.0))
    apart = float(np.abs(np.where(finite, want - got, 0.0)).max(initial=0.0))
    digits = {"float16": 2**-10, "bfloat16": 2**-7}.get(kind, 2**-23)
    # Another algorithm may sum in another order: half the digits, which no wrong layer passes.
    allowed = max(share, digits**0.5) * max(largest, 1e-6)
    return None if apart <= allowed else f"they differ by {apart:.3g} where the layer's reach {largest:.3g}"
