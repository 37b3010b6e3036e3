"""Runtime: an IntegerGraph as a TensorFlow function on the integer ops, bit-equal to the NumPy reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_lowbit.deploy.graph import IntegerGraph, Node, Tensor
from keras_lowbit.deploy.lowering.arguments import check_graph
from keras_lowbit.deploy.reference.call import scale_of
from keras_lowbit.deploy.runtime import masks, recurrent, unweighted, weighted
from keras_lowbit.deploy.runtime.fusion import fuse
from keras_lowbit.deploy.runtime.node_kernels import MAKERS, Keep, Run, as_variable
from keras_lowbit.ops import active_kernel, tf_fallback

_KERNEL_FILES = (masks, recurrent, unweighted, weighted)  # importing them registers their kernels
LARGE = 2**16  # bytes; smaller arrays are constants of the graph: each variable costs every call some microseconds


class Step(NamedTuple):
    """One operation of the plan. inputs: tensors it reads, constants left out."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Run


class _Plan:
    """The steps; a class of its own, so that TensorFlow does not look into it when it saves."""

    def __init__(self, graph: IntegerGraph, keep: Keep) -> None:
        self.graph = graph
        fused = fuse(graph)
        self.steps = [_step(fused, node, keep) for node in fused.nodes]


def _step(graph: IntegerGraph, node: Node, keep: Keep) -> Step:
    if node.op not in MAKERS:
        raise ValueError(f"node {node.name!r} has the operation {node.op!r}; the runtime knows {', '.join(MAKERS)}")
    inputs = tuple(name for name in node.inputs if not graph.tensors[name].is_constant)
    return Step(inputs, node.outputs, MAKERS[node.op](graph, node, keep))


class Runtime(tf.Module):
    """An integer graph on the compiled ops (plain TensorFlow where there are none): calling it is a `tf.function`.

    graph: from `lower`, or loaded.   name: of the tf.Module.
    images: int8 codes or reals (quantized by the input's grid), batch first; a dict by input name, or a list, where the
    graph has several inputs. The result equals `run_reference(graph, images)` in every bit: a tensor, or a list. The weights
    stand packed in variables, small ones in the graph. ValueError or TypeError, with values, for inputs that do not fit.

    Saved with `tf.saved_model.save`, it is served by any process that has called `keras_lowbit.ops.load()` (by any at all
    if it was built without the compiled ops); a graph with float subgraphs runs in this process only.

    >>> run = klb.deploy.Runtime(klb.deploy.lower(quantized))
    >>> run(images[:4]).shape
    TensorShape([4, 2])
    """

    def __init__(self, graph: IntegerGraph, name: str | None = None) -> None:
        super().__init__(name=name)
        check_graph(graph, "Runtime")
        graph.validate()
        if wide := [name for name, tensor in graph.tensors.items() if tensor.dtype == "int16"]:
            raise ValueError(
                f"{wide[0]!r} has 16-bit codes ({len(wide)} tensors do): Runtime's kernels take int8. Run it with "
                "keras_lowbit.deploy.run_reference, export it with keras_lowbit.export_litert, or quantize it with 8-bit "
                "activations"
            )
        self._variables: list[tf.Variable] = []
        self._bytes = 0
        self.kernel = active_kernel()
        self._plan = _Plan(graph, self._keep)
        self._run.get_concrete_function(*self._codes())
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
        subgraphs = [node.name for node in self._plan.graph.nodes if node.op == "float_subgraph"]
        if subgraphs:
            raise ValueError(
                f"the graph has float subgraphs ({', '.join(subgraphs)}), which run through Python: it cannot be served from a "
                "SavedModel. Replace those layers, or export a .tflite file with keras_lowbit.export_litert"
            )
        return tf.constant(True)

    @tf.function(autograph=False)  # reduce_retracing would relax sizes too, before they are looked at
    def __call__(self, images: Any) -> Any:
        """The graph's outputs for a batch of inputs."""
        graph = self._plan.graph
        given = _by_name(graph, images)
        return self._run(*(_as_codes(graph.tensors[name], given[name]) for name in graph.inputs))

    @tf.function(autograph=False)
    def _run(self, *codes: tf.Tensor) -> Any:
        """The steps: traced once, whatever the inputs of `__call__` are, whose own traces are small."""
        graph = self._plan.graph
        values = dict(zip(graph.inputs, codes, strict=True))
        for step in self._plan.steps:
            results = step.run([values[name] for name in step.inputs])
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
        self._variables.append(as_variable(array, name))
        return self._variables[-1]

    def _codes(self) -> list[tf.TensorSpec]:
        """What the steps take: the graph's inputs, of any batch size."""
        graph = self._plan.graph
        return [tf.TensorSpec(graph.tensors[name].shape, graph.tensors[name].dtype) for name in graph.inputs]

    def _examples(self) -> list[Any]:
        """Inputs that are traced beforehand, and that a saved runtime takes: codes and reals, alone, in lists and dicts."""
        found: list[Any] = []
        for kind in (None, "float16", "float32", "float64"):
            specs = [_spec(own, kind) for own in self._codes()]
            found += [
                specs,
                dict(zip(self._plan.graph.inputs, specs, strict=True)),
                *(specs if len(specs) == 1 else ()),
            ]
        return found


def _spec(own: tf.TensorSpec, kind: str | None) -> tf.TensorSpec:
    """An input as reals of a kind, where it may be given as reals."""
    reals = own.dtype.name in ("int8", "float32")
    return tf.TensorSpec(own.shape, kind if kind and reals else own.dtype)


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
    """Codes (or values, for an input without a range) of one input, its shape checked."""
    given = tf.convert_to_tensor(value)
    if not given.shape.is_compatible_with(tensor.shape):
        expected = ", ".join("batch" if size is None else str(size) for size in tensor.shape)
        raise ValueError(f"input {tensor.name!r} has shape {given.shape}; expected ({expected})")
    if given.dtype.name == tensor.dtype:
        return given
    pixels = given.dtype == tf.uint8 and tensor.scale is not None and tensor.range.is_of_bytes
    if tensor.dtype in ("int8", "float32") and (given.dtype.is_floating or pixels):
        real = tf.cast(given, tf.float32)
        return real if tensor.dtype == "float32" else tf_fallback.quantize(real, scale_of(tensor), tensor.zero_point)
    if tensor.dtype not in ("int8", "float32") and np.can_cast(given.dtype.as_numpy_dtype, tensor.dtype):
        return tf.cast(given, tensor.dtype)
    expected = "int8 (codes) or float32 (real numbers)" if tensor.dtype == "int8" else tensor.dtype
    raise TypeError(f"input {tensor.name!r} is {given.dtype.name}; expected {expected}: convert it with .astype")
