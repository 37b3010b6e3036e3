"""What every staged method shares: a value per stage, restarts between stages, codes watched for flips."""

from typing import Any

import keras
import numpy as np

from keras_lowbit.arguments import check_whole
from keras_lowbit.callbacks.codes import flip_rate, weight_codes
from keras_lowbit.callbacks.logs import add_before_all
from keras_lowbit.callbacks.optimizer import innermost, plain_learning_rate, reset_optimizer


class StageCallback(keras.callbacks.Callback):
    """Base of the schedules: begins a stage in the first epoch whose wanted value is not the model's saved one.

    Subclasses say which value an epoch wants (`wanted`), whether the model has it (`reached`) and how to give it to the
    model (`apply`). Then, in `on_epoch_begin` and nowhere else, so that a resumed training keeps its optimizer:

    * the optimizer's slots (momentum and the like) return to their initial values and its step count to 0, which
      restarts a `keras.optimizers.schedules.LearningRateSchedule`;
    * a plain learning rate returns to `learning_rate`, by default to what it was when `fit` was called.

    The loss scale of mixed precision is kept. Moving averages of weights (``use_ema``) restart from the weights of the
    first step.

    values: one per stage.   epochs: of all stages together, by default those of `fit`.
    reset_optimizer: False leaves slots, step count and learning rate alone; `learning_rate` is still applied.
    learning_rate: where a plain learning rate restarts from. Give it if another callback lowers the rate and `fit` may
    be called again on the same model object.
    Adds to the logs of each epoch the value under `log_name`, and ``flip_rate``, the fraction of weight codes (over all
    quantized kernels) that the epoch changed. Callbacks that read the logs, such as `TensorBoard`, find them in any order.
    Raises ValueError at the start of `fit` for fewer epochs than stages, and for a `learning_rate` where the optimizer follows
    a schedule.

    >>> isinstance(klb.callbacks.RatioSchedule("average"), klb.callbacks.StageCallback)
    True
    """

    log_name = "stage"

    def __init__(
        self,
        values: tuple[float, ...],
        epochs: int | None = None,
        reset_optimizer: bool = True,
        learning_rate: float | None = None,
    ) -> None:
        super().__init__()
        self.values = values
        self.epochs = epochs
        self.reset_optimizer = reset_optimizer
        self.learning_rate = learning_rate
        if epochs is not None:
            self.stage(0, check_whole(type(self).__name__, "epochs", epochs))
        self._first_learning_rate: float | None = None
        self._codes: list[np.ndarray] = []

    def stage(self, epoch: int, epochs: int) -> int:
        """Index of the stage of an epoch; ValueError for fewer epochs than stages."""
        raise NotImplementedError

    def reached(self, value: float) -> bool:
        """Whether the model has that stage's value already."""
        raise NotImplementedError

    def apply(self, value: float) -> None:
        """Give the model the value of a stage that begins."""
        raise NotImplementedError

    def set_model(self, model: Any) -> None:
        """Remember the learning rate `fit` starts with."""
        super().set_model(model)
        if self.reset_optimizer or self.learning_rate is not None:
            self._first_learning_rate = plain_learning_rate(model.optimizer)
        if self.learning_rate is not None and self._first_learning_rate is None:
            raise ValueError(
                f"{type(self).__name__} got learning_rate={self.learning_rate}, but the "
                f"{type(model.optimizer).__name__} follows a learning-rate schedule, which restarts by itself. Leave "
                "learning_rate out."
            )

    def wanted(self, epoch: int) -> float:
        """The value that belongs to `epoch` (counted from 0)."""
        return self.values[self.stage(epoch, self.epochs if self.epochs is not None else self.params["epochs"])]

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Come before whatever reads the logs."""
        add_before_all(self.on_epoch_end)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin a stage if the model has not reached the wanted value; remember the weight codes."""
        if not self.reached(self.wanted(epoch)):
            self.apply(self.wanted(epoch))
            self._restart()
        self._codes = weight_codes(self.model)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the value and ``flip_rate`` to the logs, once an epoch."""
        if logs is not None and self._codes:
            logs[self.log_name] = self.wanted(epoch)
            logs["flip_rate"] = flip_rate(self._codes, weight_codes(self.model))
        self._codes = []

    def _restart(self) -> None:
        if self.reset_optimizer:
            reset_optimizer(self.model)
        rate = self.learning_rate
        if rate is None and self.reset_optimizer:
            rate = self._first_learning_rate
        if rate is not None:
            innermost(self.model.optimizer).learning_rate = rate
