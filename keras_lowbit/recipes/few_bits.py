"""Recipes of few-bit uniform weights: `w4`, learnt rounding without labels."""

from keras_lowbit.quantizers import ActivationRange, AdjustableThreshold, Uniform
from keras_lowbit.recipes.plan import Recipe, Rule

W4_SOURCE = "Li et al. 2021, arXiv:2102.05426, BRECQ"
# What biases make up for is another error after `reconstruct`, which starts from the float ones.
W4_STEPS = ("equalize", "calibrate", "correct_biases", "reconstruct", "correct_biases", "distill")
# Of `reconstruct` (AdaRound, arXiv:2004.10568, within blocks) and, after it, of `distill`; the papers take 10,000 and 20,000
# iterations at a tenth of the rate.
W4_TRAINING = {"iterations": 1000, "epochs": 3, "variables": "thresholds+biases"}


def w4(bits: int = 4, *, first: int | None = 8, last: int | None = 8) -> Recipe:
    """``w4``: few-bit weights and 8-bit activations without labels, rounding learnt block by block.

    Its steps are functions of the library, in their order; ``keras-lowbit convert`` takes them.
    bits: of weights, one step per channel.   first, last: bits of the first and last weighted layer, None for `bits`.
    Returns a `Recipe`.

    >>> print(str(klb.recipes.w4(first=None)).splitlines()[-1].strip())
    steps: equalize -> calibrate -> correct_biases -> reconstruct -> correct_biases -> distill
    """
    rules = (*_ends(first, last), Rule(AdjustableThreshold(Uniform(bits), calibration="mse")))
    activations = AdjustableThreshold(ActivationRange(), mode="asymmetric")
    return Recipe(f"w{bits}", rules, activations, {}, W4_TRAINING, W4_SOURCE, W4_STEPS)


def _ends(first: int | None, last: int | None) -> tuple[Rule, ...]:
    """Rules for the first and the last layer, where they have bits of their own."""
    ends = (("first", first), ("last", last))
    return tuple(Rule(Uniform(bits), position=position) for position, bits in ends if bits is not None)
