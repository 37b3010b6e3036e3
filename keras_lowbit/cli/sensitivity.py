"""keras-lowbit sensitivity: what quantizing each layer's weights, and each activation, does to a model's logits.

    keras-lowbit sensitivity model.keras --recipe fat-w4 --data photos/ --plot bars.png
    keras-lowbit sensitivity applications:MobileNetV2 --recipe int8 --data photos/ --limit 100 --json

MODEL is the float model; it is folded, quantized by the recipe and calibrated on the data, then each part runs alone and left
out. Classes of the data, where there are some, give accuracies. With --checkpoint a run that was killed goes on.
"""

from typing import Any

import keras
import numpy as np
from absl import flags

from keras_lowbit.cli.dataset import define_data, open_data
from keras_lowbit.cli.models import define_model, load_model
from keras_lowbit.cli.options import (
    check_output,
    check_plot,
    define_json,
    define_plot,
    define_recipe,
    loops,
    recipe_of,
    show,
    wants_progress,
    working,
    write_output,
)
from keras_lowbit.convert import calibrate, fold_batch_norms, quantize_model
from keras_lowbit.data import labelled_batches
from keras_lowbit.sensitivity import sensitivity

FLAGS = flags.FlagValues()
define_json(FLAGS)
define_model(FLAGS)
define_recipe(FLAGS)
define_data(FLAGS, limit=200)
flags.DEFINE_string("output", None, "JSON file of the result", flag_values=FLAGS)
define_plot(FLAGS, "the result")
flags.DEFINE_bool("force", False, "replace files that are there already", flag_values=FLAGS)
flags.DEFINE_string("checkpoint", None, "file that keeps what is measured so far", flag_values=FLAGS)
ARGUMENTS = ("MODEL",)


def run(values: Any, model: str) -> int:
    """Measures and prints the table, the worst layer on top."""
    if values.output:
        check_output(values.output, values.force)
    check_plot(values)
    recipe, verbose = recipe_of(values.recipe), wants_progress(values)
    with working(values):
        reference, inputs, labels = folded_and_data(load_model(model, values), values)
        quantized, _ = quantize_model(reference, recipe, skip=values.skip, **loops(values))
        calibrate(quantized, lambda: iter(inputs), verbose=verbose)
        found = sensitivity(
            quantized,
            reference,
            lambda: iter(inputs),
            labels=labels,
            checkpoint=values.checkpoint,
            verbose=verbose,
        )
        if values.plot:
            found.plot(values.plot)
    if values.output:
        write_output(values.output, found.to_json().encode(), values.force)
    show(values, found, found.contents())
    return 0


def folded_and_data(model: keras.Model, values: Any) -> tuple[keras.Model, list[Any], np.ndarray | None]:
    """The model with its batch norms folded, batches of inputs, and the classes of all samples or None."""
    folded = fold_batch_norms(model)
    pairs = list(labelled_batches(open_data(folded, values).dataset))
    classes = [None if labels is None else _classes(labels) for _, labels in pairs]
    known = [each for each in classes if each is not None]
    return folded, [inputs for inputs, _ in pairs], np.concatenate(known) if len(known) == len(pairs) > 0 else None


def _classes(labels: Any) -> np.ndarray | None:
    """Class numbers of a batch; None for labels of another kind."""
    leaves = keras.tree.flatten(labels)
    found = np.asarray(leaves[0])
    return found.reshape(-1) if len(leaves) == 1 and found.dtype.kind in "iu" else None
