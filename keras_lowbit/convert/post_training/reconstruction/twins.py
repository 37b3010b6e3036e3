"""A quantized network beside its float one: layers and tensors of the same place."""

from typing import Any

import numpy as np

from keras_lowbit import layers as klb_layers
from keras_lowbit.convert.post_training.reconstruction.blocks import Block, ancestors
from keras_lowbit.convert.post_training.reconstruction.neighbours import Neighbours, neighbours_of
from keras_lowbit.convert.reports.conversion import LayerReport, Refused
from keras_lowbit.keras_graph.calls import Call, CallGraph
from keras_lowbit.keras_graph.variables import to_numpy

_FEW = 128  # values of a grid; with more, rounding is no matter


class Twins:
    """The quantized graph beside the float one: which layers train, and which tensors are of the same place.

    layers: those that train, by path.   left: rows of the others.   fine: paths of those left whose grid is a fine one.
    others: paths of those of `layers` and `fine` whose kernel is not the float one's.
    """

    def __init__(self, graph: CallGraph, float_graph: CallGraph) -> None:
        self.graph, self.float_graph = graph, float_graph
        self._paths = {call.path for call in float_graph.calls}
        self._calls = {call.path: call for call in graph.calls}
        self._floats = {call.path: call.operation for call in float_graph.calls}
        self.layers: dict[str, Any] = {}
        self.neighbours: dict[str, Neighbours] = {}
        self.left: dict[str, LayerReport] = {}
        self.fine: list[str] = []
        for call in graph.calls:
            if isinstance(call.operation, klb_layers.QuantizedLayer):
                self._sort_in(call)
        self.others = [path for path in (*self.layers, *self.fine) if self._is_other(path)]

    def _sort_in(self, call: Call) -> None:
        reason = self._reason(call)
        found = Refused(reason) if reason else neighbours_of(call.operation)
        if isinstance(found, Refused):
            self.left[call.path] = LayerReport.of(call, "left", found.reason)
        elif found.levels > _FEW:
            self.fine.append(call.path)
            self.left[call.path] = LayerReport.of(
                call, "left", f"{found.levels} values: nearest rounding leaves nothing to win"
            )
        else:
            self.layers[call.path], self.neighbours[call.path] = call.operation, found

    def _is_other(self, path: str) -> bool:
        """Whether a kernel that is not rounded yet is not the float model's: the model was made of another one."""
        twin = getattr(self._floats[path], "kernel", None)
        if twin is None or (path in self.neighbours and not self.neighbours[path].free.any()):
            return False
        kernel = to_numpy(self._calls[path].operation.kernel)
        return kernel.shape != twin.shape or not np.allclose(kernel, to_numpy(twin), rtol=1e-5)

    def take_float_bias(self, path: str) -> None:
        """Give a layer the bias of the float one, unless that belongs to other weights."""
        bias, twin = self._calls[path].operation.bias, getattr(self._floats[path], "bias", None)
        if bias is not None and path not in self.others:
            bias.assign(np.zeros(bias.shape, np.float32) if twin is None else to_numpy(twin))

    def _reason(self, call: Call) -> str:
        if call.path not in self._paths:
            return "no layer of its path in the float model"
        if self.graph.uses(call.operation) > 1:
            return f"shared: it runs {self.graph.uses(call.operation)} times"
        return "its weights are float" if call.operation.kernel_host is None else ""

    def row(self, path: str, outcome: str, detail: str) -> LayerReport:
        """The row of a layer."""
        return LayerReport.of(self._calls[path], outcome, detail)

    def quantized_block(self, block: Block) -> Block | Refused:
        """The same piece of the quantized graph, the ranges behind its tensors included."""
        keys = [self._twin(key) for key in (*block.inputs, block.output)]
        found = [key for key in keys if key is not None]
        if len(found) < len(keys):
            return Refused("its block ends where the quantized model has no such tensor")
        return Block(ancestors(self.graph, found[-1], found[:-1]), tuple(found[:-1]), found[-1], block.layers)

    def _twin(self, key: int) -> int | None:
        if key in self.float_graph.inputs:
            found = self.graph.inputs[self.float_graph.inputs.index(key)]
        else:
            producer = self.float_graph.producers[key]
            if (call := self._calls.get(producer.path)) is None:
                return None
            found = call.outputs[producer.outputs.index(key)]
        while (reader := self.graph.only_consumer(found)) is not None and reader.path not in self._paths:
            found = reader.outputs[0]
        return found
