"""Callbacks: they apply a schedule at epoch boundaries, through variables the quantizers declared.

A callback here derives what it does from the epoch and from saved variables, in `on_epoch_begin`. So it works
before or after `keras.callbacks.BackupAndRestore` in the list, and a killed training resumes where it was.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_lowbit import schedules
from keras_lowbit.layers.base import QuantizedLayer
from keras_lowbit.layers.host import find_layers, freeze_ranges, hosts, ratio_hosts, set_ratio, to_numpy


class RatioSchedule(keras.callbacks.Callback):
    """Raises the ratio of every `Stochastic` quantizer stage by stage and restarts the optimizer each time.

    A stage begins in the first epoch whose wanted ratio differs from the model's saved one; then

    * the ratio of every stochastic quantizer is set;
    * the optimizer's slots (momentum and the like) return to their initial values and its step count to 0,
      which restarts a `keras.optimizers.schedules.LearningRateSchedule`;
    * a plain learning rate returns to `learning_rate`, by default to what it was when `fit` was called.

    In every other epoch nothing is touched, so a training resumed inside a stage keeps its optimizer. The
    loss scale of mixed precision is kept. Moving averages of weights (``use_ema``) restart from the weights
    of the first step.

    schedule: "exponential" (0.5, 0.75, 0.875, 1), "average", "fine_tune", or growing ratios that end with 1.
    epochs: of all stages together, by default those of `fit`; stage k starts at ``floor(k epochs / stages)``.
    reset_optimizer: False leaves slots, step count and learning rate alone; `learning_rate` is still applied.
    learning_rate: where a plain learning rate restarts from. Give it if another callback lowers the rate and
    `fit` may be called again on the same model object.

    Adds to the logs of each epoch: ``ratio``, and ``flip_rate``, the fraction of weight codes (over all
    quantized kernels) that the epoch changed. List it before callbacks that read the logs, such as
    `CSVLogger`.
    Raises ValueError for a model without stochastic quantizers and for fewer epochs than stages.

    Dong et al. 2017, arXiv:1708.01001. Their runs load the weights of the previous stage into a new solver,
    which is what the restart reproduces.
    """

    def __init__(
        self,
        schedule: str | Sequence[float] = "exponential",
        epochs: int | None = None,
        reset_optimizer: bool = True,
        learning_rate: float | None = None,
    ) -> None:
        super().__init__()
        self.ratios = schedules.ratios(schedule)
        self.epochs = epochs
        self.reset_optimizer = reset_optimizer
        self.learning_rate = learning_rate
        if epochs is not None:
            schedules.stage_at(0, len(self.ratios), epochs)
        self._first_learning_rate: float | None = None
        self._codes: list[np.ndarray] = []

    def set_model(self, model: Any) -> None:
        """Check that `model` can be staged and remember its learning rate."""
        super().set_model(model)
        ratio_hosts(model)
        if self.reset_optimizer or self.learning_rate is not None:
            self._first_learning_rate = plain_learning_rate(model.optimizer)
        if self.learning_rate is not None and self._first_learning_rate is None:
            raise ValueError(
                f"RatioSchedule got learning_rate={self.learning_rate}, but the "
                f"{type(model.optimizer).__name__} follows a learning-rate schedule, which restarts by "
                "itself. Leave learning_rate out."
            )

    def wanted_ratio(self, epoch: int) -> float:
        """The ratio that belongs to `epoch` (counted from 0)."""
        epochs = self.epochs if self.epochs is not None else self.params["epochs"]
        return self.ratios[schedules.stage_at(epoch, len(self.ratios), epochs)]

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin a stage if the saved ratios are not the wanted one; remember the weight codes."""
        wanted = self.wanted_ratio(epoch)
        if any(_scalar(host.state["ratio"]) != np.float32(wanted) for host in ratio_hosts(self.model)):
            self._begin_stage(wanted)
        self._codes = weight_codes(self.model)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add ``ratio`` and ``flip_rate`` to the logs."""
        if logs is not None:
            logs["ratio"] = self.wanted_ratio(epoch)
            logs["flip_rate"] = flip_rate(self._codes, weight_codes(self.model))
        self._codes = []

    def _begin_stage(self, ratio: float) -> None:
        set_ratio(self.model, ratio)
        if self.reset_optimizer:
            reset_optimizer(self.model)
        restart = self.learning_rate
        if restart is None and self.reset_optimizer:
            restart = self._first_learning_rate
        if restart is not None:
            _innermost(self.model.optimizer).learning_rate = restart


class FreezeRanges(keras.callbacks.Callback):
    """Stops the activation ranges from following the data, from one epoch on.

    Near the end of a training the weights move little; ranges that still drift then only add noise.
    epoch: the first epoch (counted from 0) with frozen ranges. Raises ValueError in that epoch if a range has
    seen no data, and at once for a model without quantized activations.
    """

    def __init__(self, epoch: int) -> None:
        super().__init__()
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise ValueError(f"FreezeRanges needs the number of an epoch, 0 or more, got epoch={epoch!r}.")
        self.epoch = epoch

    def set_model(self, model: Any) -> None:
        """Check that there is something to freeze."""
        super().set_model(model)
        if not any("frozen" in host.quantizer.state_specs((), ()) for _, host in hosts(model)):
            raise ValueError(
                f"Model {model.name!r} has no activation range that follows the data, so there is nothing to "
                "freeze. Leave FreezeRanges out, or quantize activations to 8 bits."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Freeze from `self.epoch` on."""
        if epoch >= self.epoch:
            freeze_ranges(self.model)


def weight_codes(model: Any) -> list[np.ndarray]:
    """The int8 codes of every quantized kernel of `model`, in the order of its layers and their layout."""
    return [_codes(layer) for layer in find_layers(model, QuantizedLayer) if layer.kernel_host is not None]


def _codes(layer: Any) -> np.ndarray:
    codes = to_numpy(layer.kernel_host.encode(layer.kernel).codes)
    with np.errstate(invalid="ignore"):  # NaN weights have no code; the loss will say so
        return codes.astype(np.int8)


def flip_rate(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> float:
    """Fraction (0..1) of elements that differ between two lists of equally shaped arrays; 0 if empty."""
    total = sum(codes.size for codes in before)
    changed = sum(int(np.count_nonzero(old != new)) for old, new in zip(before, after, strict=True))
    return changed / total if total else 0.0


def plain_learning_rate(optimizer: Any) -> float | None:
    """The learning rate of `optimizer` if it is a number, None if it is a schedule or a function."""
    rate = _innermost(optimizer).get_config().get("learning_rate")
    return float(rate) if isinstance(rate, (int, float)) else None


def reset_optimizer(model: Any) -> None:
    """Return the slots of the model's optimizer to their initial values and its step count to 0.

    The initial values are those of a new optimizer with the same configuration: zeros for momentum, but 0.1
    for Adagrad's accumulators and 1 for Nadam's product. Of a LossScaleOptimizer the inner one is reset.
    Moving averages of weights are left in place: at step count 0 Keras overwrites them with the weights, and
    until then they may hold the model's own weights (`SwapEMAWeights`). The learning rate is left alone.
    An optimizer that was never used is left alone. Raises ValueError for one that cannot be built again.
    """
    optimizer = _innermost(model.optimizer)
    if not optimizer.built:
        return
    strategy = getattr(model, "distribute_strategy", None)
    with contextlib.nullcontext() if strategy is None else strategy.scope():
        fresh = _new_like(optimizer, model.trainable_variables)
    averages = "_average" if optimizer.use_ema else None
    for old, new in zip(optimizer.variables, fresh.variables, strict=True):
        if averages is None or not old.name.endswith(averages):
            old.assign(to_numpy(new))


def _new_like(optimizer: Any, variables: list[Any]) -> Any:
    config = optimizer.get_config()
    if plain_learning_rate(optimizer) is None:
        # Any schedule will do, and this one needs no registration to be built from a configuration.
        config["learning_rate"] = keras.optimizers.schedules.ExponentialDecay(1.0, 1, 1.0)
    kind = type(optimizer).__name__
    try:
        fresh = type(optimizer).from_config(config)
        fresh.build(variables)
    except Exception as error:
        raise ValueError(
            f"The {kind} could not be built again from its get_config(), which the reset at the start of a "
            "stage needs. Give it a complete get_config(), or use RatioSchedule(..., reset_optimizer=False)."
        ) from error
    if [tuple(slot.shape) for slot in fresh.variables] != [tuple(slot.shape) for slot in optimizer.variables]:
        raise ValueError(
            f"The {kind} holds {len(optimizer.variables)} variables, a new one for this model would hold "
            f"{len(fresh.variables)}: `trainable` was changed after compile(). Call compile() again before "
            "fit()."
        )
    return fresh


def _innermost(optimizer: Any) -> Any:
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return _innermost(optimizer.inner_optimizer)
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        raise ValueError(
            "RatioSchedule cannot restart a MultiOptimizer: Keras gives it no learning rate of its own. "
            "Compile the model with one optimizer, or use RatioSchedule(..., reset_optimizer=False)."
        )
    return optimizer


def _scalar(variable: Any) -> np.float32:
    return np.float32(to_numpy(variable))
