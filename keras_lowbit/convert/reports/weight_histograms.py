"""Where the float weights of quantized layers lie on the grids that they go to."""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_lowbit.figures.weights import draw_weights
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.kernels import kernel_codes, quantized_layers

BINS = 60  # of a histogram
_FARTHEST = 2.0  # half the width of a histogram, in largest codes: what lies farther out is in the outermost bins


@dataclasses.dataclass(frozen=True)
class WeightHistogram:
    """The float weights of one kernel in steps of their own scale, ``w / scale + zero_point``, and the codes they become.

    Whatever shares a scale (filter, cluster, tensor), a weight that lies on the grid is a whole number here.
    edges: of the bins, one more than `counts`; weights beyond the first and last count there.   counts: weights in each bin.
    codes: those that occur, in order.   code_counts: how many weights have them.   bits: of one weight.
    """

    path: str
    quantizer: str
    bits: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    codes: tuple[int, ...]
    code_counts: tuple[int, ...]

    @property
    def weights(self) -> int:
        """How many there are."""
        return sum(self.code_counts)

    def plot(self) -> Any:
        """Bars and stems: see `keras_lowbit.plot.weights`."""
        return draw_weights([self])


@dataclasses.dataclass(frozen=True)
class WeightHistograms:
    """One `WeightHistogram` for every quantized layer, in running order; `histograms["conv1"]` is that of a layer."""

    model: str
    layers: tuple[WeightHistogram, ...]

    def plot(self, layers: str | Sequence[str] | None = None) -> Any:
        """A panel for each layer, or for those named: see `keras_lowbit.plot.weights`."""
        names = [layers] if isinstance(layers, str) else layers
        chosen = self.layers if names is None else [self[name] for name in names]
        if not chosen:
            raise ValueError(
                f"{self.model} has no quantized layer to draw. Quantize it: keras_lowbit.quantize_model(model)."
            )
        return draw_weights(chosen)

    def __getitem__(self, path: str) -> WeightHistogram:
        """The histogram of a layer by its path; a KeyError that lists close names."""
        by_path = {row.path: row for row in self.layers}
        if path not in by_path:
            close = difflib.get_close_matches(path, by_path, n=3) or list(by_path)[:3]
            raise KeyError(f"{self.model} has no quantized layer {path!r}. Close: {close}.")
        return by_path[path]


def weight_histograms(model: keras.Model) -> WeightHistograms:
    """A histogram of the float weights of every quantized layer on the grid that they go to.

    model: quantized.
    Returns a `WeightHistograms`: path of the layer -> its histogram; `plot()` draws one or all.

    >>> histogram = klb.weight_histograms(quantized)["first"]
    """
    return WeightHistograms(model.name, tuple(_histogram(*each) for each in quantized_layers(model).items()))


def _histogram(path: str, layer: Any) -> WeightHistogram:
    weights = kernel_codes(layer)
    codes, scale = np.asarray(weights.codes), np.asarray(weights.scale, np.float64)
    kernel = to_numpy(layer.kernel).astype(np.float64)
    steps = np.divide(kernel, scale, out=np.zeros_like(kernel), where=scale > 0) + np.asarray(weights.zero_point)
    occurring, code_counts = np.unique(codes, return_counts=True)
    farthest = _FARTHEST * max(1, int(np.abs(occurring).max(initial=0)))
    low = max(float(min(steps.min(initial=0.0), occurring.min(initial=0) - 0.5)), -farthest)
    high = min(float(max(steps.max(initial=0.0), occurring.max(initial=0) + 0.5)), farthest)
    counts, edges = np.histogram(np.clip(steps, low, high), BINS, (low, high))
    return WeightHistogram(
        path,
        repr(layer.kernel_quantizer),
        float(layer.kernel_quantizer.bits),
        tuple(float(edge) for edge in edges),
        tuple(int(count) for count in counts),
        tuple(int(code) for code in occurring),
        tuple(int(count) for count in code_counts),
    )
