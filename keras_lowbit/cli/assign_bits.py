"""keras-lowbit assign-bits: a recipe that gives every layer as many bits as it needs, for a size or an accuracy.

    keras-lowbit assign-bits model.keras --data photos/ --budget_kb 2000 --output mine.json
    keras-lowbit convert model.keras --recipe mine.json --data photos/ --pack auto --output model.tflite

    keras-lowbit assign-bits model.keras --data photos/ --budget_points 1 --output mine.json --plot front.png

--budget_kb is the size of the file that `convert --pack auto` writes, in 1,000 bytes; --budget_points what may be lost before
any tuning: points of accuracy where the data have classes, else of agreement with the float model.
"""

from typing import Any

from absl import flags

from keras_lowbit.cli.dataset import define_data
from keras_lowbit.cli.models import define_model, load_model
from keras_lowbit.cli.options import (
    check_output,
    check_plot,
    define_json,
    define_output,
    define_plot,
    show,
    wants_progress,
    working,
    write_output,
)
from keras_lowbit.cli.sensitivity import folded_and_data
from keras_lowbit.sensitivity import bit_choices

FLAGS = flags.FlagValues()
define_json(FLAGS)
define_model(FLAGS)
define_data(FLAGS, limit=200)
define_output(FLAGS, "JSON file of the recipe")
flags.DEFINE_float("budget_kb", None, "size of the file, in 1,000 bytes", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_float("budget_points", None, "percentage points that may be lost", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_list("choices", ["8", "4", "3", "2", "ternary"], "bits to choose from", flag_values=FLAGS)
define_plot(FLAGS, "size against agreement")
ARGUMENTS = ("MODEL",)


def run(values: Any, model: str) -> int:
    """Measures, writes the recipe and prints it."""
    if (values.budget_kb is None) == (values.budget_points is None):
        raise flags.Error("give one of --budget_kb and --budget_points")
    check_output(values.output, values.force)
    check_plot(values)
    choices = [int(choice) if choice.isdigit() else choice for choice in values.choices]
    with working(values):
        folded, inputs, labels = folded_and_data(load_model(model, values), values)
        found = bit_choices(
            folded, lambda: iter(inputs), choices=choices, labels=labels, verbose=wants_progress(values)
        )
        recipe = found.recipe(budget_kb=values.budget_kb, budget_points=values.budget_points)
        if values.plot:
            found.plot(values.plot)
        size = found.file_size(recipe)
    write_output(values.output, recipe.to_json().encode(), values.force)
    show(values, f"{recipe}\nfile: {size:,} bytes", {"recipe": recipe.get_config(), "file_bytes": size})
    return 0
