"""What the grids of powers of two make of the pretrained network's weights, before any training.

python -m studies.inq_cifar.grids           # ten seconds; prints the table of the README
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from keras_lowbit.quantizers import PowerOfTwo
from studies.common import cifar_resnet
from studies.common.cifar10 import data_folder

GRIDS = {
    "per layer, max (paper)": {},
    "per channel, max": {"granularity": "channel"},
    "per layer, mse": {"calibration": "mse"},
    "per channel, mse": {"granularity": "channel", "calibration": "mse"},
}


def damage(kernels: list[np.ndarray], quantizer: PowerOfTwo) -> tuple[float, float]:
    """Share of zeros, and squared error over the sum of squares: means over the kernels."""
    zeros, errors = [], []
    for kernel in kernels:
        real = np.asarray(quantizer.encode(kernel, {}, (-1,)).real, np.float64)
        zeros.append(np.mean(real == 0))
        errors.append(np.square(kernel - real).sum() / np.square(kernel.astype(np.float64)).sum())
    return float(np.mean(zeros)), float(np.mean(errors))


def main() -> None:
    """Prints one line for each width."""
    model = cifar_resnet.pretrained(data_folder(), 20)
    kernels = [np.asarray(layer.kernel) for layer in model.layers if hasattr(layer, "kernel")]
    print("| bits | " + " | ".join(GRIDS) + " |\n|" + " --- |" * (len(GRIDS) + 1))
    for bits in (2, 3, 4, 5):
        found = [damage(kernels, PowerOfTwo(bits, **options)) for options in GRIDS.values()]
        print(f"| {bits} | " + " | ".join(f"{100 * zeros:.0f} %, {error:.2f}" for zeros, error in found) + " |")


if __name__ == "__main__":
    main()
