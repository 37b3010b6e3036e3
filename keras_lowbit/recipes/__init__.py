"""Recipes: named, printable bundles of a method, JSON both ways."""

from keras_lowbit.recipes.catalog import get, names
from keras_lowbit.recipes.dfp import dfp
from keras_lowbit.recipes.few_bits import lsq, w4
from keras_lowbit.recipes.plan import Recipe, Rule

__all__ = ["Recipe", "Rule", "dfp", "get", "lsq", "names", "w4"]
