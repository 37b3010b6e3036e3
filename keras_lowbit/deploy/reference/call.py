"""What a reference kernel is given, and the register of kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from keras_lowbit.deploy.graph import Tensor
from keras_lowbit.numerics import requantization as fp


class NodeCall(NamedTuple):
    """One execution of a node. arrays: values of the inputs, batch axis first; inputs, outputs: tensors."""

    attributes: Mapping[str, Any]
    arrays: tuple[np.ndarray, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def output(self) -> Tensor:
        """The only output."""
        return self.outputs[0]

    def centered(self, index: int = 0) -> NDArray[np.int64]:
        """`code - zero_point` of input `index`, in [-255, 255]."""
        return self.arrays[index].astype(np.int64) - self.inputs[index].zero_point

    def limits(self) -> tuple[int, int]:
        """Code range that the fused activation leaves in the output."""
        scale = float(scale_of(self.output))
        return fp.activation_range(self.attributes.get("activation"), scale, self.output.zero_point)


def scale_of(tensor: Tensor) -> np.float32:
    """The single float32 scale of an activation."""
    return np.float32(tensor.range.scale)


Kernel = Callable[[NodeCall], Any]
KERNELS: dict[str, Kernel] = {}  # by the name of the operation
K = TypeVar("K", bound=Kernel)


def kernel(operation: str) -> Callable[[K], K]:
    """Decorator: the function computes that operation, with LiteRT's reference kernels in every bit."""

    def register(function: K) -> K:
        KERNELS[operation] = function
        return function

    return register
