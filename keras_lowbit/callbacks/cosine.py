"""CosineRestarts: a cosine learning rate with warm restarts that also empty the optimizer's slots."""

from typing import Any

import keras

from keras_lowbit import schedules
from keras_lowbit.callbacks.logs import add_before_all
from keras_lowbit.callbacks.optimizer import innermost, plain_learning_rate, reset_optimizer


class CosineRestarts(keras.callbacks.Callback):
    """Sets the learning rate of every step to `schedules.cosine_restarts`; at each restart Adam's slots return to 0.

    The step follows from epoch and batch, so a resumed fit takes up its place, and a second call of `fit` does with
    ``initial_epoch``; where the data do not say how many batches an epoch has, steps are counted from the callback's first.
    learning_rate: where every cycle starts.   period: steps in a cycle.   fraction, decay: as in the schedule; the
    published FAT code has ``CosineRestarts(1e-3, 400, fraction=0.25, decay=1e-4)``.
    With ``steps_per_execution`` above 1 rate and restart come with the first step of an execution.
    Logs ``learning_rate``. Raises ValueError for an optimizer that follows a schedule of its own.

    >>> rates = klb.callbacks.CosineRestarts(1e-3, period=100)
    >>> history = model.fit(images[:16], labels[:16], callbacks=[rates], verbose=0)
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
        self._first = 0  # step of the epoch's first batch
        self._begun = -1  # the step before, or the first of several that were executed together
        self._beginning = 0
        schedules.cosine_restarts(0, **self.arguments)  # the arguments are checked here

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuse an optimizer whose learning rate cannot be set; come before whatever reads the logs."""
        if plain_learning_rate(self.model.optimizer) is None:
            raise ValueError(
                "CosineRestarts sets the learning rate, but the optimizer follows a schedule. Compile with a plain number."
            )
        add_before_all(self.on_epoch_end)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Find the epoch's first step, and the one before."""
        steps, together = (self.params or {}).get("steps"), self._together()
        self.step = epoch * steps if steps else self.step
        self._first = self.step
        self._begun = self.step - (1 + (steps - 1) % together if steps else together)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the rate; restart where a cycle is over."""
        step = self._first + batch
        if step and step // self.period != self._begun // self.period:
            reset_optimizer(self.model)
        innermost(self.model.optimizer).learning_rate = schedules.cosine_restarts(step, **self.arguments)
        self._beginning = step

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count what was taken: Keras also begins a batch that the data then do not have."""
        self._begun, self.step = self._beginning, self._first + batch + 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Log the rate of the last step."""
        if logs is not None and self.step:
            logs["learning_rate"] = schedules.cosine_restarts(self._begun, **self.arguments)

    def _together(self) -> int:
        """Steps between two calls of `on_train_batch_begin`."""
        return int(getattr(self.model, "steps_per_execution", 1))
