"""Rectified sigmoids and the softness term, against NumPy float64 written from the paper's equations."""

import numpy as np
import pytest
from keras import ops

from keras_lowbit.numerics.soft_rounding import annealed_beta, logits_of, softness, up_share


def paper_share(v):
    return np.clip(1.2 / (1 + np.exp(-np.asarray(v, np.float64))) - 0.1, 0, 1)


def test_share_is_the_papers_and_reaches_both_ends():
    v = np.linspace(-6, 6, 49).astype("float32")
    share = ops.convert_to_numpy(up_share(v))
    np.testing.assert_allclose(share, paper_share(v), atol=1e-6)
    assert share.min() == 0.0
    assert share.max() == 1.0


def test_logits_are_the_inverse_of_the_share():
    share = np.linspace(0, 1, 21)
    np.testing.assert_allclose(paper_share(logits_of(share)), share, atol=1e-12)


@pytest.mark.parametrize("beta", [20.0, 7.0, 2.0])
def test_softness_counts_the_undecided(beta):
    share = np.array([0.0, 0.25, 0.5, 0.9, 1.0], "float32")
    wanted = (1 - np.abs(2 * share.astype(np.float64) - 1) ** beta).sum()
    assert float(softness(ops.convert_to_tensor(share), beta)) == pytest.approx(wanted, abs=1e-5)
    assert float(softness(np.array([0.0, 1.0, 1.0], "float32"), beta)) == pytest.approx(0, abs=1e-5)


def test_beta_waits_then_falls_along_a_line():
    found = [float(annealed_beta(progress, 0.2)) for progress in (0.0, 0.2, 0.6, 1.0)]
    assert found == pytest.approx([20, 20, 11, 2])
