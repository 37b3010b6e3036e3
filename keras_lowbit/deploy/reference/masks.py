"""Reference kernels of masks: comparisons, logic, and the choice between codes."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_lowbit.deploy.reference.call import NodeCall, kernel


@kernel("compare")
def compare(call: NodeCall) -> Any:
    """Each value with the number."""
    return getattr(np, call.attributes["kind"])(call.arrays[0], call.attributes["number"])


@kernel("logical_and")
def logical_and(call: NodeCall) -> Any:
    """Where both masks are true."""
    return np.logical_and(*call.arrays)


@kernel("logical_or")
def logical_or(call: NodeCall) -> Any:
    """Where one mask is true."""
    return np.logical_or(*call.arrays)


@kernel("logical_not")
def logical_not(call: NodeCall) -> Any:
    """Where the mask is false."""
    return np.logical_not(call.arrays[0])


@kernel("where")
def where(call: NodeCall) -> Any:
    """The codes of one or the other."""
    return np.where(*call.arrays)
