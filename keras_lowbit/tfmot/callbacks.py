"""The callbacks of this library on tf_keras' base class: the same objects, which get the model as a `WrappedModel`."""

from collections.abc import Sequence
from typing import Any

import tf_keras

from keras_lowbit import callbacks
from keras_lowbit.quantizers import Incremental, Quantizer, Stochastic
from keras_lowbit.tfmot.wrappers import WrappedModel


class LowbitCallback(tf_keras.callbacks.Callback):
    """Hands every call of tf_keras' training loop to a callback of `keras_lowbit.callbacks`.

    callback: reads and sets quantizer state and optimizer alone, as those of this library do; it gets a `WrappedModel`.
    Raises TypeError for a Keras 3 model.

    >>> isinstance(klt.callbacks.FreezeRanges(epoch=3), klt.callbacks.LowbitCallback)
    True
    """

    def __init__(self, callback: Any) -> None:
        super().__init__()
        self.callback = callback

    def set_params(self, params: dict[str, Any]) -> None:
        """Hand on the number of epochs and the rest."""
        super().set_params(params)
        self.callback.set_params(params)

    def set_model(self, model: Any) -> None:
        """Hand on the `WrappedModel` of `model`; checks that there is something to do."""
        super().set_model(model)
        self.callback.set_model(WrappedModel(model, f"keras_lowbit.tfmot.callbacks.{type(self).__name__}"))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check the optimizer."""
        self.callback.on_train_begin(logs)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set what changes with the step."""
        self.callback.on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the step."""
        self.callback.on_train_batch_end(batch, logs)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin a stage where one begins."""
        self.callback.on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add to the logs."""
        self.callback.on_epoch_end(epoch, logs)


class RatioSchedule(LowbitCallback):
    """`keras_lowbit.callbacks.RatioSchedule`, the stages of SQ, for tf_keras; the same arguments.

    schedule: and the others, as there.

    >>> stages = klt.callbacks.RatioSchedule("average", epochs=10)
    """

    def __init__(self, schedule: str | Sequence[float] = "exponential", *args: Any, **kwargs: Any) -> None:
        super().__init__(callbacks.RatioSchedule(schedule, *args, **kwargs))


class PartitionSchedule(LowbitCallback):
    """`keras_lowbit.callbacks.PartitionSchedule`, the steps of INQ, for tf_keras; the same arguments.

    portions: and the others, as there.

    >>> steps = klt.callbacks.PartitionSchedule((0.5, 0.75, 1.0), epochs=6)
    """

    def __init__(self, portions: int | Sequence[float] = 5, *args: Any, **kwargs: Any) -> None:
        super().__init__(callbacks.PartitionSchedule(portions, *args, **kwargs))


class FreezeRanges(LowbitCallback):
    """`keras_lowbit.callbacks.FreezeRanges`, ranges that stop following the data, for tf_keras; the same argument.

    epoch: the first, counted from 0, with frozen ranges.

    >>> still = klt.callbacks.FreezeRanges(epoch=3)
    """

    def __init__(self, epoch: int) -> None:
        super().__init__(callbacks.FreezeRanges(epoch))


class CosineRestarts(LowbitCallback):
    """`keras_lowbit.callbacks.CosineRestarts`, FAT's learning rate, for tf_keras; the same arguments.

    learning_rate: and the others, as there.

    >>> rates = klt.callbacks.CosineRestarts(1e-3, period=100)
    """

    def __init__(self, learning_rate: float = 1e-3, *args: Any, **kwargs: Any) -> None:
        super().__init__(callbacks.CosineRestarts(learning_rate, *args, **kwargs))


def for_model(
    model: Any,
    epochs: int,
    *,
    ratio: str | Sequence[float] = "exponential",
    portions: int | Sequence[float] | None = None,
    **arguments: Any,
) -> list[LowbitCallback]:
    """The callbacks that the quantizers in `model` need to train over `epochs` epochs; may be empty.

    model: tf_keras model that `quantize_apply` made.   ratio: the schedule of its `Stochastic` kernels.
    portions: those of its `Incremental` kernels, by default the paper's for the fewest bits among them (5 bits: 4 steps).
    arguments: reset_optimizer, learning_rate of both schedules.
    Returns a list of callbacks.
    Raises TypeError for a Keras 3 model and ValueError for fewer epochs than stages.

    >>> [type(callback).__name__ for callback in klt.callbacks.for_model(quantized, epochs=8)]
    ['RatioSchedule']
    """
    quantizers = [kernel.kernel_quantizer for kernel in WrappedModel(model, "callbacks.for_model").kernel_layers()]
    made: list[LowbitCallback] = []
    if any(isinstance(quantizer, Stochastic) for quantizer in quantizers):
        made.append(RatioSchedule(ratio, epochs=epochs, **arguments))
    incremental = [quantizer for quantizer in quantizers if isinstance(quantizer, Incremental)]
    if incremental:
        steps = _published(incremental) if portions is None else portions
        made.append(PartitionSchedule(steps, epochs=epochs, **arguments))
    return made


def _published(incremental: Sequence[Quantizer]) -> int:
    """The bits whose published portions have most steps: those of the coarsest grid, in 2 to 5."""
    return int(min(max(min(quantizer.bits for quantizer in incremental), 2), 5))
