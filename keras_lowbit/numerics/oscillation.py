"""Integer weights that flip back and forth while they train: how often, around which code, and which stand still."""

from typing import Any, NamedTuple

from keras import ops

Tensor = Any


class Oscillation(NamedTuple):
    """What is known of every weight of a kernel; float32 tensors of its shape.

    codes: at the last step.   direction: of the last change, -1, 0 (none yet) or 1.   frequency: moving average of turns.
    average: moving average of the codes; of a frozen weight the code where it stands.   frozen: 0 or 1.
    """

    codes: Tensor
    direction: Tensor
    frequency: Tensor
    average: Tensor
    frozen: Tensor

    @classmethod
    def start(cls, codes: Tensor) -> "Oscillation":
        """Before the first step."""
        codes = ops.cast(codes, "float32")
        return cls(codes, ops.zeros_like(codes), ops.zeros_like(codes), codes, ops.zeros_like(codes))

    def after(self, codes: Tensor, momentum: float) -> "Oscillation":
        """One more step.

        A weight turns where its code changes against the direction of its last change: ``o = 1``, else 0;
        ``f = m o + (1 - m) f``, ``average = m code + (1 - m) average``.   Nagel et al. 2022, arXiv:2203.11086, section 3.
        """
        codes = ops.cast(codes, "float32")
        change = ops.sign(codes - self.codes)
        turned = ops.cast(change * self.direction < 0, "float32")
        average = momentum * codes + (1.0 - momentum) * self.average
        return Oscillation(
            codes,
            ops.where(change != 0, change, self.direction),
            momentum * turned + (1.0 - momentum) * self.frequency,
            ops.where(self.frozen > 0, self.average, average),
            self.frozen,
        )

    def freezing(self, threshold: float) -> "Oscillation":
        """Weights that turn more often than that stand still from now on, at the code where they mostly were (section 4.3)."""
        frozen = ops.cast(ops.logical_or(self.frequency > threshold, self.frozen > 0), "float32")
        return self._replace(
            frozen=frozen, average=ops.where(frozen > self.frozen, ops.round(self.average), self.average)
        )


def damped(kernel: Tensor, on_grid: Tensor, step: Tensor, share: Tensor) -> Tensor:
    """Weights moved towards their values on the grid by a share of the way; those beyond the grid's ends stay."""
    way = on_grid - kernel
    return ops.where(ops.abs(way) <= 0.5 * step, kernel + share * way, kernel)
