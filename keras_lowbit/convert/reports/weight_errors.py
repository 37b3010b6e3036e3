"""How far quantized kernels are from the float ones they stand for."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.kernels import quantized_layers
from keras_lowbit.quantizers import Clustered
from keras_lowbit.tables import table


@dataclasses.dataclass(frozen=True)
class LayerError:
    """One layer: squared error and squared norm of its kernel, in the units of the weights.

    unconstrained: the squared error if the codes did not have to fit int8 (4-bit clusters); None where nothing is limited.
    """

    path: str
    quantizer: str
    squared_error: float
    squared_norm: float
    unconstrained: float | None = None

    @property
    def relative(self) -> float:
        """``|W - Q|^2 / |W|^2``; 0 for a kernel of zeros."""
        return self.squared_error / self.squared_norm if self.squared_norm else 0.0

    @property
    def added(self) -> float:
        """What fitting int8 adds to `relative`; 0 where nothing is limited."""
        if self.unconstrained is None or not self.squared_norm:
            return 0.0
        return (self.squared_error - self.unconstrained) / self.squared_norm


@dataclasses.dataclass(frozen=True)
class WeightErrors:
    """One `LayerError` for every quantized layer, and totals over all their weights; prints as a table."""

    model: str
    layers: tuple[LayerError, ...]

    @property
    def relative(self) -> float:
        """``|W - Q|^2 / |W|^2`` over all quantized kernels together."""
        return self._share(sum(row.squared_error for row in self.layers))

    @property
    def added(self) -> float:
        """What fitting int8 adds to that."""
        return self._share(sum(row.added * row.squared_norm for row in self.layers))

    def _share(self, error: float) -> float:
        norm = sum(row.squared_norm for row in self.layers)
        return error / norm if norm else 0.0

    def __str__(self) -> str:
        rows: list[tuple[Any, ...]] = [(row.path, row.quantizer, row.relative, row.added) for row in self.layers]
        rows.append(("total", "", self.relative, self.added))
        return f"{self.model}: squared error of the weights, relative\n" + table(
            ("layer", "quantizer", "error", "of it to fit int8"), rows
        )


def weight_errors(model: keras.Model) -> WeightErrors:
    """Squared errors of the quantized kernels of a model against its float kernels, layer by layer.

    For clustered 4-bit weights, whose codes times 8-bit scales must fit int8, also what that costs against the best free
    scales of 8 bits (`Clustered.unconstrained`).
    model: quantized.
    Returns a `WeightErrors`: a row for each kernel and `relative` for all; `print` it.

    >>> errors = klb.weight_errors(ternary)
    >>> 0 < errors.relative < 1
    True
    """
    rows = tuple(_row(path, layer) for path, layer in quantized_layers(model).items())
    return WeightErrors(model.name, rows)


def _row(path: str, layer: Any) -> LayerError:
    kernel, quantizer = to_numpy(layer.kernel).astype(np.float64), layer.kernel_quantizer
    free = quantizer.unconstrained() if isinstance(quantizer, Clustered) else quantizer
    error = _squared(kernel, layer.kernel_host.encode(layer.kernel).real)
    unconstrained = None
    if free != quantizer:
        unconstrained = _squared(kernel, free.encode(layer.kernel, {}, layer.filter_axes).real)
    return LayerError(path, repr(quantizer), error, float(np.sum(np.square(kernel))), unconstrained)


def _squared(kernel: np.ndarray, real: Any) -> float:
    return float(np.sum(np.square(kernel - keras.ops.convert_to_numpy(real))))
