"""What tells whether other statistics of a model's batch norms are better, on samples held back."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_lowbit.guard import Samples, noise, outputs_of
from keras_lowbit.keras_graph.calls import Call, CallGraph, functional_of, inputs_in_order
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.find import unquantized

# Statistics of which so much of the mismatch is there without quantizers are not moved by quantizing, but by other data.
_UNLIKE = 0.5


def norms_of(graph: CallGraph) -> dict[int, Any]:
    """The batch norms of a model by their ids."""
    layers = (call.operation for call in graph.calls)
    return {id(layer): layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)}


class Moments:
    """Running sums of one batch norm's input, float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Any = 0.0
        self.squares: Any = 0.0

    def see(self, layer: Any, inputs: Any) -> None:
        """Add the inputs of one call to the sums."""
        values = keras.ops.convert_to_numpy(keras.ops.cast(inputs, "float32"))
        rows = np.moveaxis(values, layer.axis, -1).reshape(-1, values.shape[layer.axis]).astype(np.float64)
        self.count += len(rows)
        self.total = self.total + rows.sum(axis=0)
        self.squares = self.squares + np.square(rows).sum(axis=0)

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of each channel."""
        mean = self.total / self.count
        return mean, np.maximum(self.squares / self.count - np.square(mean), 0.0)

    def write(self, layer: Any) -> None:
        """Give a batch norm these statistics."""
        for average, value in zip((layer.moving_mean, layer.moving_variance), self.found(), strict=True):
            average.assign(value)


def input_label_pair(validation_data: Any) -> tuple[Any, Any]:
    """The two parts of held-back data with labels; a ValueError for data of another form."""
    if not isinstance(validation_data, tuple) or len(validation_data) != 2:
        raise ValueError(
            f"labels= was given, so validation_data must be a pair (inputs, labels), got {type(validation_data).__name__}."
        )
    return validation_data[0], keras.tree.map_structure(np.asarray, validation_data[1])


def held_back_labels(samples: Samples, labels: Any) -> Any:
    """The labels of the samples held back."""
    labels = keras.tree.map_structure(np.asarray, labels)
    lengths = sorted({len(leaf) for leaf in keras.tree.flatten(labels)})
    if lengths != [samples.read]:
        raise ValueError(f"labels= holds {lengths} labels for {samples.read} samples. Give one for each.")
    return keras.tree.map_structure(lambda leaf: leaf[samples.rows], labels)


def loss_of(model: keras.Model, graph: CallGraph, samples: Samples, labels: Any) -> Callable[[], float]:
    """The compiled loss on the samples held back."""
    if not model.compiled:
        raise ValueError(f"labels= needs a loss: compile {model.name!r}, or give reference= in place of labels.")
    structure = functional_of(model).output

    def measure() -> float:
        found = keras.tree.pack_sequence_as(structure, outputs_of(model, samples.held_back, graph))
        return float(model.compute_loss(y=labels, y_pred=found, training=False))

    return measure


def distance_of(
    model: keras.Model, graph: CallGraph, samples: Samples, reference: keras.Model | None
) -> Callable[[], float] | None:
    """What measures a model without labels; None where nothing can (see `reestimate_batch_norms`)."""
    if reference is not None:
        wanted = outputs_of(reference, samples.held_back)
    elif all(_is_fresh(norm) for norm in norms_of(graph).values()):
        return lambda: _mismatch(model, graph, samples)
    else:
        quantized = _mismatch(model, graph, samples)
        with unquantized(model):
            if not _mismatch(model, graph, samples) < _UNLIKE * quantized:
                return None
            wanted = outputs_of(model, samples.held_back, graph)
    return lambda: noise(wanted, outputs_of(model, samples.held_back, graph))


def _is_fresh(norm: Any) -> bool:
    return bool(np.all(to_numpy(norm.moving_mean) == 0) and np.all(to_numpy(norm.moving_variance) == 1))


def _mismatch(model: keras.Model, graph: CallGraph, samples: Samples) -> float:
    """How far the moving statistics are from those of the samples held back, at inference.

    Mean over batch norms and channels of the divergence between two normal distributions,
    ``(v + (m - moving_mean)^2) / moving_variance - 1 - log(v / moving_variance)``, halved, epsilon added to the variances.
    """
    norms = norms_of(graph)
    totals = {key: Moments() for key in norms}

    def look(call: Call, values: dict[int, Any]) -> list[Any]:
        if (moments := totals.get(id(call.operation))) is not None:
            moments.see(call.operation, values[call.inputs[0]])
        return call.run(values)

    for batch in samples.held_back:
        graph.run(map(keras.ops.convert_to_tensor, inputs_in_order(model, batch)), look)
    found = []
    for key, norm in norms.items():
        mean, variance = totals[key].found()
        ours = to_numpy(norm.moving_variance).astype(np.float64) + norm.epsilon
        theirs, shift = variance + norm.epsilon, mean - to_numpy(norm.moving_mean)
        found.append(np.mean((theirs + np.square(shift)) / ours - 1 - np.log(theirs / ours)) / 2)
    return float(np.mean(found))
