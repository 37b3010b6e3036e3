"""What a change of a block's output does to the logits: squared gradients, by channel."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lowbit.convert.post_training.reconstruction.blocks import is_probability
from keras_lowbit.keras_graph.calls import Call, CallGraph, run_calls
from keras_lowbit.keras_graph.variables import to_numpy


@dataclasses.dataclass(frozen=True)
class _Fixed:
    """What the model reads and Keras does not track."""

    graph: CallGraph
    keys: tuple[int, ...]
    logits: tuple[int, ...]


class _Probes(keras.Model):
    """The graph with a zero added to each of some tensors, as a variable, so that its gradient is the tensor's."""

    def __init__(self, graph: CallGraph, keys: Sequence[int]) -> None:
        super().__init__(name="probes")
        self.fixed = _Fixed(graph, tuple(keys), tuple(_before_probability(graph, key) for key in graph.outputs))
        self.probes = [
            self.add_weight(shape=(1, *graph.tensors[key].shape[1:]), initializer="zeros", name=f"probe_{place}")
            for place, key in enumerate(keys)
        ]
        self.built = True

    def call(self, inputs: Any) -> list[Any]:
        """The logits."""
        graph, probes = self.fixed.graph, dict(zip(self.fixed.keys, self.probes, strict=True))

        def compute(call: Call, values: dict[int, Any]) -> list[Any]:
            found = zip(call.outputs, call.run(values), strict=True)
            return [value + probes[key] if key in probes else value for key, value in found]

        known = dict(zip(graph.inputs, inputs, strict=True))
        run_calls(graph.calls, [known], compute, keep=self.fixed.logits)
        return [known[key] for key in self.fixed.logits]

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, *_: Any, **__: Any) -> Any:
        """``r z``, y holds r."""
        return sum(ops.sum(ops.cast(one, "float32") * other) for one, other in zip(y_pred, y, strict=True))


def channel_weights(
    graph: CallGraph, keys: Sequence[int], samples: Sequence[np.ndarray], seed: int
) -> dict[int, np.ndarray]:
    """For each tensor, for each of its channels: ``w_c = E (d(r z) / d y_c)^2``, divided by the mean of all channels.

    Mean over samples and positions; z: the logits, r: random signs, so that w_c is the expected squared change of all
    logits together.   keys: tensors of `graph`; those without a known shape, or without an effect on the logits, are left out.
    samples: inputs in the graph's order.   Returns float32 arrays, mean 1, by key.
    """
    known = [key for key in keys if None not in graph.tensors[key].shape[1:]]
    if not known:
        return {}
    model, random = _Probes(graph, known), np.random.default_rng(seed)
    model.compile(keras.optimizers.SGD(1.0), jit_compile=False)
    totals = [np.zeros(probe.shape[-1]) for probe in model.probes]
    shapes = [tuple(z.shape) for z in model([array[:1] for array in samples])]
    for sample in range(len(samples[0])):
        one = [array[sample : sample + 1] for array in samples]
        signs = [random.choice([-1.0, 1.0], shape).astype("float32") for shape in shapes]
        model.train_on_batch(one, signs)
        for total, probe in zip(totals, model.probes, strict=True):
            total += np.square(to_numpy(probe), dtype=np.float64).reshape(-1, len(total)).mean(0)
            probe.assign(np.zeros(probe.shape))
    return {
        key: (total / total.mean()).astype(np.float32) for key, total in zip(known, totals, strict=True) if total.any()
    }


def _before_probability(graph: CallGraph, key: int) -> int:
    call = graph.producers.get(key)
    return call.inputs[0] if call is not None and is_probability(call) else key
