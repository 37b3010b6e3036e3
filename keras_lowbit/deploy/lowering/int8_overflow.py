"""Codes that do not fit int8: those of 5-bit powers of two reach from 1 to 128, those of 4-bit clusters without
int8_exact up to 7 * 127.

`convert.weights.kernel_codes` divides every filter by the power of two its codes share, which loses nothing; a filter
that holds both ends of the grid is still too wide by one. What then happens to it is a policy, and never silent.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_lowbit.numerics.thresholds import reduced_axes
from keras_lowbit.quantizers import Quantized

POLICIES = ("least_error", "saturate", "drop_lowest", "error")
DEFAULT = "least_error"
_LIMIT = 127
_EXACT = "Train with int8_exact=True, as in PowerOfTwo(5, int8_exact=True), for a file that holds every weight."


@dataclasses.dataclass(frozen=True)
class Overflow:
    """What a policy changed in the weights of one layer so that they fit int8.

    weights, filters: of the layer.   filters_saturated, filters_halved: filters under each policy.
    saturated: weights beyond 127 codes that became 127 (128 -> 127 is 0.8 % of the weight).
    rounded: weights of coarser filters that moved, by one code of the old grid (1 -> 2).
    squared_error, squared_norm: of all the layer's weights, in real units.
    """

    weights: int
    filters: int
    filters_saturated: int
    filters_halved: int
    saturated: int
    rounded: int
    squared_error: float
    squared_norm: float

    @property
    def altered(self) -> int:
        """Weights that are not what was trained."""
        return self.saturated + self.rounded

    @property
    def relative_error(self) -> float:
        """``|stored - trained| / |trained|`` over the layer's weights, Euclidean norms."""
        return math.sqrt(self.squared_error / self.squared_norm) if self.squared_norm else 0.0

    def __str__(self) -> str:
        return (
            f"{self.altered:,} of {self.weights:,} weights altered to fit int8 ({self.saturated:,} saturated in "
            f"{self.filters_saturated:,} and {self.rounded:,} rounded in {self.filters_halved:,} of {self.filters:,} filters), "
            f"relative error {100 * self.relative_error:.3g} %"
        )


def check_policy(policy: str) -> str:
    """The policy; a ValueError that lists the known ones for another."""
    if policy not in POLICIES:
        raise ValueError(f"overflow={policy!r}; choose one of {', '.join(map(repr, POLICIES))}.")
    return policy


def policy_of(metadata: Mapping[str, Any] | None) -> str:
    """The policy a file was written with, from its metadata; the default where it altered nothing or says nothing."""
    noted = (metadata or {}).get("overflow", {})
    policy = noted.get("policy", DEFAULT) if isinstance(noted, Mapping) else DEFAULT
    return policy if policy in POLICIES else DEFAULT


def fit_int8(
    weights: Quantized, filter_axes: tuple[int, ...], policy: str, name: str
) -> tuple[Quantized, Overflow | None]:
    """Codes that fit int8, one scale for each filter, and what that changed; None if nothing did.

    Filters that fit stay as they are. Of the others, policy:
      "saturate"     codes beyond +-127 become +-127.
      "drop_lowest"  the filter's step doubles until it fits: codes are halved, half away from zero, so that the lowest
                     octave goes up (1 -> 2 in old codes). Down to 0 would be the same error, |1 - 2| = |1 - 0|; up is what
                     eq. 4 of INQ does with a value on the border, and keeps the sign.
      "least_error"  for each filter the one of the two with the smaller squared error. Each altered weight of a 5-bit
                     filter is off by one code either way, so that is the one that alters fewer; saturation when equal.
      "error"        a ValueError.
    weights: as `kernel_codes` gives them, int8 or int16.   name: of the layer, for the message.
    """
    check_policy(policy)
    codes = np.asarray(weights.codes)
    if codes.dtype == np.int8:
        return weights, None
    if policy == "error":
        raise ValueError(
            f"{name!r} has filters whose codes reach from 1 to {int(np.abs(codes).max())}: they do not fit int8. {_EXACT} "
            "Or let export alter the fewest weights, and report them: overflow='least_error'."
        )
    codes, axes = codes.astype(np.int64), reduced_axes(codes.ndim, filter_axes)
    step = _coarser(np.abs(codes).max(axis=axes, keepdims=True))
    saturated, halved = np.clip(codes, -_LIMIT, _LIMIT), np.sign(codes) * ((np.abs(codes) + step // 2) // step)
    coarse = (step > 1) & _takes_coarser(policy, codes, saturated, halved * step, axes)
    fitted = np.where(coarse, halved, saturated)
    scale = np.broadcast_to(np.asarray(weights.scale, np.float32), step.shape)
    found = _measure(codes, fitted * np.where(coarse, step, 1), scale, coarse, step > 1)
    return Quantized(fitted.astype(np.int8), np.where(coarse, scale * step, scale).astype(np.float32)), found


def _coarser(largest: np.ndarray) -> np.ndarray:
    """The smallest power of two by which codes up to `largest` must be divided, rounding half up, to fit."""
    step = np.ones_like(largest)
    while (wide := (largest + step // 2) // step > _LIMIT).any():
        step = np.where(wide, 2 * step, step)
    return step


def _takes_coarser(
    policy: str, codes: np.ndarray, saturated: np.ndarray, coarser: np.ndarray, axes: tuple[int, ...]
) -> Any:
    if policy != "least_error":
        return policy == "drop_lowest"
    losses = [np.square(codes - other).sum(axis=axes, keepdims=True) for other in (saturated, coarser)]
    return losses[1] < losses[0]


def _measure(
    before: np.ndarray, after: np.ndarray, scale: np.ndarray, coarse: np.ndarray, wide: np.ndarray
) -> Overflow:
    moved, step = before != after, scale.astype(np.float64)
    return Overflow(
        weights=before.size,
        filters=coarse.size,
        filters_saturated=int((wide & ~coarse).sum()),
        filters_halved=int(coarse.sum()),
        saturated=int((moved & ~coarse).sum()),
        rounded=int((moved & coarse).sum()),
        squared_error=float(np.square((after - before) * step).sum()),
        squared_norm=float(np.square(before * step).sum()),
    )


def total(found: Mapping[str, Overflow]) -> Overflow:
    """The sum over layers."""
    rows = [dataclasses.astuple(overflow) for overflow in found.values()]
    return Overflow(*(sum(column) for column in zip(*rows, strict=True)))


def sentence(found: Mapping[str, Overflow]) -> str:
    """One sentence about all layers, and how to avoid it."""
    layers = f"{len(found)} layer{'s' if len(found) > 1 else ''} with codes beyond 127"
    return f"{layers}: {total(found)}. {_EXACT}"


def warn(found: Mapping[str, Overflow]) -> None:
    """A UserWarning with `sentence`, if any layer was altered."""
    if found:
        warnings.warn(sentence(found), stacklevel=3)
