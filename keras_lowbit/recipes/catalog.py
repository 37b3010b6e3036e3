"""The recipes that come with the library, by name."""

from collections.abc import Callable, Mapping
from typing import Any

from keras_lowbit.arguments import nearest_first, shown
from keras_lowbit.quantizers import (
    ActivationRange,
    AdjustableThreshold,
    Binary,
    Incremental,
    PowerOfTwo,
    Stochastic,
    Ternary,
    TrainedTernary,
    Uniform,
)
from keras_lowbit.recipes.dfp import dfp, dfp8
from keras_lowbit.recipes.few_bits import lsq, w4
from keras_lowbit.recipes.plan import Recipe, Rule

SQ_SOURCE = "Dong et al. 2017, Learning Accurate Low-Bit Deep Neural Networks with Stochastic Quantization"
# VGG-9 and ResNet-56 on CIFAR in the official code; per stage, four stages.
SQ_TRAINING = {
    "optimizer": "SGD, momentum 0.9",
    "learning_rate": 0.1,
    "weight_decay": 1e-4,
    "batch_size": 128,
}


def _sq(name: str, base: Any) -> Recipe:
    rules = (Rule(Stochastic(base)),)
    return Recipe(name, rules, ActivationRange(), {"ratio": "exponential"}, SQ_TRAINING, SQ_SOURCE)


INQ_SOURCE = "Zhou et al. 2017, arXiv:1702.03044, Incremental Network Quantization"
# ResNet-18 on ImageNet; the learning rate and its drops are those of the float training, restarted at every step.
INQ_TRAINING = {"optimizer": "SGD, momentum 0.9", "weight_decay": 5e-4, "batch_size": 80}


def _inq(name: str, bits: int, **grid: Any) -> Recipe:
    rules = (Rule(Incremental(PowerOfTwo(bits, **grid))),)
    return Recipe(name, rules, ActivationRange(), {"portions": bits}, INQ_TRAINING, INQ_SOURCE)


# Not the paper's: with its grid 3 and 2 bits turn most weights of a small network into zero (studies/inq_cifar).
_FITTED: dict[str, Any] = {"granularity": "channel", "calibration": "mse"}


FAT_SOURCE = "Goncharenko et al. 2018, arXiv:1812.07872, Fast Adjustable Threshold"
# For `distill`: thresholds alone train, without labels; cosine within restarts of 400 steps in the official code.
FAT_TRAINING = {"optimizer": "Adam", "learning_rate": 1e-3, "epochs": 6, "calibration_images": 100}


def _fat(name: str, **weights: Any) -> Recipe:
    calibration = "max" if weights["bits"] == 8 else "mse"
    rules = (Rule(AdjustableThreshold(Uniform(**weights), calibration=calibration)),)
    activations = AdjustableThreshold(ActivationRange(), mode="asymmetric")
    return Recipe(name, rules, activations, {}, FAT_TRAINING, FAT_SOURCE)


def _plain(name: str, kernel: Any, source: str, activation_bits: int = 8) -> Recipe:
    return Recipe(name, (Rule(kernel),), ActivationRange(activation_bits), source=source)


_CATALOG: dict[str, Callable[[], Recipe]] = {
    "dfp-2w8a-n4": lambda: dfp(2, 4),
    "dfp-2w8a-n64": lambda: dfp(2, 64),
    "dfp-4w8a-n4": lambda: dfp(4, 4),
    "dfp-8w8a": dfp8,
    "int8": lambda: _plain("int8", Uniform(8), "Jacob et al. 2018, arXiv:1712.05877"),
    "int16x8": lambda: _plain("int16x8", Uniform(8), "LiteRT's 16x8 mode: 16-bit activations, 8-bit weights", 16),
    "sq-twn": lambda: _sq("sq-twn", Ternary()),
    "sq-bwn": lambda: _sq("sq-bwn", Binary()),
    "inq-5": lambda: _inq("inq-5", 5),
    "inq-4": lambda: _inq("inq-4", 4),
    "inq-3": lambda: _inq("inq-3", 3),
    "inq-2": lambda: _inq("inq-2", 2),
    "inq-3-mse": lambda: _inq("inq-3-mse", 3, **_FITTED),
    "inq-2-mse": lambda: _inq("inq-2-mse", 2, **_FITTED),
    "fat": lambda: _fat("fat", bits=8),
    "fat-scalar": lambda: _fat("fat-scalar", bits=8, granularity="tensor"),
    "fat-w4": lambda: _fat("fat-w4", bits=4),
    "w4": w4,
    "w4-depthwise-8": lambda: w4(depthwise=8),
    "lsq-4": lambda: lsq(4),
    "lsq-3": lambda: lsq(3),
    "lsq-2": lambda: lsq(2),
    "twn": lambda: _plain("twn", Ternary(), "Li et al. 2016, arXiv:1605.04711"),
    "ttq": lambda: _plain("ttq", TrainedTernary(), "Zhu et al. 2017, arXiv:1612.01064, Trained Ternary Quantization"),
    "bwn": lambda: _plain("bwn", Binary(), "Rastegari et al. 2016, arXiv:1603.05279"),
}


def names() -> list[str]:
    """The names `get` understands.

    Returns a list of str.

    >>> "int8" in klb.recipes.names()
    True
    """
    return sorted(_CATALOG)


def get(identifier: Any) -> Recipe:
    """A recipe from its name, a dict as `Recipe.get_config` writes it, or a recipe itself.

    identifier: a name of `names()`, a dict, or a `Recipe`.
    Returns a `Recipe`.
    Raises ValueError for an unknown name (the message has the likeliest), TypeError for anything else.

    >>> klb.recipes.get("sq-twn").schedule
    {'ratio': 'exponential'}
    """
    if isinstance(identifier, Recipe):
        return identifier
    if isinstance(identifier, Mapping):
        return Recipe.from_config(identifier)
    if isinstance(identifier, str):
        if identifier not in _CATALOG:
            known = nearest_first(identifier, names())
            raise ValueError(f"Unknown recipe {identifier!r}. Known recipes, the most alike first: {known}.")
        return _CATALOG[identifier]()
    raise TypeError(
        f"A recipe is a name, a dict or a Recipe, got {shown(identifier)}. Known recipes: {', '.join(names())}."
    )
