"""Runtime: an IntegerGraph as a TensorFlow function on the integer ops, bit-equal to the NumPy reference."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_lowbit.deploy import runtime_weighted as weighted
from keras_lowbit.deploy.graph import IntegerGraph, Node, Tensor
from keras_lowbit.deploy.kinds import check_graph
from keras_lowbit.deploy.reference_call import scale_of
from keras_lowbit.deploy.runtime_plain import PLAIN
from keras_lowbit.ops import active_kernel, tf_fallback

MAKERS: dict[str, Callable[..., weighted.Run]] = {
    **PLAIN,
    "conv2d": weighted.conv2d,
    "depthwise_conv2d": weighted.depthwise_conv2d,
    "fully_connected": weighted.fully_connected,
    "transpose_conv": weighted.transpose_conv,
}
TAKE_RESIDUALS = ("conv2d", "depthwise_conv2d")
LARGE = 2**16  # bytes; smaller arrays are constants of the graph: each variable costs every call some microseconds
TAKE_PADS = ("conv2d", "depthwise_conv2d", "max_pool2d")


class Step(NamedTuple):
    """One operation of the plan. inputs: tensors it reads, constants left out.   residual: what makes the second of them
    the residual of the first's layer, where an addition was fused."""

    node: Node
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: weighted.Run
    residual: Callable[[Any], Any] | None = None


class _Plan:
    """The steps; a class of its own, so that TensorFlow does not look into it when it saves."""

    def __init__(self, graph: IntegerGraph, keep: weighted.Keep) -> None:
        self.graph = graph
        self.fused = _additions(graph)
        padded = _pads(graph)
        merged = {add.name for _, add in self.fused.values()} | {pad.name for pad, _ in padded.values()}
        nodes = [padded.get(node.name, (None, node))[1] for node in graph.nodes if node.name not in merged]
        self.steps = [self._step(node, keep) for node in nodes]
        self.steps = _in_order(self.steps, graph.inputs)

    def _step(self, node: Node, keep: weighted.Keep) -> Step:
        if node.op not in MAKERS:
            raise ValueError(f"node {node.name!r} has the operation {node.op!r}; the runtime knows {', '.join(MAKERS)}")
        run = MAKERS[node.op](self.graph, node, keep)
        inputs = tuple(name for name in node.inputs if not self.graph.tensors[name].is_constant)
        if node.name not in self.fused:
            return Step(node, inputs, node.outputs, run)
        other, add = self.fused[node.name]
        residual = weighted.residual_of(self.graph, add, node.outputs[0])
        return Step(node, (*inputs, other), add.outputs, run, residual)


class Runtime(tf.Module):
    """An integer graph on the compiled ops (plain TensorFlow where there are none): calling it is a `tf.function`.

    images: int8 codes or reals (quantized by the input's grid), batch first; a dict by input name, or a list, where the
    graph has several inputs. The result equals `run_reference(graph, images)` in every bit: a tensor, or a list. The weights
    stand packed in variables, small ones in the graph. ValueError or TypeError, with values, for inputs that do not fit.

    Saved with `tf.saved_model.save`, it is served by any process that has called `keras_lowbit.ops.load()` (by any at all
    if it was built without the compiled ops); a graph with float islands runs in this process only.

    >>> run = Runtime(keras_lowbit.deploy.lower(quantized))
    >>> codes = run(images_int8)
    >>> tf.saved_model.save(run, "served")
    """

    def __init__(self, graph: IntegerGraph, name: str | None = None) -> None:
        super().__init__(name=name)
        check_graph(graph, "Runtime")
        graph.validate()
        self._variables: list[tf.Variable] = []
        self._bytes = 0
        self.kernel = active_kernel()
        self._plan = _Plan(graph, self._keep)
        for example in self._examples():
            self.__call__.get_concrete_function(example)

    @property
    def graph(self) -> IntegerGraph:
        """The graph that runs."""
        return self._plan.graph

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed weights, scales, sums, tables."""
        return self._bytes

    @tf.function(input_signature=[])
    def _servable(self) -> Any:
        """Traced when TensorFlow saves the module: the place to refuse what another process could not run."""
        islands = [node.name for node in self._plan.graph.nodes if node.op == "float_island"]
        if islands:
            raise ValueError(
                f"the graph has float islands ({', '.join(islands)}), which run through Python: it cannot be served from a "
                "SavedModel. Replace those layers, or export a .tflite file with keras_lowbit.export_litert"
            )
        return tf.constant(True)

    @tf.function(autograph=False)
    def __call__(self, images: Any) -> Any:
        """The graph's outputs for a batch of inputs."""
        graph = self._plan.graph
        values = {name: _as_codes(graph.tensors[name], x) for name, x in _by_name(graph, images).items()}
        for step in self._plan.steps:
            inputs = [values[name] for name in step.inputs]
            if step.residual is not None:
                inputs[1] = step.residual(inputs[1])
            results = step.run(inputs)
            for name, result in zip(step.outputs, results if isinstance(results, list) else [results], strict=True):
                result.set_shape(graph.tensors[name].shape)
                values[name] = result
        outputs = [values[name] for name in graph.outputs]
        return outputs[0] if len(outputs) == 1 else outputs

    def _keep(self, array: np.ndarray, name: str) -> tf.Variable | np.ndarray:
        array = np.asarray(array)
        self._bytes += array.nbytes
        if array.nbytes < LARGE:
            return array
        self._variables.append(weighted.as_variable(array, name))
        return self._variables[-1]

    def _examples(self) -> list[Any]:
        """Inputs that a saved runtime takes: codes and reals; for several inputs, lists and dicts of codes."""
        graph = self._plan.graph
        tensors = [graph.tensors[name] for name in graph.inputs]
        if len(tensors) == 1:
            kinds = dict.fromkeys((tensors[0].dtype, "float32"))
            return [tf.TensorSpec(tensors[0].shape, kind) for kind in kinds]
        own = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in tensors]
        return [own, dict(zip(graph.inputs, own, strict=True))]


def _additions(graph: IntegerGraph) -> dict[str, tuple[str, Node]]:
    """Layer -> (the other operand, the add node): additions that a layer can do as it writes its output."""
    readers: dict[str, int] = {}
    for name in (*graph.outputs, *(name for node in graph.nodes for name in node.inputs)):
        readers[name] = readers.get(name, 0) + 1
    made = {name: node for node in graph.nodes for name in node.outputs}
    found: dict[str, tuple[str, Node]] = {}
    for add in (node for node in graph.nodes if node.op == "add"):
        first, second = (graph.tensors[name] for name in add.inputs)
        if first.is_constant or second.is_constant or first.shape != second.shape:
            continue
        for own, other in ((first, second), (second, first)):
            layer = made.get(own.name)
            if layer is not None and layer.op in TAKE_RESIDUALS and readers[own.name] == 1 and layer.name not in found:
                found[layer.name] = (other.name, add)
                break
    return found


def _pads(graph: IntegerGraph) -> dict[str, tuple[Node, Node]]:
    """Layer -> (the pad node in front of it, the layer with that padding as its own): pads that only the layer reads."""
    readers = collections.Counter((*graph.outputs, *(name for node in graph.nodes for name in node.inputs)))
    pads = {node.outputs[0]: node for node in graph.nodes if node.op == "pad"}
    found: dict[str, tuple[Node, Node]] = {}
    for node in graph.nodes:
        pad = pads.get(node.inputs[0])
        if pad is None or node.op not in TAKE_PADS or node.attributes["padding"] != "valid":
            continue
        rows, columns, *others = (tuple(pair) for pair in pad.attributes["paddings"])
        if readers[pad.outputs[0]] > 1 or any(map(any, others)) or not _same_grid(graph, pad):
            continue
        attributes = {**node.attributes, "padding": (rows, columns)}
        found[node.name] = (pad, replace(node, inputs=(pad.inputs[0], *node.inputs[1:]), attributes=attributes))
    return found


def _same_grid(graph: IntegerGraph, node: Node) -> bool:
    source, target = graph.tensors[node.inputs[0]], graph.tensors[node.outputs[0]]
    return source.zero_point == target.zero_point and scale_of(source) == scale_of(target)


def _in_order(steps: list[Step], inputs: tuple[str, ...]) -> list[Step]:
    """Steps in an order that can be run: a layer with a residual waits for it."""
    ready, waiting, ordered = set(inputs), list(steps), []
    while waiting:
        step = next(step for step in waiting if ready.issuperset(step.inputs))
        waiting.remove(step)
        ordered.append(step)
        ready.update(step.outputs)
    return ordered


def _by_name(graph: IntegerGraph, images: Any) -> dict[str, Any]:
    """The inputs as a dict by name, whatever form they came in."""
    if isinstance(images, Mapping):
        if set(images) != set(graph.inputs):
            raise ValueError(f"got inputs {sorted(images)}; the graph's inputs are {sorted(graph.inputs)}")
        return {name: images[name] for name in graph.inputs}
    values = list(images) if isinstance(images, (list, tuple)) else [images]
    if len(values) != len(graph.inputs):
        raise ValueError(
            f"got {len(values)} inputs; the graph has {list(graph.inputs)}: pass a dict by name, or a list in this order"
        )
    return dict(zip(graph.inputs, values, strict=True))


def _as_codes(tensor: Tensor, value: Any) -> tf.Tensor:
    """Codes (or float32, for a float input) of one input, its shape checked."""
    given = tf.convert_to_tensor(value)
    if not given.shape.is_compatible_with(tensor.shape):
        expected = ", ".join("batch" if size is None else str(size) for size in tensor.shape)
        raise ValueError(f"input {tensor.name!r} has shape {given.shape}; expected ({expected})")
    if tensor.dtype != "float32" and given.dtype == tf.int8:
        return given
    if not given.dtype.is_floating:
        wanted = "float32" if tensor.dtype == "float32" else "int8 (codes) or float32 (real numbers)"
        raise TypeError(f"input {tensor.name!r} is {given.dtype.name}; expected {wanted}: convert it with .astype")
    real = tf.cast(given, tf.float32)
    return real if tensor.dtype == "float32" else tf_fallback.quantize(real, scale_of(tensor), tensor.zero_point)
