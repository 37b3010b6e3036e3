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
    """The kernels' quantizers in the order of the rules, as "Stochastic of Ternary, 2 bits"."""
    return "; ".join(dict.fromkeys(_short(rule.kernel) for rule in recipe.plan))


def _short(quantizer: Any) -> str:
    if quantizer is None:
        return "float"
    names, inner = [], quantizer
    while inner is not None:
        names.append(type(inner).__name__)
        inner = getattr(inner, "base", None)
    return f"{' of '.join(names)}, {quantizer.bits:g} bits"


def needs(recipe: Recipe) -> str:
    """How a recipe is trained: "fit", with `Recipe.callbacks`; "distill" (FAT), without labels; "none" where it need not be."""
    if recipe.schedule or any(isinstance(rule.kernel, Ternary | Binary | LearnedStep) for rule in recipe.plan):
        return "fit"
    return "distill" if any(isinstance(rule.kernel, AdjustableThreshold) for rule in recipe.plan) else "none"
