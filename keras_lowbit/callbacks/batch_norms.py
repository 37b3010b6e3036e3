"""Moving statistics of batch norms from data, for weights that have changed under them: a function and its callback."""

from typing import Any

import keras
import numpy as np

from keras_lowbit.data import Batches
from keras_lowbit.keras_graph.calls import (
    Call,
    calls_of,
    find_layers,
    functional_of,
    inputs_in_order,
    layers_inside,
)
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.base import QuantizedLayer
from keras_lowbit.quantizers import Incremental


class ReestimateBatchNorms(keras.callbacks.Callback):
    """Takes the statistics of every batch norm anew when `fit` ends: `reestimate_batch_norms` as a callback.

    The last step of INQ is followed by one epoch at most, and moving averages still remember the weights before it. While
    an `Incremental` kernel is only partly frozen nothing happens: a fit in several pieces re-estimates once, after the
    last step.
    data, batch_size, steps, verbose: as for `reestimate_batch_norms`; a generator is used up by the first fit that ends.
    Raises at the start of `fit`: ValueError for a model without batch norms or with some inside custom layers, TypeError
    for a subclassed one.
    """

    def __init__(self, data: Any, batch_size: int = 32, steps: int | None = None, verbose: int | bool = 0) -> None:
        super().__init__()
        self.batches = Batches(data, batch_size, steps, verbose)

    def set_model(self, model: Any) -> None:
        """Check that there is something to re-estimate."""
        super().set_model(model)
        functional_of(model)
        if not find_layers(model, keras.layers.BatchNormalization):
            raise ValueError(
                f"Model {model.name!r} has no batch norm, so there is nothing to re-estimate. Leave "
                "ReestimateBatchNorms out."
            )
        _check_reach(model)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Re-estimate, if all weights are frozen."""
        if all(_frozen(layer) for layer in find_layers(self.model, QuantizedLayer)):
            _reestimate(self.model, self.batches)


def _frozen(layer: QuantizedLayer) -> bool:
    if not isinstance(layer.kernel_quantizer, Incremental) or layer.kernel_host is None:
        return True
    return bool(to_numpy(layer.kernel_host.state["portion"]) == 1)


def reestimate_batch_norms(
    model: keras.Model, data: Any, *, batch_size: int = 32, steps: int | None = None, verbose: int | bool = 1
) -> int:
    """Set the moving mean and variance of every batch norm to the statistics of `data`.

    Forward passes only: weights quantized as at inference, activation ranges in place, dropout off; each batch norm
    normalises with the statistics of the batch while it looks. ``mean = E[x]``, ``variance = E[x^2] - mean^2`` over all
    samples and positions (cumulative, not an exponential average). Gamma, beta and all other weights stay.
    Quantizing weights shifts these statistics; without retraining accuracy collapses unless they are taken anew. Do it
    before folding or export, and calibrate before and after where activations are quantized.

    data, batch_size, steps: as for `calibrate`; a few hundred batches of training data, augmented as in training:
    statistics of the bare images cost a CIFAR-10 ResNet-20 three points (studies/dfp_imagenet).
    Returns how many batch norms were set; 0 for a model without any.
    Raises ValueError for empty data and for batch norms inside custom layers, TypeError for a subclassed model.
    """
    return _reestimate(model, Batches(data, batch_size, steps, verbose))


def _reestimate(model: keras.Model, batches: Batches) -> int:
    _check_reach(model)
    graph = calls_of(model, inline=True)
    norms = [call for call in graph.calls if isinstance(call.operation, keras.layers.BatchNormalization)]
    totals = {id(call.operation): _Moments() for call in norms}
    if not norms:
        return 0

    def look(call: Call, values: dict[int, Any]) -> list[Any]:
        moments = totals.get(id(call.operation))
        return call.run(values) if moments is None else [moments.see(call.operation, values[call.inputs[0]])]

    for batch in batches.with_progress():
        graph.run(map(keras.ops.convert_to_tensor, inputs_in_order(model, batch)), look)
    for call in norms:
        totals[id(call.operation)].write(call.operation)
    return len(totals)


def _check_reach(model: keras.Model) -> None:
    if inside := layers_inside(model, keras.layers.BatchNormalization):
        raise ValueError(
            f"{len(inside)} batch norms of {model.name!r} stand inside custom layers, where their inputs cannot be seen: "
            f"{', '.join(map(repr, inside[:3]))}{', ...' if len(inside) > 3 else ''}. Build these blocks as nested Functional "
            "or Sequential models, or let `fit` take the statistics."
        )


class _Moments:
    """Running sums of one batch norm's input, float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Any = 0.0
        self.squares: Any = 0.0

    def see(self, layer: Any, inputs: Any) -> Any:
        """Add the inputs of one call to the sums; what the layer makes of them with their own statistics."""
        values = keras.ops.convert_to_numpy(keras.ops.cast(inputs, "float32"))
        rows = np.moveaxis(values, layer.axis, -1).reshape(-1, values.shape[layer.axis]).astype(np.float64)
        self.count += len(rows)
        self.total = self.total + rows.sum(axis=0)
        self.squares = self.squares + np.square(rows).sum(axis=0)
        return _normalized(layer, inputs)

    def write(self, layer: Any) -> None:
        mean = self.total / self.count
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(np.maximum(self.squares / self.count - np.square(mean), 0.0))


def _normalized(layer: Any, inputs: Any) -> Any:
    """The layer with the statistics of this batch; its moving averages stay, so that bad data later harms nothing."""
    trainable, layer.trainable = layer.trainable, True
    averages = (layer.moving_mean, layer.moving_variance)
    before = [keras.ops.copy(average) for average in averages]
    try:
        return layer(inputs, training=True)
    finally:
        layer.trainable = trainable
        for average, value in zip(averages, before, strict=True):
            average.assign(value)
