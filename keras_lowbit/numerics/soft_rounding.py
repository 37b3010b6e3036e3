"""Rounding that learns: rectified sigmoids between a grid's two neighbours, and the term that makes them hard."""

from typing import Any

import numpy as np
from keras import ops

Tensor = Any

# The sigmoid is stretched to [GAMMA, ZETA] and clipped, so that 0 and 1 are reached with a gradient still there.
ZETA, GAMMA = 1.1, -0.1


def up_share(logits: Tensor) -> Tensor:
    """``h(v) = clip(sigmoid(v) (zeta - gamma) + gamma, 0, 1)``: how far up a weight is rounded.

    Gradient: that of the sigmoid times 1.2 inside, 0 where h is 0 or 1. Nagel et al. 2020, arXiv:2004.10568, eq. 23.
    """
    return ops.clip(ops.sigmoid(logits) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def logits_of(share: np.ndarray) -> np.ndarray:
    """The v with ``up_share(v) = share``, for shares in [0, 1]."""
    inner = (np.asarray(share, np.float64) - GAMMA) / (ZETA - GAMMA)
    return np.log(inner / (1.0 - inner))


def softness(share: Tensor, beta: Tensor) -> Tensor:
    """``sum(1 - |2 h - 1|^beta)``: how many weights are still undecided, a scalar; eq. 24 of the paper.

    A large beta leaves shares alone that are far from 0 and 1, a small one pushes all of them there.
    """
    return ops.sum(1.0 - ops.power(ops.abs(2.0 * share - 1.0) + 1e-12, beta))


def annealed_beta(progress: Tensor, warm_up: float, first: float = 20.0, last: float = 2.0) -> Tensor:
    """beta of `softness` at a progress in [0, 1]: `first` until `warm_up`, from there along a line to `last`."""
    done = ops.clip((ops.convert_to_tensor(progress, "float32") - warm_up) / (1.0 - warm_up), 0.0, 1.0)
    return first + (last - first) * done
