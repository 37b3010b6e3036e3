"""FreezeRanges: stops activation ranges from following the data."""

from typing import Any

import keras
import numpy as np

from keras_lowbit.layers.find import freeze_ranges, hosts


class FreezeRanges(keras.callbacks.Callback):
    """Stops the activation ranges from following the data, from one epoch on.

    Near the end of a training the weights move little; ranges that still drift then only add noise.
    epoch: the first epoch (counted from 0) with frozen ranges. Raises ValueError in that epoch if a range has
    seen no data, and at once for a model without quantized activations.

    >>> history = ternary.fit(images[:16], labels[:16], epochs=2, callbacks=[klb.callbacks.FreezeRanges(epoch=1)], verbose=0)
    """

    def __init__(self, epoch: int) -> None:
        super().__init__()
        if isinstance(epoch, bool) or not isinstance(epoch, int | np.integer) or epoch < 0:
            raise ValueError(f"FreezeRanges needs the number of an epoch, 0 or more, got epoch={epoch!r}.")
        self.epoch = epoch

    def set_model(self, model: Any) -> None:
        """Check that there is something to freeze."""
        super().set_model(model)
        if not any("frozen" in host.quantizer.state_specs((), ()) for _, host in hosts(model)):
            raise ValueError(
                f"Model {model.name!r} has no activation range that follows the data, so there is nothing to freeze. Leave "
                "FreezeRanges out, or quantize activations to 8 bits."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Freeze from `self.epoch` on."""
        if epoch >= self.epoch:
            freeze_ranges(self.model)
