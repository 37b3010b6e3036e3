"""CosineRestarts: a cosine learning rate with warm restarts that also empty the optimizer's slots."""

from typing import Any

import keras

from keras_lowbit import schedules
from keras_lowbit.callbacks.optimizer import innermost, plain_learning_rate, reset_optimizer


class CosineRestarts(keras.callbacks.Callback):
    """Sets the learning rate of every step to `schedules.cosine_restarts`; at each restart Adam's slots return to 0.

    learning_rate: where every cycle starts.   period: steps in a cycle.   fraction, decay: as in the schedule; the
    published FAT code has ``CosineRestarts(1e-3, 400, fraction=0.25, decay=1e-4)``.
    Logs ``learning_rate``. Raises ValueError for an optimizer that follows a schedule of its own.
    """

    def __init__(
        self, learning_rate: float = 1e-3, period: int = 400, fraction: float = 0.5, decay: float = 0.0
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "learning_rate": learning_rate,
            "period": period,
            "fraction": fraction,
            "decay": decay,
        }
        self.period = period
        self.step = 0  # steps taken, restarts included
        schedules.cosine_restarts(0, **self.arguments)  # the arguments are checked here

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuse an optimizer whose learning rate cannot be set."""
        if plain_learning_rate(self.model.optimizer) is None:
            raise ValueError(
                "CosineRestarts sets the learning rate, but the optimizer follows a schedule. Compile with a plain number."
            )

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the rate; restart where a cycle is over."""
        if self.step and self.step % self.period == 0:
            reset_optimizer(self.model)
        innermost(self.model.optimizer).learning_rate = schedules.cosine_restarts(self.step, **self.arguments)
        self.step += 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Log the rate of the last step."""
        if logs is not None and self.step:
            logs["learning_rate"] = schedules.cosine_restarts(self.step - 1, **self.arguments)
