"""Whether a rewritten float model quantizes better than the one that it was made of."""

from typing import Any

import keras
import numpy as np

from keras_lowbit import recipes
from keras_lowbit.convert.post_training.calibrate import activation_hosts, calibrate
from keras_lowbit.convert.quantize_model import quantize_model
from keras_lowbit.guard import Samples, Verdict, judged, noise, outputs_of, say_left_out
from keras_lowbit.keras_graph.edits import rewrite_model

# What stands for the recipe that a model will be quantized by, where nobody says: a scale per channel, and one per tensor.
_USUAL = ("int8", "fat-scalar")


def judged_rewrite(
    what: str, model: keras.Model, changed: keras.Model, samples: Samples, recipe: Any
) -> tuple[keras.Model, Verdict]:
    """The changed model, or a copy of the one before if that quantizes better; and the verdict.

    Both are quantized by the recipe (None: by "int8" and by "fat-scalar", the geometric mean of both errors counts), calibrated
    on what `samples` hold back, and compared there with the float model before the change. what: the name of the function.
    """
    if not samples.check:
        return changed, Verdict()
    wanted, before = outputs_of(model, samples.held_back), rewrite_model(model, {})
    chosen = [recipes.get(each) for each in (_USUAL if recipe is None else (recipe,))]
    errors = [
        float(np.exp(np.mean([np.log(_error(candidate, each, samples, wanted)) for each in chosen])))
        for candidate in (before, changed)
    ]
    verdict = judged(samples, *errors)
    say_left_out(
        f"{what} left {model.name!r} as it was, quantized by {' and '.join(repr(each.name) for each in chosen)}",
        verdict,
        "Give the recipe that the model is for (recipe=), and data of the kind it will see.",
    )
    return (changed if verdict.kept else before), verdict


def _error(model: keras.Model, recipe: recipes.Recipe, samples: Samples, wanted: list[np.ndarray]) -> float:
    quantized, _ = quantize_model(model, recipe)
    if activation_hosts(quantized):
        calibrate(quantized, lambda: iter(samples.held_back), verbose=0)
    return noise(wanted, outputs_of(quantized, samples.held_back)) + 1e-30  # its logarithm is taken
