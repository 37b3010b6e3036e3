"""Weighted random choice without replacement, as ranks: no loop, one graph for every count."""

from typing import Any

import numpy as np
from keras import ops

Tensor = Any

EPSILON = 1e-7  # keeps 1 / error finite; Dong et al. 2017 use the same


def relative_error(real: Tensor, on_grid: Tensor, axes: tuple[int, ...]) -> Tensor:
    """``e = ||w - q||_1 / ||w||_1`` over `axes` (kept as size 1); 0 where the norm of w is 0.

    With no axes each scalar is its own unit. Dong et al. 2017, arXiv:1708.01001, section 3.2.
    """
    magnitude, difference = ops.abs(real), ops.abs(real - on_grid)
    if axes:
        magnitude = ops.sum(magnitude, axis=axes, keepdims=True)
        difference = ops.sum(difference, axis=axes, keepdims=True)
    safe = ops.where(magnitude > 0, magnitude, ops.ones_like(magnitude))
    return ops.where(magnitude > 0, difference / safe, ops.zeros_like(difference))


def log_weights(score: Tensor, probability: str) -> Tensor:
    """Unnormalised log probabilities of the units from their `score` >= 0, a vector.

    constant ``p = 1/m``;  linear ``p ~ f``;  softmax ``p ~ exp(f)``;  sigmoid ``p ~ 1 / (1 + exp(-f))``.
    A unit of probability 0 gets -inf. Dong et al. 2017, section 3.3.
    """
    if probability == "constant":
        return ops.zeros_like(score)
    if probability == "linear":
        return ops.where(score > 0, ops.log(ops.maximum(score, 1e-38)), ops.full_like(score, -float("inf")))
    if probability == "softmax":
        # Shifted by the maximum: scores reach 1e7, where float32 would swallow the noise added later.
        return score - ops.max(score)
    return -ops.softplus(-score)


def gumbel(uniform: Tensor) -> Tensor:
    """``-log(-log u)`` for u in [0, 1), kept finite at both ends."""
    largest = 1.0 - 2.0**-24
    return -ops.log(-ops.log(ops.clip(uniform, float(np.finfo(np.float32).tiny), largest)))


def ranks_descending(keys: Tensor) -> Tensor:
    """Rank of every element of a vector, 0 for the largest; ties by position, so ranks never repeat."""
    order = ops.argsort(-keys)
    return ops.argsort(order)


def draw_ranks(log_weight: Tensor, uniform: Tensor) -> Tensor:
    """Order in which a roulette without replacement would draw the units: 0 for the first drawn.

    Adding Gumbel noise to log weights and sorting has exactly the law of sequential weighted sampling
    without replacement (Gumbel-top-k; Vieira 2014, Kool et al. 2019, arXiv:1903.06059).
    """
    return ranks_descending(log_weight + gumbel(uniform))


def quantized_count(ratio: Tensor, units: int) -> Tensor:
    """``N_q = ceil(ratio * units)`` as a float tensor; the float32 error of `ratio` does not round up.

    The official SQ code keeps ``int((1 - r) m)`` float channels, which is the same number.
    """
    ratio = ops.cast(ratio, "float32")
    slack = min(max(1e-3, 2e-7 * units), 0.5)
    count = ops.clip(ops.ceil(ratio * units - slack), 0.0, float(units))
    return ops.where(ratio < 1.0, count, float(units))


def partition_sizes(portion: float, size: int, zeros: int, frozen: int) -> int:
    """How many more weights to freeze: ``round(portion * (size - zeros)) - (frozen - zeros)``, never below 0.

    size: of the layer.   zeros: weights pruned before the first partition, which are frozen and not counted.
    Zhou et al. 2017, arXiv:1702.03044, section 2.2.
    """
    return max(0, round(portion * (size - zeros)) - (frozen - zeros))


def pick_new(
    magnitude: np.ndarray, frozen: np.ndarray, count: int, partition: str, rng: np.random.Generator
) -> np.ndarray:
    """Which free weights to freeze next (booleans in the shape of `magnitude`): exactly `count` of them.

    partition: "magnitude" takes the largest, ties by position; "random" draws uniformly from `rng`.
    """
    free = np.flatnonzero(~frozen)
    if partition == "random":
        taken = rng.permutation(free)[:count]
    else:
        taken = free[np.argsort(-magnitude.reshape(-1)[free], kind="stable")[:count]]
    chosen = np.zeros(magnitude.size, bool)
    chosen[taken] = True
    return chosen.reshape(magnitude.shape)
