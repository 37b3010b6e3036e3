"""The recipe of clustered weights with dynamic fixed point, with its per-layer choices as arguments."""

from keras_lowbit.quantizers import Clustered, DynamicFixedPoint, Quantizer, Ternary, Uniform
from keras_lowbit.quantizers.former import former_arguments
from keras_lowbit.recipes.plan import Recipe, Rule

SOURCE = (
    "Mellempudi et al. 2017, arXiv:1701.08978, Mixed Low-precision Deep Learning Inference using Dynamic Fixed Point"
)
# Of the fine-tuning at N = 64; without retraining: calibrate, reestimate_batch_norms, calibrate.
TRAINING = {"learning_rate": 1e-4, "epochs": 4, "start": "the trained float model; all else as in its training"}


@former_arguments(mode="calibration={}", exponent="granularity={}")
def dfp(
    weight_bits: int = 2,
    cluster_size: int = 4,
    *,
    calibration: str = "rms",
    groups: str = "kernels",
    granularity: str = "channel",
    first: int | None = 8,
    last: int | None = 8,
    depthwise: int | None = 8,
) -> Recipe:
    """``dfp-2w8a-n4`` and its relatives: clustered weights, 8-bit activations with power-of-two scales.

    weight_bits: 2 (ternary), or 3 and 4 (few-bit integers).   cluster_size, calibration, groups, granularity: as in
    `quantizers.Clustered`.   first, last, depthwise: bits of the first and last weighted layer and of depthwise layers in
    dynamic fixed point with an exponent for each channel; None clusters them like the others.
    The paper keeps the first layer at 8 bits; for the last one it is not clear, and it has no depthwise layers.
    Returns a `Recipe`.
    Raises ValueError for other bits.

    >>> klb.recipes.dfp(4, 64, last=None).name
    'dfp-4w8a-n64'
    """
    if weight_bits not in (2, 3, 4):
        raise ValueError(
            f"dfp clusters weights of 2, 3 or 4 bits, got weight_bits={weight_bits!r}. For 8 use 'dfp-8w8a'."
        )
    base: Quantizer = Ternary() if weight_bits == 2 else Uniform(weight_bits)
    clustered = Clustered(base, cluster_size, calibration, groups, granularity=granularity)
    rules = [
        *([Rule(eight_bits(first), position="first")] if first is not None else []),
        *([Rule(eight_bits(last), position="last")] if last is not None else []),
        *([Rule(eight_bits(depthwise), kinds=("depthwise",))] if depthwise is not None else []),
        Rule(clustered),
    ]
    name = f"dfp-{weight_bits}w8a-n{cluster_size}"
    return Recipe(name, tuple(rules), DynamicFixedPoint(8), {}, TRAINING, SOURCE)


def dfp8() -> Recipe:
    """``dfp-8w8a``: the same pipeline with 8-bit weights in dynamic fixed point everywhere, to compare with."""
    return Recipe("dfp-8w8a", (Rule(eight_bits(8)),), DynamicFixedPoint(8), {}, {}, SOURCE)


def eight_bits(bits: int) -> DynamicFixedPoint:
    """The quantizer of the layers that are not clustered: an exponent for each channel."""
    return DynamicFixedPoint(bits, granularity="channel")
