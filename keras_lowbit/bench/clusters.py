"""Time and memory of clustering a network's weights, on a set of kernels the size of ResNet-101's.

    python -m keras_lowbit.bench.clusters --out clusters.json

The 104 convolutions and the classifier of ResNet-101 (44.4 million random weights), each encoded once as conversion and export
do it, one process for each quantizer: wall and processor seconds, and how much the process's peak memory grew.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_lowbit.bench.machine import machine
from keras_lowbit.bench.output import output_file
from keras_lowbit.files import atomic_write
from keras_lowbit.quantizers import Clustered, Quantizer, Ternary, Uniform

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


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures each quantizer in a process of its own, writes the file and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=output_file, help="file to write (JSON)")
    parser.add_argument("--only", choices=list(QUANTIZERS), help="one quantizer in this process; prints its JSON")
    given = parser.parse_args(arguments)
    if given.only:
        print(json.dumps(measure(given.only)))
        return
    rows = {}
    for name in QUANTIZERS:
        command = [sys.executable, "-m", "keras_lowbit.bench.clusters", "--only", name]
        rows[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{name:<28}", rows[name], flush=True)
    if given.out:
        atomic_write(given.out, (json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n").encode())
        print(f"written to {given.out}")


if __name__ == "__main__":
    main()
