"""PartitionSchedule: the steps of INQ."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_lowbit import schedules
from keras_lowbit.arguments import check_whole
from keras_lowbit.callbacks.stages import StageCallback
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.base import QuantizedLayer, kernel_layers
from keras_lowbit.quantizers import Incremental


class PartitionSchedule(StageCallback):
    """Freezes a growing portion of every `Incremental` kernel on its grid, and restarts the optimizer each time.

    portions: accumulated, growing, ending with 1, such as (0.5, 0.75, 0.875, 1), or the bits of the paper's table (5, 4,
    3, 2). For pruned networks the authors advise finer steps: (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, ..., 0.9, 0.95, 1).
    Portions are of the weights that are not 0 when the first step begins.
    epochs: of all steps together, by default those of `fit`. The last step gets the last epoch alone, since nothing but
    biases and batch norms is left to train (`ReestimateBatchNorms` then takes their statistics anew); the others share
    the rest evenly. Further epochs of `fit` belong to the last step: where the learning rate decays over the length of a
    step, give it as many as the others have, or training ends at nearly the full rate.
    seed: of partition="random"; each layer and step draws from its own stream, so a resumed fit draws the same.
    reset_optimizer, learning_rate: see `StageCallback`. Logs ``portion`` and ``flip_rate``.
    Raises ValueError for a model without incremental quantizers and for fewer epochs than steps.
    Zhou et al. 2017, arXiv:1702.03044, Algorithm 1; table 8 for the portions. Differs: frozen weights stay frozen, and
    the grid is that of the first step (the official code recomputes both).

    >>> inq, report = klb.quantize_model(model, "inq-5")
    >>> inq.compile("sgd", "sparse_categorical_crossentropy")
    >>> history = inq.fit(images[:16], labels[:16], epochs=4, callbacks=[klb.callbacks.PartitionSchedule(5)], verbose=0)
    >>> history.history["portion"]
    [0.5, 0.75, 0.875, 1.0]
    """

    log_name = "portion"

    def __init__(
        self,
        portions: int | Sequence[float] = 5,
        epochs: int | None = None,
        reset_optimizer: bool = True,
        learning_rate: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(schedules.portions(portions), epochs, reset_optimizer, learning_rate)
        check_whole("PartitionSchedule", "seed", seed, low=0)
        self.seed = seed

    def set_model(self, model: Any) -> None:
        """Check that `model` has something to freeze."""
        super().set_model(model)
        incremental_layers(model)

    def stage(self, epoch: int, epochs: int) -> int:
        """Steps of equal length, but the last, which is one epoch."""
        return schedules.step_at(epoch, len(self.values), epochs)

    def reached(self, value: float) -> bool:
        """Whether every layer has frozen that portion, or more."""
        return all(_has(layer, value) for layer in incremental_layers(self.model))

    def apply(self, value: float) -> None:
        """Freeze up to that portion of every kernel that has less; the kernels take the frozen values."""
        step = self.values.index(value)
        for index, layer in enumerate(incremental_layers(self.model)):
            if not _has(layer, value):
                freeze_portion(layer, value, np.random.default_rng([self.seed, step, index]))


def _has(layer: Any, portion: float) -> bool:
    return bool(to_numpy(layer.kernel_host.state["portion"]) >= np.float32(portion))


def freeze_portion(layer: QuantizedLayer, portion: float, rng: np.random.Generator) -> None:
    """One partition of one layer: its state moves on, and its kernel takes the frozen values.

    layer: one whose kernel has an `Incremental` quantizer.   portion: of its weights that are frozen afterwards, 0 to 1.
    rng: what draws, for partition="random".

    >>> inq, report = klb.quantize_model(model, "inq-5")
    >>> klb.callbacks.freeze_portion(inq.get_layer("first"), 0.5, np.random.default_rng(0))
    """
    host: Any = layer.kernel_host
    state = {name: to_numpy(variable) for name, variable in host.state.items()}
    kernel = to_numpy(layer.kernel).astype(np.float32)
    state = host.quantizer.partitioned(kernel, state, portion, host.filter_axes, rng)
    for name, value in state.items():
        host.state[name].assign(value)
    layer.kernel.assign(np.where(state["mask"] > 0, state["codes"] * state["scale"], kernel))


def incremental_layers(model: Any) -> list[Any]:
    """The built layers of `model` with an `Incremental` kernel; a ValueError if there are none."""
    layers = kernel_layers(model)
    found = [layer for layer in layers if isinstance(layer.kernel_quantizer, Incremental) and layer.built]
    if not found:
        raise ValueError(
            f"Model {model.name!r} has no built layer with an incremental quantizer, so there is nothing to freeze. "
            'Quantize it with an INQ recipe such as "inq-5", or give its layers kernel_quantizer=Incremental(PowerOfTwo(5)).'
        )
    return found
