"""Recipes of few-bit uniform weights: `w4`, learnt rounding without labels; `lsq`, steps that training learns."""

from collections.abc import Callable

from keras_lowbit.quantizers import ActivationRange, AdjustableThreshold, LearnedStep, Quantizer, Uniform
from keras_lowbit.recipes.plan import Recipe, Rule

W4_SOURCE = "Li et al. 2021, arXiv:2102.05426, BRECQ"
W4_STEPS = ("equalize", "calibrate", "correct_biases", "reconstruct", "distill")
# Of `reconstruct` (AdaRound, arXiv:2004.10568, within blocks; biases learn too) and, after it, of `distill`; the papers take
# 10,000 and 20,000 iterations at a fiftieth of the rate.
W4_TRAINING = {"iterations": 1000, "epochs": 3, "variables": "activations+biases"}


def w4(
    bits: int = 4,
    *,
    first: int | None = 8,
    last: int | None = 8,
    depthwise: int | None = None,
    activation_bits: int = 8,
) -> Recipe:
    """``w4``: few-bit weights and 8-bit activations without labels, rounding learnt block by block.

    Its steps are functions of the library, in their order; ``keras-lowbit convert`` takes them.
    bits: of weights, one step per channel.   first, last: bits of the first and last weighted layer, None for `bits`.
    depthwise: bits of depthwise convolutions, None for `bits`. ``depthwise=8`` is the recipe ``w4-depthwise-8``: in a MobileNet
    these are a fiftieth of the weights and most of the error, and XNNPACK runs them at 8 bits alone.
    activation_bits: of the activations behind a relu that weighted layers alone read; all others have 8.
    Returns a `Recipe`.

    >>> print(str(klb.recipes.w4(first=None)).splitlines()[-1].strip())
    steps: equalize -> calibrate -> correct_biases -> reconstruct -> distill
    """
    inner = () if depthwise is None else (Rule(_fitted(depthwise), kinds=("depthwise",)),)
    rules = (*_ends(first, last, Uniform), *inner, Rule(_fitted(bits)))
    activations = AdjustableThreshold(ActivationRange(activation_bits), mode="asymmetric")
    name = f"w{bits}" + (f"a{activation_bits}" if activation_bits != 8 else "")
    name += "" if depthwise is None else f"-depthwise-{depthwise}"
    return Recipe(name, rules, activations, {}, W4_TRAINING, W4_SOURCE, W4_STEPS)


LSQ_SOURCE = "Esser et al. 2020, arXiv:1902.08153, LSQ"
# ImageNet, 2 to 4 bits: SGD from the trained float network, cosine to 0, half of the float network's weight decay at 3 bits.
LSQ_TRAINING = {"optimizer": "SGD, momentum 0.9", "learning_rate": 0.01, "schedule": "cosine", "epochs": 90}


def lsq(bits: int = 4, *, activation_bits: int | None = None, first: int | None = 8, last: int | None = 8) -> Recipe:
    """``lsq-4`` and its relatives: weights and activations of few bits whose steps `fit` learns beside the weights.

    bits: of weights, one step per channel.   activation_bits: of the activations behind a relu that weighted layers alone
    read, by default `bits`; all others have 8.   first, last: bits of the first and last weighted layer, None for `bits`.
    Returns a recipe. Calibrate before training: steps of activations start from those ranges.
    Esser et al. 2020.   Differs: one step per channel where the paper has one per layer.

    >>> klb.recipes.lsq(3, activation_bits=8).name
    'lsq-3'
    """
    rules = (*_ends(first, last, _learnt), Rule(_learnt(bits)))
    activations = LearnedStep(ActivationRange(bits if activation_bits is None else activation_bits))
    return Recipe(f"lsq-{bits}", rules, activations, {}, LSQ_TRAINING, LSQ_SOURCE)


def _ends(first: int | None, last: int | None, quantizer: Callable[[int], Quantizer]) -> tuple[Rule, ...]:
    """Rules for the first and the last layer, where they have bits of their own."""
    ends = (("first", first), ("last", last))
    return tuple(Rule(quantizer(bits), position=position) for position, bits in ends if bits is not None)


def _fitted(bits: int) -> AdjustableThreshold:
    return AdjustableThreshold(Uniform(bits), calibration="mse")


def _learnt(bits: int) -> LearnedStep:
    return LearnedStep(Uniform(bits))
