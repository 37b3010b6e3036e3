"""keras-lowbit recipes: lists the recipes, or shows one as the JSON that --recipe takes.

    keras-lowbit recipes
    keras-lowbit recipes fat-w4 > mine.json

A recipe says which layers get which quantizer, and what its training needs. The JSON of one, changed by hand, is a recipe too:
--recipe mine.json.
"""

from typing import Any

from absl import flags

from keras_lowbit import recipes
from keras_lowbit.cli.options import define_json, recipe_of, show
from keras_lowbit.quantizers import AdjustableThreshold, Binary, LearnedStep, Ternary
from keras_lowbit.recipes import Recipe
from keras_lowbit.tables import table

FLAGS = flags.FlagValues()
define_json(FLAGS)
ARGUMENTS = ("[RECIPE]",)


def run(values: Any, name: str | None = None) -> int:
    """Prints all recipes as a table, or as JSON; one as JSON."""
    if name is not None:
        print(recipe_of(name).to_json())
        return 0
    found = [recipes.get(each) for each in recipes.names()]
    rows = [(each.name, _weights(each), _short(each.activations), needs(each), each.source) for each in found]
    text = table(("recipe", "weights", "activations", "training", "source"), rows)
    show(values, text, {"recipes": {each.name: {**each.get_config(), "needs": needs(each)} for each in found}})
    return 0


def _weights(recipe: Recipe) -> str:
    """The kernels' quantizers in the order of the rules, as "Uniform, 8 bits; AdjustableThreshold of Uniform, 8 and 4 bits"."""
    found: dict[str, list[str]] = {}
    for kernel in dict.fromkeys(rule.kernel for rule in recipe.plan):
        found.setdefault(_name(kernel), []).extend(_bits(kernel))
    return "; ".join(_said(name, bits) for name, bits in found.items())


def _short(quantizer: Any) -> str:
    return _said(_name(quantizer), _bits(quantizer))


def _said(name: str, bits: list[str]) -> str:
    return f"{name}, {' and '.join(bits)} bits" if bits else name


def _name(quantizer: Any) -> str:
    names, inner = [], quantizer
    while inner is not None:
        names.append(type(inner).__name__)
        inner = getattr(inner, "base", None)
    return " of ".join(names) or "float"


def _bits(quantizer: Any) -> list[str]:
    return [] if quantizer is None else [f"{quantizer.bits:g}"]


def needs(recipe: Recipe) -> str:
    """How a recipe is trained: "fit", with `Recipe.callbacks`; "distill" (FAT), without labels; "none" where it need not be."""
    if recipe.schedule or any(isinstance(rule.kernel, Ternary | Binary | LearnedStep) for rule in recipe.plan):
        return "fit"
    return "distill" if any(isinstance(rule.kernel, AdjustableThreshold) for rule in recipe.plan) else "none"
