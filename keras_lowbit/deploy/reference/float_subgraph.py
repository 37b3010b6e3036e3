"""Float subgraphs: the one operation of the reference that is not NumPy; LiteRT's reference kernels run
it, or its built-in ones where the reference kernels lack an operation (ELU)."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_lowbit.deploy.interpreters import open_interpreter
from keras_lowbit.deploy.reference.call import NodeCall, kernel


@kernel("float_subgraph")
def float_subgraph(call: NodeCall) -> list[np.ndarray]:
    """The subgraph's outputs. One of fixed batch is run as often as needed.

    ImportError if ai_edge_litert is not installed; ValueError if the batch is not a multiple of the subgraph's.
    """
    interpreter = _interpreter(call.attributes["model"])
    batch, fixed = len(call.arrays[0]), int(interpreter.get_input_details()[0]["shape"][0])
    if batch % fixed:
        raise ValueError(f"the float subgraph takes batches of {fixed}, got {batch}: pass a multiple of {fixed}")
    runs = [_invoke(interpreter, [a[i : i + fixed] for a in call.arrays]) for i in range(0, batch, fixed)]
    return [np.concatenate(parts) for parts in zip(*runs, strict=True)]


def _interpreter(model: bytes) -> Any:
    return open_interpreter(model_content=model, reference=True)[0]


def _invoke(interpreter: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
    for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
        interpreter.set_tensor(detail["index"], np.ascontiguousarray(array, detail["dtype"]))
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
