"""Runs an IntegerGraph in NumPy: slow, obvious, and the oracle of every other back end.

What it gives equals LiteRT's reference kernels (`OpResolverType.BUILTIN_REF`) to the last bit, tensor by
tensor. XNNPACK and LiteRT's optimized kernels may differ from it; studies/resolver_differences measures by
how much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_lowbit.deploy.graph import IntegerGraph, Node, Tensor
from keras_lowbit.deploy.graph.tensors import CODES
from keras_lowbit.deploy.lowering.arguments import check_graph
from keras_lowbit.deploy.reference import (
    convolution,
    data_movement,
    elementwise,
    float_subgraph,
    masks,
    recurrent,
    softmax,
)
from keras_lowbit.deploy.reference.call import KERNELS, Kernel, NodeCall, factor_type, scale_of
from keras_lowbit.numerics.requantization import quantize_real

# Importing them registers their kernels.
_KERNEL_FILES = (convolution, data_movement, elementwise, float_subgraph, masks, recurrent, softmax)


def run_reference(graph: IntegerGraph, images: Any, litert: str | None = None) -> Any:
    """Outputs of the graph for a batch of inputs: one array, or a list where the graph has several outputs.

    graph: from `lower`, or loaded.
    images: an array with the batch axis first; a dict by input name, or a list, where the graph has several
    inputs. Arrays of the input's integer type are codes; floating-point arrays are real numbers and are quantized by its
    scale (`round_half_away(x / scale) + zero_point`). Outputs are codes, or float32 after a float
    subgraph or dequantize. A file of 2- or 4-bit weights holds 1x1 convolutions as dense layers, which LiteRT rounds once, not
    twice: run `weight_formats.as_written(graph, formats)` for it.
    litert: the release whose arithmetic is meant, "2.3" or "2.4", the installed one by default. From 2.4 on a few ties of mul,
    relu, relu6 and leaky_relu fall on the other side.   ValueError or TypeError, with values, for what does not fit.
    Returns NumPy arrays.

    >>> klb.deploy.run_reference(graph, images[:4]).dtype
    dtype('int8')
    """
    check_graph(graph, "run_reference")
    arrays = trace(graph, images, litert)
    outputs = [arrays[name] for name in graph.outputs]
    return outputs[0] if len(outputs) == 1 else outputs


def trace(graph: IntegerGraph, images: Any, litert: str | None = None) -> dict[str, np.ndarray]:
    """Every activation of the graph by name, inputs included; constants are in `graph.tensors`.

    images, litert, errors: as in `run_reference`.
    """
    factor = factor_type(litert)
    arrays = {name: _as_input(graph.tensors[name], value) for name, value in _by_name(graph, images).items()}
    batches = {name: len(array) for name, array in arrays.items()}
    if len(set(batches.values())) > 1:
        raise ValueError(f"the inputs have different batch sizes {batches}; expected one size for all")
    for node in graph.nodes:
        arrays.update(zip(node.outputs, _run(graph, node, factor, arrays), strict=True))
    return arrays


def _kernel(node: Node) -> Kernel:
    """The function that runs a node."""
    if node.op not in KERNELS:
        raise ValueError(
            f"node {node.name!r} has the unknown operation {node.op!r}; the reference knows "
            f"{', '.join(sorted(KERNELS))}"
        )
    return KERNELS[node.op]


def _run(graph: IntegerGraph, node: Node, factor: type[np.floating], arrays: Mapping[str, np.ndarray]) -> list[Any]:
    """The outputs of one node."""
    inputs, outputs = (tuple(graph.tensors[n] for n in names) for names in (node.inputs, node.outputs))
    values = tuple(arrays[t.name] if t.data is None else t.data for t in inputs)
    try:
        result = _kernel(node)(NodeCall(node.attributes, values, inputs, outputs, factor))
    except ValueError as error:
        raise ValueError(f"{node.op} {node.name!r}: {error}") from error
    return result if isinstance(result, list) else [result]


def _by_name(graph: IntegerGraph, images: Any) -> dict[str, Any]:
    """The inputs as a dict by name, whatever form they came in."""
    if isinstance(images, Mapping):
        if set(images) != set(graph.inputs):
            raise ValueError(f"got inputs {sorted(images)}; the graph's inputs are {sorted(graph.inputs)}")
        return {name: images[name] for name in graph.inputs}
    several = isinstance(images, Sequence) and not isinstance(images, np.ndarray)
    values = list(images) if several and len(graph.inputs) > 1 else [images]
    if len(values) != len(graph.inputs):
        raise ValueError(
            f"got {len(values)} inputs; the graph has {list(graph.inputs)}: pass a "
            "dict by name, or a list in this order"
        )
    return dict(zip(graph.inputs, values, strict=True))


def _as_input(tensor: Tensor, value: Any) -> np.ndarray:
    """Codes (or values, for an input without a range) of one input, shape checked."""
    array = np.asarray(value)
    if array.ndim != len(tensor.shape) or array.shape[1:] != tensor.shape[1:]:
        expected = ", ".join("batch" if d is None else str(d) for d in tensor.shape)
        raise ValueError(f"input {tensor.name!r} has shape {array.shape}; expected ({expected})")
    if tensor.dtype == array.dtype:
        return array
    coded = tensor.dtype in CODES
    if coded and array.dtype == np.uint8 and tensor.range.is_of_bytes:
        array = array.astype(np.float32)
    if np.issubdtype(array.dtype, np.floating) and (coded or tensor.dtype == "float32"):
        if not coded:
            return array.astype(np.float32)
        return quantize_real(array, scale_of(tensor), tensor.zero_point, tensor.range.limits)
    if not coded and tensor.dtype != "float32" and np.can_cast(array.dtype, tensor.dtype):
        return array.astype(tensor.dtype)
    expected = f"{tensor.dtype} (codes) or float32 (real numbers)" if coded else tensor.dtype
    raise TypeError(f"input {tensor.name!r} is {array.dtype}; expected {expected}: convert it with .astype")
