"""Moving statistics of batch norms from data, for weights that have changed under them: a function and its callback."""

import warnings
from collections.abc import Callable
from typing import Any

import keras

from keras_lowbit.callbacks.norm_judges import (
    Moments,
    distance_of,
    held_back_labels,
    input_label_pair,
    loss_of,
    norms_of,
)
from keras_lowbit.data import Batches
from keras_lowbit.guard import Samples, guarded, say_left_out
from keras_lowbit.keras_graph.calls import (
    Call,
    CallGraph,
    calls_of,
    find_layers,
    functional_of,
    inputs_in_order,
    layers_inside,
)
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.base import QuantizedLayer
from keras_lowbit.quantizers import Incremental

_UNKNOWN = (
    "reestimate_batch_norms left the statistics of {name!r} as they were: nothing says whether others are better. They belong "
    "to the network as it is, or the data are unlike those that they come from. Give labels= (of a compiled model), or "
    "reference=, a float network of the same outputs; check=False takes the new ones over unchecked."
)


class ReestimateBatchNorms(keras.callbacks.Callback):
    """Takes the statistics of every batch norm anew when `fit` ends: `reestimate_batch_norms` as a callback.

    The last step of INQ is followed by one epoch at most, and moving averages still remember the weights before it. While
    an `Incremental` kernel is only partly frozen nothing happens: a fit in several pieces re-estimates once, after the
    last step.
    data, batch_size, steps, verbose: as for `reestimate_batch_norms`, which checks what it does.
    labels, reference, validation_data, check: as there too. Give it `labels`, since the network has learnt with its
    statistics. A generator is used up by the first fit that ends.
    Raises at the start of `fit`: ValueError for a model without batch norms or with some inside custom layers, TypeError
    for a subclassed one.

    >>> last = klb.callbacks.ReestimateBatchNorms(images, labels=labels)
    >>> history = ternary.fit(images[:16], labels[:16], callbacks=[last], verbose=0)
    """

    def __init__(
        self,
        data: Any,
        batch_size: int = 32,
        steps: int | None = None,
        verbose: int | bool = 0,
        *,
        labels: Any = None,
        reference: keras.Model | None = None,
        validation_data: Any = None,
        check: bool = True,
    ) -> None:
        super().__init__()
        self.batches = Batches(data, batch_size, steps, verbose)
        self._judging = {"labels": labels, "reference": reference, "validation_data": validation_data, "check": check}

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
            _reestimate(self.model, self.batches, **self._judging)


def _frozen(layer: QuantizedLayer) -> bool:
    if not isinstance(layer.kernel_quantizer, Incremental) or layer.kernel_host is None:
        return True
    return bool(to_numpy(layer.kernel_host.state["portion"]) == 1)


def reestimate_batch_norms(
    model: keras.Model,
    data: Any,
    *,
    batch_size: int = 32,
    steps: int | None = None,
    labels: Any = None,
    reference: keras.Model | None = None,
    validation_data: Any = None,
    check: bool = True,
    verbose: int | bool = 1,
) -> int:
    """Set the moving mean and variance of every batch norm to the statistics of `data`.

    Forward passes only: weights quantized as at inference, activation ranges in place, dropout off; each batch norm
    normalises with the statistics of the batch while it looks. ``mean = E[x]``, ``variance = E[x^2] - mean^2`` over all
    samples and positions (cumulative, not an exponential average). Gamma, beta and all other weights stay.
    Quantizing weights shifts these statistics; without retraining accuracy collapses unless they are taken anew. Do it
    before folding or export, and calibrate before and after where activations are quantized.

    The new statistics are judged on held-back samples and taken back, with a warning, if the model is worse with them: data
    unlike the training set would ruin it. The measure is the first of these that there is:
    the compiled loss, with `labels`; the distance of the outputs to those of `reference`; in a model that never was trained
    (means 0, variances 1), how well they describe the samples; where the statistics describe the samples much better with
    the quantizers off, the distance to the outputs of this model without them. Otherwise (a float model, one trained since it
    was quantized, data unlike the training set) nothing can judge others, and they stay, with a warning.

    model: its batch norms are changed in place.
    data, batch_size, steps: as for `calibrate`; a few hundred batches of training data, augmented as in training:
    statistics of the bare images cost a CIFAR-10 ResNet-20 three points (studies/dfp_imagenet).
    labels: beside data in arrays, as for `evaluate`.   reference: the float network, of the same inputs and outputs.
    validation_data: samples that judge, in the forms of `data`, with `labels` a pair (inputs, labels); by default every fourth
    of `data` is held back for that (256 at most; a single sample judges itself).   check=False: all data count, unjudged.
    verbose: 1 a progress bar, 0 nothing.
    Returns how many batch norms were set; 0 for a model without any, and where they were left.
    Raises ValueError for empty data, for labels that do not fit and for batch norms inside custom layers, TypeError for a
    subclassed model.

    >>> verdict = klb.reestimate_batch_norms(ternary, images, reference=model, verbose=0)
    """
    batches = Batches(data, batch_size, steps, verbose)
    return _reestimate(model, batches, labels, reference, validation_data, check)


def _reestimate(
    model: keras.Model, batches: Batches, labels: Any, reference: keras.Model | None, validation_data: Any, check: bool
) -> int:
    _check_reach(model)
    if labels is not None and validation_data is not None:
        validation_data, judging_labels = input_label_pair(validation_data)
    else:
        judging_labels = None
    graph = calls_of(model, inline=True)
    norms = norms_of(graph)
    if not norms:
        return 0
    samples = Samples(batches, validation_data, check)
    totals = _batch_statistics(model, graph, samples)
    measure: Callable[[], float] | None = None
    if labels is not None and check:
        judging_labels = held_back_labels(samples, labels) if judging_labels is None else judging_labels
        measure = loss_of(model, graph, samples, judging_labels)
    elif check:
        measure = distance_of(model, graph, samples, reference)
    if measure is None and check:
        warnings.warn(_UNKNOWN.format(name=model.name), stacklevel=3)
        return 0

    def write() -> None:
        for norm in norms.values():
            totals[id(norm)].write(norm)

    averages = [average for norm in norms.values() for average in (norm.moving_mean, norm.moving_variance)]
    verdict = guarded(samples, averages, write, measure or (lambda: 0.0))
    say_left_out(
        f"reestimate_batch_norms left the statistics of {model.name!r} as they were",
        verdict,
        "Give data like those of training, augmented in the same way.",
    )
    return len(norms) if verdict.kept else 0


def _batch_statistics(model: keras.Model, graph: CallGraph, samples: Samples) -> dict[int, Moments]:
    """Moments of the inputs of every batch norm, each normalising with the statistics of its batch."""
    totals = {key: Moments() for key in norms_of(graph)}

    def look(call: Call, values: dict[int, Any]) -> list[Any]:
        if (moments := totals.get(id(call.operation))) is None:
            return call.run(values)
        moments.see(call.operation, values[call.inputs[0]])
        return [_normalized(call.operation, values[call.inputs[0]])]

    for batch in samples.with_progress():
        graph.run(map(keras.ops.convert_to_tensor, inputs_in_order(model, batch)), look)
    return totals


def _check_reach(model: keras.Model) -> None:
    if inside := layers_inside(model, keras.layers.BatchNormalization):
        raise ValueError(
            f"{len(inside)} batch norms of {model.name!r} stand inside custom layers, where their inputs cannot be seen: "
            f"{', '.join(map(repr, inside[:3]))}{', ...' if len(inside) > 3 else ''}. Build these blocks as nested Functional "
            "or Sequential models, or let `fit` take the statistics."
        )


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
