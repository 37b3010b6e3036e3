"""keras-lowbit bench clusters: time and memory of clustering a network's weights, on a set of kernels the size of ResNet-101's.

    keras-lowbit bench clusters --output clusters.json

The 104 convolutions and the classifier of ResNet-101 (44.4 million random weights), each encoded once as conversion and export
do it, one process for each quantizer: wall and processor seconds, and how much the process's peak memory grew.
"""

import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from absl import flags

from keras_lowbit.bench.machine import machine
from keras_lowbit.bench.output import define_output, write_report
from keras_lowbit.quantizers import Clustered, Quantizer, Ternary, Uniform

FLAGS = flags.FlagValues()
define_output(FLAGS)

QUANTIZERS: dict[str, Quantizer] = {
    "ternary, N=4": Clustered(Ternary(), 4),
    "ternary, N=4, optimal": Clustered(Ternary(), 4, "mse"),
    "ternary, N=4, single weights": Clustered(Ternary(), 4, "mse", "weights"),
    "ternary, N=64": Clustered(Ternary(), 64),
    "4-bit, N=4": Clustered(Uniform(4), 4),
    "4-bit, N=64": Clustered(Uniform(4), 64),
}


def resnet101_kernels() -> list[tuple[int, ...]]:
    """Shapes of the kernels of ResNet-101 (He et al. 2015), in running order."""
    shapes, inputs = [(7, 7, 3, 64)], 64
    for blocks, width in ((3, 64), (4, 128), (23, 256), (3, 512)):
        for block in range(blocks):
            shapes += [(1, 1, inputs, width), (3, 3, width, width), (1, 1, width, 4 * width)]
            shapes += [(1, 1, inputs, 4 * width)] if block == 0 else []
            inputs = 4 * width
    return [*shapes, (inputs, 1000)]


def measure(name: str) -> dict[str, Any]:
    """Encodes every kernel once in this process; seconds and megabytes (10^6 bytes)."""
    quantizer, rng = QUANTIZERS[name], np.random.default_rng(0)
    kernels = [rng.standard_normal(shape, np.float32) for shape in resnet101_kernels()]
    quantizer.encode(kernels[1], {}, (-1,))  # the first call loads code
    memory, wall, processor = _peak_mb(), time.perf_counter(), time.process_time()
    error = norm = 0.0
    for kernel in kernels:
        real = np.asarray(quantizer.encode(kernel, {}, (-1,)).real)
        error += float(np.sum(np.square(kernel - real), dtype=np.float64))
        norm += float(np.sum(np.square(kernel), dtype=np.float64))
    return {
        "weights": sum(kernel.size for kernel in kernels),
        "wall_s": round(time.perf_counter() - wall, 2),
        "processor_s": round(time.process_time() - processor, 2),
        "peak_mb": round(_peak_mb()),
        "peak_mb_before": round(memory),
        "relative_squared_error": round(error / norm, 5),
    }


def _peak_mb() -> float:
    """The largest resident size of this process so far; Linux counts in units of 1024 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def run(values: Any) -> int:
    """Measures each quantizer in a process of its own, prints the rows and writes the file."""
    rows = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context, max_tasks_per_child=1) as pool:
        for name, row in zip(QUANTIZERS, pool.map(measure, QUANTIZERS), strict=True):
            rows[name] = row
            print(f"{name:<28}", row, flush=True)
    write_report(values.output, {"machine": machine(), "rows": rows})
    return 0
