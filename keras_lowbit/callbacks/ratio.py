"""RatioSchedule: the stages of SQ."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_lowbit import schedules
from keras_lowbit.callbacks.stages import StageCallback
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.find import ratio_hosts, set_ratio


class RatioSchedule(StageCallback):
    """Raises the ratio of every `Stochastic` quantizer stage by stage and restarts the optimizer each time.

    schedule: "exponential" (0.5, 0.75, 0.875, 1), "average", "fine_tune", or growing ratios that end with 1.
    epochs: of all stages together, by default those of `fit`; stage k starts at ``floor(k epochs / stages)``.
    reset_optimizer, learning_rate: see `StageCallback`. Logs ``ratio`` and ``flip_rate``.
    Raises ValueError for a model without stochastic quantizers and for fewer epochs than stages.

    Dong et al. 2017, arXiv:1708.01001. Their runs load the weights of the previous stage into a new solver,
    which is what the restart reproduces.

    >>> history = ternary.fit(images[:16], labels[:16], epochs=4, callbacks=[klb.callbacks.RatioSchedule()], verbose=0)
    >>> history.history["ratio"]
    [0.5, 0.75, 0.875, 1.0]
    """

    log_name = "ratio"

    def __init__(
        self,
        schedule: str | Sequence[float] = "exponential",
        epochs: int | None = None,
        reset_optimizer: bool = True,
        learning_rate: float | None = None,
    ) -> None:
        super().__init__(schedules.ratios(schedule), epochs, reset_optimizer, learning_rate)

    def set_model(self, model: Any) -> None:
        """Check that `model` has ratios."""
        super().set_model(model)
        ratio_hosts(model)

    def stage(self, epoch: int, epochs: int) -> int:
        """Stages of equal length."""
        return schedules.stage_at(epoch, len(self.values), epochs)

    def reached(self, value: float) -> bool:
        """Whether every quantizer has that ratio."""
        return all(np.float32(to_numpy(host.state["ratio"])) == np.float32(value) for host in ratio_hosts(self.model))

    def apply(self, value: float) -> None:
        """Set the ratio of every quantizer."""
        set_ratio(self.model, value)
