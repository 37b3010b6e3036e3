"""The part of `verify` that has no tolerance: the file on LiteRT's reference kernels against the NumPy reference."""

import dataclasses
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from keras_lowbit.deploy.graph import IntegerGraph
from keras_lowbit.deploy.litert.file_runner import FileRunner
from keras_lowbit.deploy.reference.interpreter import trace


@dataclasses.dataclass(frozen=True)
class ReferenceParity:
    """The file on LiteRT's reference kernels against the NumPy reference, on every tensor of the graph.

    differing: tensor -> elements that differ (only tensors where some do).   elements: looked at in all.
    kernels: what LiteRT ran on; "built-in" where the reference kernels lack a float operation or would end
    the process (see `softmax_overflows`), and then nothing is claimed.
    """

    differing: dict[str, int]
    elements: int
    kernels: str

    @property
    def equal(self) -> bool | None:
        """Whether no element differs; None where LiteRT could not run on its reference kernels."""
        return None if self.kernels != "reference" else not self.differing


_LIMITING = (
    threading.Lock()
)  # how many threads a BLAS takes belongs to the process: two at once would put back each other's


def trace_by_batches(graph: IntegerGraph, samples: list[np.ndarray], size: int) -> dict[str, np.ndarray]:
    """`trace` of inputs in the graph's order, `size` samples at a time, in as many threads as there are processors.

    size: divides the number of samples, and is one that the graph's float subgraphs take.
    """
    batches = [[array[start : start + size] for array in samples] for start in range(0, len(samples[0]), size)]
    if len(batches) == 1:
        return trace(graph, dict(zip(graph.inputs, samples, strict=True)))
    # A BLAS wakes its own threads for each product, and they look for the next one in vain for longer than it takes.
    with _LIMITING, threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as threads:
        found = list(threads.map(lambda batch: trace(graph, dict(zip(graph.inputs, batch, strict=True))), batches))
    return {name: np.concatenate([values.pop(name) for values in found]) for name in list(found[0])}


def softmax_overflows(graph: IntegerGraph, values: Mapping[str, np.ndarray]) -> bool:
    """Whether LiteRT's reference int8 softmax would end the process on these values of the graph's tensors.

    It does where ``sum(exp(x - max))`` of a row reaches 512, which takes 512 classes at least. A margin of 2 keeps clear
    of the border, since a float operation or XNNPACK may shift a code.
    """
    wide = [
        n.inputs[0] for n in graph.nodes if n.op == "softmax" and (graph.tensors[n.inputs[0]].shape[-1] or 0) >= 500
    ]
    for name in wide:
        codes = values[name].astype(np.float64)
        exponentials = np.exp((codes - codes.max(axis=-1, keepdims=True)) * np.float64(graph.tensors[name].range.scale))
        if float(exponentials.sum(axis=-1).max()) > 510:
            return True
    return False


def compare_reference(ours: Mapping[str, np.ndarray], runner: FileRunner, samples: list[np.ndarray]) -> ReferenceParity:
    """Every activation in the file and in NumPy.

    ours: by name, of the graph as the file holds it, for these samples at least.
    """
    theirs, count = runner.all_tensors(samples, set(ours)), len(samples[0])
    differing, elements = {}, 0
    for name, values in ours.items():
        mine = values[:count]
        elements += mine.size
        if different := int(np.count_nonzero(mine != theirs[name].reshape(mine.shape))):
            differing[name] = different
    return ReferenceParity(differing, elements, runner.resolver)
