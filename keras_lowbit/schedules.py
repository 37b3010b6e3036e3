"""Schedules: pure functions of the step, plain Python. `keras_lowbit.callbacks` only applies them."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real


def exponential(stages: int = 4) -> tuple[float, ...]:
    """Ratios ``1 - 2^-k`` for k = 1, 2, ..., and 1 in the last stage: each stage halves what is still float.

    >>> klb.schedules.exponential()
    (0.5, 0.75, 0.875, 1.0)

    stages: how many, 1 or more. Returns one ratio in [0, 1] per stage.
    Dong et al. 2017, arXiv:1708.01001: the default there, and the best of the three.
    """
    _require_stages("exponential", stages)
    return (*(1.0 - 2.0**-k for k in range(1, stages)), 1.0)


def average(stages: int = 5) -> tuple[float, ...]:
    """Ratios ``k / stages`` for k = 1 to `stages`: uniform growth.

    >>> klb.schedules.average()
    (0.2, 0.4, 0.6, 0.8, 1.0)

    stages: how many, 1 or more. Returns one ratio in [0, 1] per stage.
    Dong et al. 2017 name this schedule; the number of its stages is our choice.
    """
    _require_stages("average", stages)
    return tuple(k / stages for k in range(1, stages + 1))


def fine_tune() -> tuple[float, ...]:
    """One stage at ratio 1: a trained float model is quantized at once and tuned.

    Returns one ratio.
    Dong et al. 2017 compare with such a run. Its exact recipe (length, learning rate) is not recoverable from
    what is public, so only the ratio is given here.

    >>> klb.schedules.fine_tune()
    (1.0,)
    """
    return (1.0,)


_NAMED: dict[str, Callable[[], tuple[float, ...]]] = {
    "average": average,
    "exponential": exponential,
    "fine_tune": fine_tune,
}


def ratios(schedule: str | Sequence[float]) -> tuple[float, ...]:
    """The ratio of each stage, from a name or from the numbers themselves.

    schedule: "average", "exponential", "fine_tune", or ratios in [0, 1] that grow strictly and end with 1.
    Equal neighbours would be one stage: a stage is recognised by its ratio when a killed training resumes.
    Returns one ratio for each stage.
    Raises ValueError for an unknown name (the message lists the known ones) and for other numbers.
    Raises TypeError for what is neither a name nor a sequence.

    >>> klb.schedules.ratios("exponential")
    (0.5, 0.75, 0.875, 1.0)
    """
    if isinstance(schedule, str):
        if schedule not in _NAMED:
            raise ValueError(f"Unknown ratio schedule {schedule!r}. Known names: {', '.join(_NAMED)}.")
        return _NAMED[schedule]()
    if not isinstance(schedule, Sequence) or not all(isinstance(value, Real) for value in schedule):
        raise TypeError(
            f"A ratio schedule is a name ({', '.join(_NAMED)}) or a sequence of numbers such as (0.5, 0.75, 1.0), "
            f"got {schedule!r}."
        )
    return _checked(tuple(float(value) for value in schedule))


def _checked(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values or not all(0.0 <= value <= 1.0 for value in values):
        raise ValueError(
            f"Ratios are fractions of the units in [0, 1], at least one of them, got {values}. For 50 % write 0.5."
        )
    if any(after <= before for before, after in itertools.pairwise(values)):
        raise ValueError(
            f"Ratios must grow from stage to stage, got {values}. "
            "Sort them, and drop repeated ones: to stay longer at a ratio give the stage more epochs."
        )
    if values[-1] != 1.0:
        raise ValueError(
            f"The last ratio must be 1 (everything quantized), got {values[-1]} in {values}. "
            "Append 1.0: a model that is still partly float cannot be deployed."
        )
    return values


def stage_at(epoch: int, stages: int, epochs: int) -> int:
    """Index of the stage that `epoch` belongs to, from 0 to ``stages - 1``.

    Stage k starts at epoch ``floor(k * epochs / stages)``. So every stage has at least one epoch, and where
    the division leaves a rest the last stage, whose weights are deployed, is never a shorter one.

    >>> [klb.schedules.stage_at(epoch, stages=4, epochs=10) for epoch in range(10)]
    [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]

    epoch: counted from 0; `epochs` and later stay in the last stage.   stages: how many.   epochs: in total.
    Returns an int.
    Raises ValueError if there are fewer epochs than stages.
    """
    _require_stages("stage_at", stages)
    if epoch < 0:
        raise ValueError(f"Epochs are counted from 0, got epoch={epoch}.")
    if epochs < stages:
        raise ValueError(
            f"{stages} stages need at least {stages} epochs, got epochs={epochs}. "
            f"Train longer, or give fewer stages, for example ratios {exponential(max(1, math.floor(epochs)))}."
        )
    # floor(k * epochs / stages) <= epoch  is the same as  k * epochs < (epoch + 1) * stages.
    return min(((epoch + 1) * stages - 1) // epochs, stages - 1)


# Accumulated portions by bits: Zhou et al. 2017, arXiv:1702.03044, ResNet-18 (at 5 bits also VGG-16 and ResNet-50).
_PORTIONS: dict[int, tuple[float, ...]] = {
    5: (0.5, 0.75, 0.875, 1.0),
    4: (0.3, 0.5, 0.8, 0.9, 0.95, 1.0),
    3: (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0),
    2: (0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 1.0),
}


def portions(schedule: int | Sequence[float]) -> tuple[float, ...]:
    """The accumulated portions of INQ, from the bits of the weights (the paper's table) or the numbers themselves.

    >>> klb.schedules.portions(5)
    (0.5, 0.75, 0.875, 1.0)

    schedule: 5, 4, 3 or 2, or fractions that grow strictly and end with 1.
    Returns one portion for each step, the last 1.
    Raises ValueError for other bits and numbers, TypeError for anything else.
    """
    if isinstance(schedule, int):
        if schedule not in _PORTIONS:
            raise ValueError(
                f"No portions are published for {schedule} bits; there are some for {sorted(_PORTIONS)}. Give the numbers, "
                "for example (0.5, 0.75, 0.875, 1.0)."
            )
        return _PORTIONS[schedule]
    given: object = schedule
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(
            f"Portions are the bits of the paper's table ({sorted(_PORTIONS)}) or numbers such as (0.5, 0.75, 1.0), "
            f"got {schedule!r}."
        )
    return ratios(tuple(schedule))


def step_at(epoch: int, steps: int, epochs: int) -> int:
    """Index of the INQ step that `epoch` belongs to: the last epoch is the last step, the others share the rest evenly.

    After the last partition only biases and batch norms are left to train, so it gets one epoch.

    >>> [klb.schedules.step_at(epoch, steps=4, epochs=7) for epoch in range(7)]
    [0, 0, 1, 1, 2, 2, 3]

    epoch: counted from 0; `epochs` and later stay in the last step.   steps: how many.   epochs: in total.
    Returns an int, from 0 to ``steps - 1``.
    Raises ValueError if there are fewer epochs than steps, and for a negative epoch.
    """
    _require_stages("step_at", steps)
    if epoch < 0:
        raise ValueError(f"Epochs are counted from 0, got epoch={epoch}.")
    if epochs < steps:
        raise ValueError(
            f"{steps} steps need at least {steps} epochs, got epochs={epochs}. Train longer, or give fewer."
        )
    if epoch >= epochs - 1 or steps == 1:
        return steps - 1
    return stage_at(epoch, steps - 1, epochs - 1)


def cosine_restarts(
    step: int, learning_rate: float = 1e-3, period: int = 400, fraction: float = 0.5, decay: float = 0.0
) -> float:
    """``learning_rate * exp(-decay * step) * |cos(pi * fraction * d / period)| + 1e-7``, ``d = step mod period``.

    learning_rate: where every cycle starts, above 0.   decay: of the cycles' start, for each step; 0 or more.
    step: counted from 0.   period: steps in a cycle.   fraction: how far of a full cosine a cycle goes: 0.5 falls to 0,
    0.25 to 0.71 (the published code of FAT, with period 400 and decay 1e-4).   Returns the learning rate of that step.
    Raises ValueError for numbers that are not positive.   Loshchilov and Hutter 2017, arXiv:1608.03983 (restarts).

    >>> [round(klb.schedules.cosine_restarts(step), 6) for step in (0, 399, 400)]
    [0.001, 4e-06, 0.001]
    """
    if not (learning_rate > 0 and fraction > 0 and decay >= 0) or isinstance(period, bool) or period < 1 or step < 0:
        raise ValueError(
            "cosine_restarts needs learning_rate and fraction above 0, decay and step 0 or more, period 1 or more; got "
            f"learning_rate={learning_rate}, fraction={fraction}, decay={decay}, step={step}, period={period}."
        )
    cosine = abs(math.cos(math.pi * fraction * (step % period) / period))
    return learning_rate * math.exp(-decay * step) * cosine + 1e-7


def _require_stages(owner: str, stages: int) -> None:
    if isinstance(stages, bool) or not isinstance(stages, int) or stages < 1:
        raise ValueError(f"{owner} needs a whole number of stages, 1 or more, got stages={stages!r}.")
