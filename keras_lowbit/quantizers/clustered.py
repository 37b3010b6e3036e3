"""Clustered weights: a few bits each, small clusters with an 8-bit scale, one exponent per output channel."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import numpy as np
from keras import ops

from keras_lowbit.numerics import clusters
from keras_lowbit.numerics import dynamic_fixed_point as dfp
from keras_lowbit.numerics.grids import Quantized, symmetric_limit
from keras_lowbit.quantizers.base import (
    GRANULARITIES,
    Axes,
    Quantizer,
    State,
    Tensor,
    as_float32,
    get,
    register,
    require_choice,
    scale_shape,
)
from keras_lowbit.quantizers.ternary import Ternary
from keras_lowbit.quantizers.uniform import Uniform

CALIBRATIONS = ("rms", "rms_literal", "mse")
GROUPS = ("kernels", "weights")
INT8_LIMIT = 127


class ClusterCodes(NamedTuple):
    """The structure behind clustered codes, NumPy arrays: ``w = pattern * alpha[cluster] * 2^exponent[channel]``.

    pattern: int8 in the kernel's layout, -1 / 0 / 1 or -7 .. 7.
    alphas: int8 0 .. 127, [ceil(IC / N), OC], or [KH, KW, ceil(IC / N), OC] for groups of single weights.
    exponent: int32 [OC], the same number everywhere if the kernel shares one.

    >>> clusters = klb.quantizers.Clustered("ternary", cluster_size=4)
    >>> kernel = np.random.normal(size=(3, 3, 8, 16)).astype("float32")
    >>> clusters.structure(kernel, state={}, filter_axes=(-1,)).alphas.shape  # two clusters of four channels
    (2, 16)
    """

    pattern: np.ndarray
    alphas: np.ndarray
    exponent: np.ndarray


class _Fit(NamedTuple):
    """Magnitude codes [f, c, n, t], whole scales [f, c, 1, 1], step [f or 1, 1, 1, 1]; real scales and no step if None."""

    codes: Tensor
    alphas: Tensor
    step: Tensor | None


@register
@dataclasses.dataclass(frozen=True)
class Clustered(Quantizer):
    """Ternary or 4-bit codes T times a cluster's 8-bit scale: ``q = T * I_a * 2^E``, ``I_a * T`` an int8 code.

    A cluster is N neighbouring input channels of one output channel: all their KHxKW weights (groups="kernels", the
    paper) or those of one position (groups="weights", FGQ). A last, shorter cluster is one of its own; with N >= the
    input channels a filter is one cluster. Dense kernels are 1x1 convolutions; in grouped convolutions clusters run along
    the input channels of one group; a depthwise filter has one input channel, so N does not matter there.
    The scales of a channel (granularity="channel") or kernel ("tensor") share E and have ``scale_bits - 1`` magnitude bits.
    Gradient: identity; scales and codes follow the weights in every step.

    base: `Ternary()` or `Uniform(bits)` of 2 to 4 bits, as they are: their own thresholds and scales do not apply.
    cluster_size: N, 1 or more.   groups: "kernels" or "weights".   granularity: "channel" or "tensor".
    calibration: for ternary. "rms" scans root mean squares of the largest slices, weights above half of it are +-1;
    "rms_literal" is the same with the whole of it as threshold, a literal and much worse reading of the paper, for
    comparison; "mse" is the exact least-squares fit of each cluster (FGQ). Scales are rounded after T is found.
    int8_exact: for 4 bits, whose scales are found by a scan. Codes times scale would reach 7 * 127. True: the scan takes whole
    scales whose products fit int8. False: the best free scales; export then alters the weights that do not fit and counts
    them, see `export_litert(overflow=)`. `keras_lowbit.weight_errors` compares the two.
    scale_bits: 2 to 8, None for real scales (does not export).
    Raises ValueError for another base, choice or number.
    Mellempudi et al. 2017, arXiv:1701.08978; FGQ: arXiv:1705.01462. Only abstracts and notes of both were at hand: "rms"
    is a reconstruction, with the support of the nearest value where the literal reading fits badly.

    >>> klb.quantizers.Clustered("ternary", cluster_size=64, calibration="mse").bits
    2
    """

    name: ClassVar[str] = "clustered"
    base: Any = "ternary"
    cluster_size: int = 4
    calibration: str = "rms"
    groups: str = "kernels"
    scale_bits: int | None = 8
    granularity: str = "channel"
    int8_exact: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", _checked_base(self.base))
        require_choice("Clustered", "calibration", self.calibration, CALIBRATIONS)
        require_choice("Clustered", "groups", self.groups, GROUPS)
        require_choice("Clustered", "granularity", self.granularity, GRANULARITIES)
        if isinstance(self.cluster_size, bool) or not isinstance(self.cluster_size, int) or self.cluster_size < 1:
            raise ValueError(
                f"Clustered needs a whole cluster_size of at least 1, got {self.cluster_size!r}. The papers use 4 and 64."
            )
        if self.scale_bits not in (None, *range(2, 9)):
            raise ValueError(
                f"Clustered needs scale_bits from 2 to 8, or None for real scales, got {self.scale_bits!r}."
            )

    @property
    def bits(self) -> float:
        """Bits of the codes T; `scale_bytes` has the scales."""
        return self.base.bits

    @property
    def limit(self) -> int:
        """The largest T: 1 for ternary, 7 for 4 bits."""
        return 1 if isinstance(self.base, Ternary) else symmetric_limit(self.base.bits)

    def is_slow(self, training: bool) -> bool:
        """True: scans and sorts over all weights."""
        return True

    def encode(self, real: Tensor, state: State, filter_axes: Axes = ()) -> Quantized:
        """Codes ``I_a * T`` in the layout of `real`; scale 2^E with size 1 along all axes but the filters'."""
        real = ops.stop_gradient(as_float32(real))
        plan = self.layout(tuple(real.shape), filter_axes)
        weights = clusters.to_clusters(real, plan)
        fit = self._fit(ops.abs(weights), plan)
        pattern = ops.sign(weights) * fit.codes
        if fit.step is None:
            return Quantized(clusters.from_clusters(pattern, plan), clusters.from_clusters(fit.alphas, plan))
        shape = scale_shape(plan.shape, filter_axes, self.granularity)
        return Quantized(clusters.from_clusters(pattern * fit.alphas, plan), ops.reshape(fit.step, shape))

    def structure(self, kernel: Tensor, state: State, filter_axes: Axes = ()) -> ClusterCodes:
        """Pattern, scales and exponents of a kernel as NumPy arrays, for packed kernels.

        Raises ValueError with scale_bits=None: real scales have no codes.
        """
        if self.scale_bits is None:
            raise ValueError("Clustered(scale_bits=None) has real scales and no codes. Give scale_bits=8.")
        real = as_float32(kernel)
        plan = self.layout(tuple(real.shape), filter_axes)
        weights = clusters.to_clusters(real, plan)
        fit = self._fit(ops.abs(weights), plan)
        pattern = ops.convert_to_numpy(clusters.from_clusters(ops.sign(weights) * fit.codes, plan))
        alphas = ops.convert_to_numpy(fit.alphas).reshape(plan.filters, *plan.scale_shape[:-1])
        exponent = dfp.exponents(ops.convert_to_numpy(fit.step)).reshape(-1)
        return ClusterCodes(
            pattern.astype(np.int8),
            np.moveaxis(alphas, 0, -1).astype(np.int8),
            np.broadcast_to(exponent, plan.filters).copy(),
        )

    def cluster_scales(self, kernel: Tensor, filter_axes: Axes = ()) -> np.ndarray:
        """The scale ``I_a 2^E`` of every weight's cluster, float32 in the kernel's layout; 0 for a cluster of zeros."""
        plan = self.layout(tuple(kernel.shape), filter_axes)
        weights = clusters.to_clusters(as_float32(kernel), plan)
        fit = self._fit(ops.abs(weights), plan)
        scales = fit.alphas if fit.step is None else fit.alphas * fit.step
        spread = ops.convert_to_numpy(clusters.from_clusters(ops.broadcast_to(scales, weights.shape), plan))
        return np.asarray(spread, np.float32)

    def layout(self, shape: tuple[int, ...], filter_axes: Axes) -> clusters.Layout:
        """How a kernel of that shape falls into clusters; a ValueError where it cannot."""
        if not filter_axes:
            raise ValueError(
                "Clustered quantizes kernels: give filter_axes, (-1,) for dense and convolution kernels. For activations "
                "use DynamicFixedPoint(8)."
            )
        plan = clusters.layout(shape, filter_axes, self.cluster_size, self.groups == "weights")
        if plan.single and not plan.input_axes:
            raise ValueError(
                f"Clustered(groups='weights') cannot take a depthwise kernel of shape {shape}: a filter has one input "
                "channel, so every weight would be a group of its own. Use groups='kernels' or 8 bits there."
            )
        return plan

    def multiplications(self, shape: tuple[int, ...], filter_axes: Axes) -> int:
        """Multiplications left for one output value: one for each cluster, or for each weight where codes are not ternary."""
        plan = self.layout(shape, filter_axes)
        return plan.per_filter if self.limit == 1 else plan.inputs * plan.taps

    def scale_bytes(self, shape: tuple[int, ...], filter_axes: Axes) -> float:
        """Bytes of the scales and of the exponents (one byte each) of a kernel."""
        plan = self.layout(shape, filter_axes)
        exponents = plan.filters if self.granularity == "channel" else 1
        return plan.filters * plan.per_filter * (32 if self.scale_bits is None else self.scale_bits) / 8 + exponents

    def unconstrained(self) -> "Clustered":
        """The same without the limit that products fit int8; itself where there is none."""
        return dataclasses.replace(self, int8_exact=False) if self.limit > 1 else self

    def _fit(self, magnitude: Tensor, plan: clusters.Layout) -> _Fit:
        if self.limit > 1 and self.int8_exact and self.scale_bits is not None:
            return _finite_or_nan(self._integer_fit(magnitude), magnitude)
        if self.limit > 1:
            scale = clusters.scanned_scale(magnitude, self.limit)
            codes = ops.round(magnitude / ops.where(scale > 0, scale, 1.0))
            codes = ops.minimum(codes, float(self.limit))
        elif self.calibration == "mse":
            support, scale = clusters.optimal_fit(magnitude)
            codes = ops.cast(support, magnitude.dtype)
        else:
            threshold = 1.0 if self.calibration == "rms_literal" else 0.5
            scale = clusters.rms_scale(magnitude, plan.slices, threshold)
            codes = ops.cast(magnitude > threshold * scale, magnitude.dtype)
        return _finite_or_nan(self._rounded(codes, scale), magnitude)

    def _rounded(self, codes: Tensor, scale: Tensor) -> _Fit:
        """The fit with its scales in dynamic fixed point, T as it is."""
        if self.scale_bits is None:
            return _Fit(codes, scale, None)
        step = dfp.shared_step(self._largest(scale), self.scale_bits - 1)
        return _Fit(codes, dfp.encode_shared(scale, step, 0, symmetric_limit(self.scale_bits)), step)

    def _integer_fit(self, magnitude: Tensor) -> _Fit:
        """Whole scales whose products with the codes fit int8; of two exponents the one with the smaller error."""
        most = symmetric_limit(int(self.scale_bits or 8))
        room = min(INT8_LIMIT, self.limit * most)
        coarse = dfp.ceil_power(self._largest(magnitude) * (1.0 / room))
        coarse = ops.where(coarse > 0, coarse, ops.ones_like(coarse))
        errors, alphas = [], []
        for step in (coarse, coarse * 0.5):  # the finer one cuts the largest weights off
            scale, error = clusters.scanned_integers(magnitude / step, self.limit, most)
            errors.append(self._total(error) * ops.square(step))
            alphas.append(scale)
        finer = errors[1] < errors[0]
        step, scale = ops.where(finer, coarse * 0.5, coarse), ops.where(finer, alphas[1], alphas[0])
        codes = clusters.integer_codes(magnitude / step, scale, self.limit)
        used = ops.max(codes, axis=(2, 3), keepdims=True) > 0
        return _Fit(codes, ops.where(used, scale, ops.zeros_like(scale)), step)

    def _largest(self, values: Tensor) -> Tensor:
        axes = (1, 2, 3) if self.granularity == "channel" else (0, 1, 2, 3)
        return ops.max(values, axis=axes, keepdims=True)

    def _total(self, values: Tensor) -> Tensor:
        axes = (1, 2, 3) if self.granularity == "channel" else (0, 1, 2, 3)
        return ops.sum(values, axis=axes, keepdims=True)


def _checked_base(base: Any) -> Quantizer:
    found = get(base)
    plain = isinstance(found, Uniform) and found == Uniform(found.bits) and found.bits <= 4
    if found is None or (found != Ternary() and not plain):
        raise ValueError(
            f"Clustered needs Ternary() or Uniform(bits) of 2 to 4 bits with no other arguments as base, got {base!r}: it "
            "finds thresholds and scales itself (calibration=, cluster_size=)."
        )
    return found


def _finite_or_nan(fit: _Fit, magnitude: Tensor) -> _Fit:
    """Scales are NaN in the filter of a NaN weight: comparisons would make zeros of it and hide it."""
    spoiled = ops.isnan(ops.sum(magnitude, axis=(1, 2, 3), keepdims=True))
    return fit._replace(alphas=ops.where(spoiled, float("nan"), fit.alphas))
