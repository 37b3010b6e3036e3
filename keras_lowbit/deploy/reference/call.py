"""What a reference kernel is given, and the register of kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from keras_lowbit.deploy.graph import Tensor
from keras_lowbit.deploy.interpreters import litert_version, release_of
from keras_lowbit.numerics import requantization as fp

_FACTORS_IN_DOUBLE = (2, 4)  # the first release that does


def factor_type(litert: str | None = None) -> type[np.floating]:
    """The type in which the kernels of a LiteRT release form the factors of mul, relu, relu6 and leaky_relu.

    float32 up to 2.3, double from 2.4 on: the last bit of a factor decides ties.   litert: None for the installed one,
    and for the latest where none is.
    """
    version = litert or litert_version()
    return np.float64 if version is None or release_of(version) >= _FACTORS_IN_DOUBLE else np.float32


class NodeCall(NamedTuple):
    """One execution of a node. arrays: values of the inputs, batch axis first; inputs, outputs: tensors.

    factor: the type of some factors, see `factor_type`.
    """

    attributes: Mapping[str, Any]
    arrays: tuple[np.ndarray, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    factor: type[np.floating]

    @property
    def output(self) -> Tensor:
        """The only output."""
        return self.outputs[0]

    def centered(self, index: int = 0) -> NDArray[np.int64]:
        """`code - zero_point` of input `index`: within 255 of zero for int8, 2**15 for int16."""
        return self.arrays[index].astype(np.int64) - self.inputs[index].zero_point

    def codes(self, index: int = 0) -> NDArray[np.int64]:
        """Every code that input `index` can have, in order."""
        low, high = self.inputs[index].range.limits
        return np.arange(low, high + 1)

    def scales(self) -> list[np.floating]:
        """The scales of inputs and output in the type of `factor`."""
        return [self.factor(scale_of(tensor)) for tensor in (*self.inputs, *self.outputs)]

    def limits(self) -> tuple[int, int]:
        """Code range that the fused activation leaves in the output."""
        return fp.activation_range(self.attributes.get("activation"), *self.output.range[:2], self.output.range.limits)

    def requantized(self, total: Any, factor: fp.Multiplier, limits: tuple[int, int] | None = None) -> NDArray[Any]:
        """Codes of the output for int32 sums. limits: what the fused activation leaves, by default."""
        return fp.requantize(total, factor, self.output.zero_point, limits or self.limits(), self.output.dtype)

    def as_codes(self, values: Any) -> NDArray[Any]:
        """Whole numbers as codes of the output, saturated."""
        return np.clip(values, *self.output.range.limits).astype(self.output.dtype)


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
