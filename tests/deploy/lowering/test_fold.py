"""Folding: what a batch norm does to codes, scales and biases, against plain float64 arithmetic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_lowbit.deploy.graph import Range
from keras_lowbit.deploy.lowering.folding import Affine, affine_codes, channel_scales, fold, identity

SOURCE, OUT = Range(0.05, 3), Range(0.1, -20)


def random_layer(seed, low=-1, high=1, channels=6):
    rng = np.random.default_rng(seed)
    codes = rng.integers(low, high + 1, (3, 3, 4, channels)).astype(np.int8)
    scale = rng.uniform(0.01, 0.2, (1, 1, 1, channels)).astype(np.float32)
    return codes, scale, Affine(rng.normal(0, 1, channels), rng.normal(0, 2, channels))


@given(st.integers(0, 10_000), st.sampled_from([1, 7, 127]))
def test_folded_layer_is_the_layer_and_its_affine(seed, high):
    """``scale' * codes'`` is ``factor * scale * codes`` to float32 accuracy, the bias to half its step."""
    codes, scale, affine = random_layer(seed, -high, high)
    folded = fold(codes, scale, (-1,), affine, SOURCE, OUT, "layer")
    wanted = affine.factor * scale.astype(np.float64) * codes
    keep = np.setdiff1d(np.arange(6), folded.flushed)
    np.testing.assert_allclose((folded.scales * folded.codes)[..., keep], wanted[..., keep], rtol=3e-7)
    step = np.float64(SOURCE.scale) * folded.scales
    assert (np.abs(folded.bias * step - affine.offset) <= 0.5 * step * (1 + 1e-5)).all()
    assert (folded.scales > 0).all()


@given(st.integers(0, 10_000))
def test_ternary_codes_stay_multiples_with_the_sign_of_the_factor(seed):
    codes, scale, affine = random_layer(seed)
    folded = fold(codes, scale, (-1,), affine, SOURCE, OUT, "layer")
    np.testing.assert_array_equal(folded.codes, codes * folded.factors)
    np.testing.assert_array_equal(np.sign(folded.factors), np.where(affine.factor < 0, -1, 1))


def test_a_factor_of_zero_gives_zero_codes_and_is_recorded():
    codes, scale, _ = random_layer(0)
    codes[..., 2] = 0  # a filter of zeros has nothing to flush
    affine = Affine(np.array([0.0, 1, 0, 1, 0, 1]), np.arange(6.0))
    folded = fold(codes, scale, (-1,), affine, SOURCE, OUT, "layer")
    assert folded.flushed == (0, 4)
    assert not folded.codes[..., [0, 2, 4]].any()
    np.testing.assert_allclose(folded.bias * SOURCE.scale * folded.scales, np.arange(6), atol=OUT.scale / 20)


def test_a_zero_scale_exports_as_zero_codes_with_a_positive_scale():
    codes = np.zeros((3, 3, 4, 2), np.int8)
    folded = fold(codes, np.zeros((1, 1, 1, 2), np.float32), (-1,), identity(2), SOURCE, OUT, "layer")
    assert (folded.scales > 0).all()
    assert not folded.codes.any()
    assert folded.flushed == ()


def test_two_affines_in_a_row():
    first, second = Affine(np.array([2.0]), np.array([1.0])), Affine(np.array([-3.0]), np.array([0.5]))
    both = first.then(second)
    assert (both.factor[0], both.offset[0]) == (-6.0, -2.5)


@pytest.mark.parametrize("offset", [1e9, -1e9])
def test_bias_that_does_not_fit_is_refused_with_its_values(offset):
    codes, scale, _ = random_layer(1)
    affine = Affine(np.ones(6), np.array([0, 0, 0, offset, 0, 0]))
    with pytest.raises(ValueError, match=r"(?s)bias of channel 3 of 'layer' is -?1e\+09.*int32.*skip="):
        fold(codes, scale, (-1,), affine, SOURCE, OUT, "layer")


def test_bias_beyond_int32_is_no_matter_where_the_weights_cannot_be_seen():
    codes, scale, _ = random_layer(1)
    affine = Affine(np.array([1, 1, 1, 1e-9, 1, 1]), np.full(6, 5.0))
    folded = fold(codes, scale, (-1,), affine, SOURCE, OUT, "layer")
    assert folded.flushed == (3,)
    assert folded.bias[3] * SOURCE.scale * folded.scales[3] == pytest.approx(5.0, abs=OUT.scale / 100)


def test_scales_must_be_one_for_each_channel():
    codes = np.ones((8, 3), np.int8)
    np.testing.assert_array_equal(channel_scales(codes, np.float32(0.5), (-1,), "d"), [0.5] * 3)
    with pytest.raises(ValueError, match=r"(?s)'d' have scales of shape \(4, 3\).*several for one output channel"):
        channel_scales(codes, np.ones((4, 3), np.float32), (-1,), "d")


@given(st.floats(1e-4, 1e4), st.floats(-1e3, 1e3))
def test_affine_codes_keep_the_bias_within_a_fraction_of_a_step(factor, offset):
    """127 is taken unless its grid is coarse; then the choice among 96 grids is far better than half a step of one."""
    affine = Affine(np.array([factor]), np.array([offset]))
    [code] = affine_codes(affine, SOURCE, OUT)
    assert 32 <= code <= 127

    def error(candidate):
        step = SOURCE.scale * factor / candidate
        return abs(round(offset / step) * step - offset) / OUT.scale

    assert error(int(code)) <= error(127) + 1e-12
    if error(127) < 0.02:
        assert code == 127
