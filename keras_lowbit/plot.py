"""Pictures for people, by matplotlib and Graphviz; each is also a method of what it draws.

All but `graph` return a `matplotlib.figure.Figure` that no window shows and nobody has to close: call its
`savefig("name.png")`, or end a cell of a notebook with it. `pip install 'keras_lowbit[report]'` brings what they need;
without it they raise ImportError.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_lowbit.convert.post_training.range_use import ActivationRanges, activation_ranges
from keras_lowbit.convert.reports.weight_histograms import WeightHistogram, WeightHistograms, weight_histograms
from keras_lowbit.deploy.graph import IntegerGraph
from keras_lowbit.deploy.verification.parity import Parity
from keras_lowbit.figures.training import draw_history
from keras_lowbit.files import FilePath
from keras_lowbit.sensitivity import BitChoices, Chosen, Sensitivity

__all__ = ["bit_choices", "graph", "history", "parity", "ranges", "sensitivity", "weights"]


def weights(model: keras.Model | WeightHistograms | WeightHistogram, layers: str | Sequence[str] | None = None) -> Any:
    """Distributions of float weights with the codes that they become, in steps of their own scale: a panel for each layer.

    Bars: float weights. Stems: codes and how many weights have them; of grids with many codes the two ends.
    model: quantized, or from `weight_histograms`.   layers: paths; all by default.
    Returns a matplotlib `Figure`.
    Raises KeyError for a layer that is not quantized, ValueError where there is none.

    >>> klb.plot.weights(quantized, ["first", "kind"]).savefig("weights.png")
    """
    if isinstance(model, WeightHistogram):
        return model.plot()
    found = model if isinstance(model, WeightHistograms) else weight_histograms(model)
    return found.plot(layers)


def ranges(model: keras.Model | ActivationRanges, data: Any = None, **reading: Any) -> Any:
    """Activation ranges beside what the data reach, and the share of values that they clip.

    Each row is in units of the range's larger end, since every tensor has its own.
    model: quantized, or from `activation_ranges`.   data, reading: as for `activation_ranges`.
    Returns a matplotlib `Figure`.

    >>> klb.plot.ranges(quantized, images).savefig("ranges.png")
    """
    found = model if isinstance(model, ActivationRanges) else activation_ranges(model, data, **reading)
    return found.plot()


def parity(found: Parity, most: int = 40) -> Any:
    """Signal-to-noise ratio of each stored tensor of a file to Keras, the noisiest on top, with differences in steps.

    found: from `verify`.   most: bars to draw.
    Returns a matplotlib `Figure`.

    >>> klb.plot.parity(klb.verify(quantized, "m.tflite", images)).savefig("parity.png")
    """
    return found.plot(most)


def sensitivity(found: Sensitivity, most: int = 40) -> Any:
    """Signal-to-noise ratio of the logits with each part alone quantized, what hurts most on top.

    found: from `keras_lowbit.sensitivity`.   most: bars to draw.
    Returns a matplotlib `Figure`.

    >>> found = klb.sensitivity(quantized, folded, images[:16], verbose=0)
    >>> klb.plot.sensitivity(found).savefig("sensitivity.png")
    """
    return found.plot(most=most)


def bit_choices(found: BitChoices, chosen: Chosen | None = None) -> Any:
    """Size of the file against agreement with the float model, for falling numbers of bits; the float model at its true place.

    found: from `keras_lowbit.bit_choices`.   chosen: an assignment to mark, one of ``found.path``.
    Returns a matplotlib `Figure`.

    >>> found = klb.bit_choices(folded, images[:16], choices=(8, 4), verbose=0)
    >>> klb.plot.bit_choices(found).savefig("front.png")
    """
    return found.plot(chosen=chosen)


def history(logs: keras.callbacks.History | Mapping[str, Sequence[float]]) -> Any:
    """Metrics over the epochs of a staged training; under them the ratio of SQ or the portion of INQ, and the flip rate.

    Raw values are faint, smoothed ones (five epochs) lie over them; dotted lines begin a stage.
    logs: what `fit` returned, or its `history`.   Raises ValueError if no ratio or portion was logged.
    Returns a matplotlib `Figure`.

    >>> stages = klb.recipes.get("sq-twn").callbacks(epochs=4)
    >>> logs = ternary.fit(images[:16], labels[:16], epochs=4, callbacks=stages, verbose=0)
    >>> klb.plot.history(logs).savefig("history.png")
    """
    return draw_history(logs.history if isinstance(logs, keras.callbacks.History) else logs)


def graph(graph: IntegerGraph, path: FilePath) -> None:
    """Draw an integer graph into a file: data flow down, what runs in float is orange, outputs have a thick edge.

    Each box has the operation, its name, and shape, scale and zero point of what it gives; for weights, the shape and
    the smallest and largest code.
    graph: from `lower`, or loaded.
    path: ends in .svg, .png or .pdf.   Raises ValueError for another ending, OSError if it cannot be written.

    >>> klb.plot.graph(klb.deploy.lower(quantized), "model.svg")
    """
    graph.plot(path)
