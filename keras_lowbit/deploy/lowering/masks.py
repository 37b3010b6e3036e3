"""How calls of masks and whole numbers are lowered, and what chooses between reals by a mask."""

from typing import Any

import numpy as np

from keras_lowbit.convert.analysis import masks
from keras_lowbit.convert.analysis.operations import stock_kind
from keras_lowbit.deploy.graph import Range
from keras_lowbit.deploy.lowering import data_movement
from keras_lowbit.deploy.lowering.parts import with_range
from keras_lowbit.deploy.lowering.registry import lowers
from keras_lowbit.deploy.lowering.state import Lowering, emits
from keras_lowbit.deploy.lowering.values import DeferredOp, FloatTensor, fixed_codes
from keras_lowbit.keras_graph.calls import Call


@lowers(*masks.COMPARISONS, *masks.LOGIC)
def lower_mask(state: Lowering, call: Call) -> bool:
    """A mask, or whole numbers in another place: values, which have no range."""
    kind, values = stock_kind(call.operation), [state.as_float(key) for key in call.inputs]
    names, name = [value.tensor for value in values], state.name(call.path)
    if kind in masks.LOGIC:
        made = state.builder.logical(masks.LOGIC[kind], names, name)
    elif kind in masks.MOVES:
        made = data_movement.MOVES[kind](state, call, names[0])
    else:
        [number] = [value for value in call.constants() if value is not None] if kind in masks.COMPARISONS else [0]
        made = state.builder.compare(names[0], name, masks.COMPARISONS.get(kind, "not_equal"), int(np.asarray(number)))
    provenance = values[0].provenance.add(*(value.provenance for value in values[1:]), call=call)
    state.values[call.outputs[0]] = FloatTensor(made, provenance)
    return True


def lower_hidden(state: Lowering, call: Call) -> bool:
    """The lowest code where a mask hides a score."""
    if any(isinstance(state.values[key], FloatTensor) for key in masks.reals_of(call)):
        return False
    mask, source = state.as_float(call.inputs[0]), state.stored(masks.reals_of(call)[0], call)
    grid = state.builder.tensor(source.tensor).range
    lowest = state.builder.constant(state.name(f"{call.path}/lowest"), np.array([grid.limits[0]]), *grid)
    made = state.builder.where(mask.tensor, source.tensor, lowest, state.name(call.path))
    state.store(call.outputs[0], made, source.provenance.add(mask.provenance, call=call), rounded=False)
    return True


@lowers("Where")
def lower_where(state: Lowering, call: Call) -> bool:
    """A choice between tensors and numbers, in the range that they will share."""
    if masks.hides(call):
        return lower_hidden(state, call)
    chosen: Any = masks.choice_of(call)
    for key in masks.reals_of(call):
        if not isinstance(state.values[key], DeferredOp):
            state.stored(key, call)
    return defer_choice(state, call, [value if isinstance(value, float) else state.values[value] for value in chosen])


def defer_choice(state: Lowering, call: Call, parts: list[Any]) -> bool:
    """`where` waits for the range that its parts, values or numbers, will share. The call's first input is the mask."""
    mask = state.as_float(call.inputs[0])
    provenance = mask.provenance.add(*(part.provenance for part in parts if not isinstance(part, float)), call=call)
    attributes = {"mask": mask.tensor}
    state.values[call.outputs[0]] = DeferredOp("where", call.path, tuple(parts), provenance, attributes)
    return True


@emits("where")
def emit_where(state: Lowering, deferred: DeferredOp, grid: Range, activation: str | None) -> str:
    """The parts in one range, then the choice."""
    names = []
    for place, part in enumerate(deferred.inputs):
        name = f"{deferred.path}/part_{place}"
        if isinstance(part, float):
            names.append(state.builder.constant(state.name(name), fixed_codes(np.array([part]), grid), *grid))
        else:
            names.append(with_range(state, part, grid, name))
    first, second = names
    return state.builder.where(deferred.attributes["mask"], first, second, state.name(deferred.path))
