"""Clustered weights against a NumPy float64 oracle with plain loops, brute force, and the symmetries."""

import json

import numpy as np
import pytest
import tensorflow as tf

from keras_lowbit import quantizers
from keras_lowbit.numerics import clusters
from keras_lowbit.numerics.dynamic_fixed_point import shared_step
from keras_lowbit.quantizers import Clustered, Stochastic, Ternary, Uniform
from tests.support import cluster_oracle as oracle

GOLDEN = np.float32([0.9, -0.5, 0.1, -0.05, 0.3, -1.2, 0, 0.7])
SHAPES = [(3, 3, 10, 3), (1, 1, 7, 4), (12, 5), (3, 5, 2), (2, 3, 1, 2)]
MODES = ("rms", "rms_literal", "mse")
every_mode = pytest.mark.parametrize("mode", MODES)
every_group = pytest.mark.parametrize("groups", ["kernels", "weights"])


def kernel(shape, seed=0):
    """Filters and input channels of different sizes, as trained kernels have."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * rng.uniform(0.2, 3, shape[-2:])).astype("float32")


def on_grid(weights, *arguments, axes=(-1,), **options):
    return np.asarray(Clustered(Ternary(), *arguments, **options)(weights, {}, axes), np.float64)


def error(weights, real):
    return float(np.sum((weights.astype(np.float64) - real) ** 2))


@every_mode
@every_group
@pytest.mark.parametrize("size", [1, 3, 4, 64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_and_scales_equal_the_oracle(mode, groups, size, shape):
    weights = kernel(shape)
    wanted, scales = oracle.ternary(weights, size, mode, groups)
    real = on_grid(weights, size, mode, groups, scale_bits=None)
    np.testing.assert_array_equal(np.sign(real), wanted)
    for where, scale in zip(oracle.clusters(shape, size, groups), scales, strict=True):
        np.testing.assert_allclose(np.abs(real[where]), scale * np.abs(wanted[where]), rtol=2e-6)


@every_group
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("bits", [4, 8])
def test_scales_are_rounded_with_one_exponent_for_each_filter_or_the_layer(groups, granularity, bits):
    weights = kernel((3, 3, 10, 4), seed=3) * np.float32([1, 1e-4, 0, 30])
    quantizer = Clustered(Ternary(), 4, "rms", groups, scale_bits=bits, granularity=granularity)
    found = quantizer.structure(weights, {}, (-1,))
    codes, scales = oracle.ternary(weights, 4, "rms", groups)
    scales = scales.reshape(4, -1)
    if granularity == "channel":
        wanted = [oracle.rounded(row, bits) for row in scales]
    else:
        whole, shared = oracle.rounded(scales.ravel(), bits)
        wanted = [(row, shared) for row in whole.reshape(4, -1)]
    np.testing.assert_array_equal(found.exponent, [power for _, power in wanted])
    np.testing.assert_array_equal(found.alphas.reshape(-1, 4).T, _tap_major([row for row, _ in wanted], groups))
    np.testing.assert_array_equal(found.pattern, codes)
    if granularity == "tensor":
        assert not found.alphas[..., 1].any()  # pitfall: one exponent for all starves small filters


def _tap_major(rows, groups):
    """The oracle lists (group, position), the library (position, group)."""
    rows = np.array(rows)
    return rows if groups == "kernels" else rows.reshape(len(rows), 3, 9).transpose(0, 2, 1).reshape(len(rows), -1)


@pytest.mark.parametrize(
    ("shape", "axes"), [((3, 3, 10, 4), (-1,)), ((3, 2, 5, 7), (2,)), ((3, 3, 5, 2), (2, 3)), ((9, 4), (-1,))]
)
@pytest.mark.parametrize("base", [Ternary(), Uniform(4)], ids=["ternary", "4-bit"])
def test_structure_multiplies_out_to_the_exported_codes(shape, axes, base):
    weights = kernel(shape, seed=5)
    quantizer = Clustered(base, 4)
    encoded = quantizer.encode(weights, {}, axes)
    codes = np.asarray(encoded.codes)
    found = quantizer.structure(weights, {}, axes)
    inputs = {(2,): -1}.get(axes, -2 if axes == (-1,) else None)
    rows, channels = np.moveaxis(found.pattern, -1 if axes != (2,) else 2, -1), found.alphas
    if inputs is None:
        rows, channels = found.pattern.reshape(3, 3, 1, 10), found.alphas
    elif axes == (2,):
        rows = np.moveaxis(found.pattern, 2, -1)
    spread = np.repeat(channels, 4, axis=0)[: rows.shape[-2]]
    product = rows.astype(int) * spread
    wanted = codes.reshape(product.shape) if axes != (2,) else np.moveaxis(codes, 2, -1)
    np.testing.assert_array_equal(product, wanted)
    assert np.abs(codes).max() <= 127
    np.testing.assert_array_equal(np.ldexp(1.0, found.exponent), np.asarray(encoded.scale).ravel())
    assert (found.pattern.dtype, found.alphas.dtype, found.exponent.dtype) == (np.int8, np.int8, np.int32)


def test_a_sum_with_one_multiplication_a_cluster_equals_the_int8_product():
    weights, rng = kernel((23, 6), seed=6), np.random.default_rng(6)
    quantizer = Clustered(Ternary(), 4)
    found, codes = quantizer.structure(weights, {}, (-1,)), np.asarray(quantizer.encode(weights, {}, (-1,)).codes)
    inputs = rng.integers(-128, 128, (9, 23))
    sums = [inputs[:, s : s + 4] @ found.pattern[s : s + 4].astype(int) for s in range(0, 23, 4)]
    one_a_cluster = sum(part * scale for part, scale in zip(sums, found.alphas.astype(int), strict=True))
    np.testing.assert_array_equal(one_a_cluster, inputs @ codes.astype(int))
    assert quantizer.multiplications((23, 6), (-1,)) == 6


def test_golden_vector_of_algorithm_2():
    errors = [found[1] for found in oracle.slice_errors(GOLDEN)]
    np.testing.assert_allclose(errors, (1.6525, 0.8877, 0.4807, 0.3763, 0.5215, 0.8720, 1.2, 1.5219), atol=5e-5)
    assert float(clusters.slice_rms(np.abs(GOLDEN)[None])[0]) == pytest.approx(0.8645808, abs=1e-7)
    assert float(clusters.optimal_fit(np.abs(GOLDEN).reshape(1, 1, 1, 8))[1].numpy().item()) == pytest.approx(0.825)


@pytest.mark.parametrize("seed", range(4))
def test_optimal_is_as_good_as_every_pattern(seed):
    weights = kernel((2, 2, 3, 4), seed)[:, :1]  # clusters of up to 2 * 1 * 3 weights
    real = on_grid(weights, 3, "mse", scale_bits=None)
    for where in oracle.clusters(weights.shape, 3):
        assert error(weights[where], real[where]) == pytest.approx(oracle.best_pattern_error(weights[where]), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_optimal_beats_the_other_modes_and_smaller_clusters_beat_larger_ones(shape):
    weights = kernel(shape, seed=8)
    of = {
        (mode, size): error(weights, on_grid(weights, size, mode, scale_bits=None))
        for mode in MODES
        for size in (1, 2, 4, 8)
    }
    for size in (1, 2, 4, 8):
        assert of["mse", size] <= of["rms", size] * (1 + 1e-6)
        assert of["mse", size] <= of["rms_literal", size] * (1 + 1e-6)
    for small, large in ((1, 2), (2, 4), (4, 8)):
        assert of["mse", small] <= of["mse", large] * (1 + 1e-6)


def test_the_root_mean_square_is_above_the_mean_and_the_mean_fits_better():
    weights = kernel((3, 3, 8, 4), seed=9)
    real = on_grid(weights, 4, "rms", scale_bits=None)
    for where in oracle.clusters(weights.shape, 4):
        kept = real[where] != 0
        mean = np.abs(weights[where][kept]).mean()
        assert error(weights[where], np.sign(real[where]) * mean) <= error(weights[where], real[where]) * (1 + 1e-6)
    slices = np.abs(weights).reshape(9, -1).T
    for row, rms in zip(slices, np.asarray(clusters.slice_rms(slices)), strict=True):
        kept = np.sort(row)[::-1]
        means = np.cumsum(kept) / np.arange(1, 10)
        squares = np.sqrt(np.cumsum(kept**2) / np.arange(1, 10))
        assert rms >= means[np.argmin(np.abs(squares - rms))] * (1 - 1e-6)


def test_the_literal_threshold_makes_zeros_of_equal_weights():
    weights = np.full((3, 3, 4, 1), 0.5, np.float32)
    assert not on_grid(weights, 4, "rms_literal").any()
    np.testing.assert_array_equal(on_grid(weights, 4, "rms"), weights)


def test_clusters_of_all_input_channels_are_filters():
    weights = kernel((3, 3, 6, 5), seed=10)
    real = on_grid(weights, 99, "mse", scale_bits=None)
    np.testing.assert_allclose(real, np.asarray(Ternary(calibration="mse")(weights, {}, (-1,))), rtol=1e-6)


@every_mode
def test_single_1x1_slices_are_exact_before_their_scales_are_rounded(mode):
    weights = kernel((1, 1, 9, 4), seed=11)
    real = on_grid(weights, 1, mode, scale_bits=None)
    np.testing.assert_array_equal(real, 0 * weights if mode == "rms_literal" else weights)


@every_mode
@every_group
def test_sign_scale_and_permutation_symmetries(mode, groups):
    weights, quantizer = kernel((3, 3, 8, 3), seed=12), Clustered(Ternary(), 4, mode, groups)
    found = quantizer.structure(weights, {}, (-1,))
    minus = quantizer.structure(-weights, {}, (-1,))
    np.testing.assert_array_equal(minus.pattern, -found.pattern)
    np.testing.assert_array_equal(minus.alphas, found.alphas)
    larger = quantizer.structure(weights * np.float32(2.0**9), {}, (-1,))
    np.testing.assert_array_equal(larger.exponent, found.exponent + 9)
    np.testing.assert_array_equal(larger.pattern, found.pattern)
    np.testing.assert_array_equal(larger.alphas, found.alphas)
    order = np.array([2, 0, 3, 1, 7, 6, 5, 4])  # within the clusters
    permuted = quantizer.structure(weights[:, :, order], {}, (-1,))
    np.testing.assert_array_equal(permuted.pattern, found.pattern[:, :, order])
    np.testing.assert_array_equal(permuted.alphas, found.alphas)


def test_many_slices_are_searched_with_the_same_result_as_few():
    weights = np.abs(kernel((4, 5, 40), seed=13))
    edges = np.sort(np.random.default_rng(13).uniform(-0.1, 4, (4, 5, 20)).astype("float32"))[..., ::-1].copy()
    edges[0, 0, 0] = weights[0, 0].max()  # not above itself
    for one, other in zip(clusters._above_each(weights, edges), clusters._above_sorted(weights, edges), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    wide = kernel((1, 1, 40, 3), seed=14)
    wanted, _ = oracle.ternary(wide, 40, "rms")
    np.testing.assert_array_equal(np.sign(on_grid(wide, 40, "rms")), wanted)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("shape", "size"), [((3, 3, 6, 3), 4), ((1, 1, 10, 4), 4), ((7, 4), 1), ((5, 3), 9)])
def test_few_bit_codes_times_scales_fit_int8_and_come_close_to_the_best_that_do(bits, shape, size):
    weights, limit = kernel(shape, seed=15), 2 ** (bits - 1) - 1
    quantizer = Clustered(Uniform(bits), size)
    encoded, found = quantizer.encode(weights, {}, (-1,)), quantizer.structure(weights, {}, (-1,))
    assert np.abs(found.pattern).max() <= limit
    assert np.abs(np.asarray(encoded.codes)).max() <= 127
    best = oracle.best_int8_error(weights, size, limit)
    norm = float(np.sum(weights.astype(np.float64) ** 2))
    got = error(weights, np.asarray(encoded.real))
    # A scan of 11 + limit scales and two exponents against 127 and six.
    assert best * (1 - 1e-6) <= got <= 1.1 * best + 1e-4 * norm


def test_without_the_int8_limit_products_are_larger_and_the_fit_is_the_scan():
    weights = kernel((3, 3, 8, 4), seed=16)
    free = Clustered(Uniform(4), 4, int8_exact=False)
    assert np.abs(np.asarray(free.encode(weights, {}, (-1,)).codes)).max() > 127
    real = np.asarray(Clustered(Uniform(4), 4, scale_bits=None)(weights, {}, (-1,)))
    for where in oracle.clusters(weights.shape, 4):
        group = weights[where].astype(np.float64)
        levels = [7 / ratio for ratio in np.arange(1.0, 0.44, -0.05)] + list(range(1, 7))
        tries = [np.abs(group).max() / level for level in levels]
        best = min(error(weights[where], np.clip(np.round(group / s), -7, 7) * s) for s in tries)
        assert error(weights[where], real[where]) == pytest.approx(best, rel=1e-4)


def test_measured_errors_of_gaussian_weights():
    """Relative squared errors as measured once for the design, 3x3 and 1x1 with N = 4 and 64."""
    rng = np.random.default_rng(0)
    table = {"rms_literal": (0.448, 0.230, 0.471), "rms": (0.192, 0.102, 0.198), "mse": (0.181, 0.101, 0.189)}
    for column, (side, size) in enumerate(((3, 4), (1, 4), (3, 64))):
        weights = rng.normal(size=(side, side, 128, 64)).astype("float32")
        for mode, values in table.items():
            found = error(weights, on_grid(weights, size, mode)) / error(weights, 0)
            assert found == pytest.approx(values[column], abs=0.008)


@pytest.mark.parametrize("base", [Ternary(), Uniform(4)], ids=["ternary", "4-bit"])
@every_mode
def test_a_nan_weight_shows_in_its_whole_filter_and_nowhere_else(base, mode):
    weights = kernel((9, 3))
    weights[2, 1] = np.nan
    real = np.asarray(Clustered(base, 4, mode)(weights, {}, (-1,)))
    assert np.isnan(real[:, 1]).all()
    assert np.isfinite(real[:, [0, 2]]).all()


def test_zeros_stay_zeros():
    weights = np.zeros((3, 3, 5, 2), np.float32)
    for base in (Ternary(), Uniform(4)):
        assert not np.asarray(Clustered(base, 4)(weights, {}, (-1,))).any()
        assert not Clustered(base, 4).structure(weights, {}, (-1,)).alphas.any()


@pytest.mark.parametrize(
    "quantizer", [Clustered(), Clustered(calibration="mse", groups="weights"), Clustered(Uniform(4))]
)
@pytest.mark.parametrize("jit", [False, True])
def test_a_graph_computes_the_bits_of_eager_mode(quantizer, jit):
    weights = kernel((3, 3, 10, 4), seed=17)
    graph = tf.function(lambda values: quantizer(values, {}, (-1,)), jit_compile=jit)
    np.testing.assert_array_equal(graph(weights), quantizer.encode(weights, {}, (-1,)).real)


def test_gradients_pass_straight_through():
    weights = tf.Variable(kernel((3, 3, 6, 4)))
    upstream = kernel((3, 3, 6, 4), seed=1)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(Clustered()(weights, {}, (-1,)) * upstream)
    np.testing.assert_array_equal(tape.gradient(value, weights), upstream)


@pytest.mark.parametrize(
    "quantizer",
    [Clustered(), Clustered(Uniform(4), 64, groups="weights", granularity="tensor"), Clustered(scale_bits=None)],
)
def test_json_round_trip(quantizer):
    assert quantizers.deserialize(json.loads(json.dumps(quantizers.serialize(quantizer)))) == quantizer


def test_sizes_bits_and_multiplications():
    shape = (3, 3, 10, 8)
    assert (Clustered().bits, Clustered(Uniform(4)).bits) == (2, 4)
    assert Clustered().scale_bytes(shape, (-1,)) == 3 * 8 + 8
    assert Clustered(granularity="tensor", groups="weights").scale_bytes(shape, (-1,)) == 9 * 3 * 8 + 1
    assert Clustered().multiplications(shape, (-1,)) == 3
    assert Clustered(groups="weights").multiplications(shape, (-1,)) == 27
    assert Clustered(Uniform(4)).multiplications(shape, (-1,)) == 90
    assert Clustered(cluster_size=64).multiplications((3, 3, 8, 2), (2, 3)) == 1


def test_inside_a_wrapper():
    weights = kernel((3, 3, 6, 4))
    real = np.asarray(Stochastic(Clustered())(weights, {"ratio": 1.0}, (-1,)))
    np.testing.assert_array_equal(real, np.asarray(Clustered()(weights, {}, (-1,))))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Clustered(Uniform(8)), "2 to 4 bits"),
        (lambda: Clustered(Ternary(factor=0.75)), "finds thresholds and scales itself"),
        (lambda: Clustered("binary"), "Clustered needs Ternary"),
        (lambda: Clustered(None), "got None"),
        (lambda: Clustered(calibration="mean"), "'rms', 'rms_literal', 'mse'"),
        (lambda: Clustered(groups="filters"), "'kernels', 'weights'"),
        (lambda: Clustered(cluster_size=0), "at least 1, got 0"),
        (lambda: Clustered(scale_bits=9), "from 2 to 8"),
        (lambda: Clustered(granularity="row"), "'channel', 'tensor'"),
        (lambda: Clustered()(np.zeros(3, "float32")), "give filter_axes"),
        (lambda: Clustered(groups="weights")(np.zeros((3, 3, 2, 1), "float32"), {}, (2, 3)), "depthwise"),
        (lambda: Clustered(scale_bits=None).structure(np.zeros((3, 2)), {}, (-1,)), "no codes"),
    ],
)
def test_wrong_arguments_say_what_to_give(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_shared_steps_of_scales_leave_seven_magnitude_bits():
    largest = np.float32([1.0, 1.99, 0.3, 0.0])
    np.testing.assert_array_equal(shared_step(largest, 7), np.float32([2.0**-6, 2.0**-6, 2.0**-8, 1.0]))
