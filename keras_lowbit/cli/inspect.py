"""keras-lowbit inspect: what a recipe would do to a model, layer by layer, and the size of the file it would give.

    keras-lowbit inspect applications:MobileNetV2 --untrained --recipe fat-w4 --pack int4

Nothing is written and no data are needed; sizes are those of the file with ranges made up, some bytes off.
"""

from typing import Any

from absl import flags

from keras_lowbit.cli.models import define_model, load_model
from keras_lowbit.cli.options import (
    define_file,
    define_json,
    define_recipe,
    file_arguments,
    loops,
    recipe_of,
    show,
    working,
)
from keras_lowbit.cli.summary import fields
from keras_lowbit.convert.quantize_model import quantize_model
from keras_lowbit.convert.reports.conversion import ConversionReport
from keras_lowbit.deploy.summary import Summary, summary
from keras_lowbit.report.layer_rows import layer_rows
from keras_lowbit.tables import table

FLAGS = flags.FlagValues()
define_json(FLAGS)
define_recipe(FLAGS)
define_file(FLAGS)
define_model(FLAGS)
ARGUMENTS = ("MODEL",)


def run(values: Any, model: str) -> int:
    """Quantizes a copy in memory and prints what became of each layer."""
    recipe, arguments = recipe_of(values.recipe), file_arguments(values)
    with working(values):
        quantized, report = quantize_model(load_model(model, values), recipe, skip=values.skip, **loops(values))
        found = summary(quantized, **arguments)
    rows = list(layer_rows(report, found))
    show(values, _text(report, found, rows), {**fields(found), "recipe": recipe.name, "layers": rows})
    return 0


def _text(report: ConversionReport, found: Summary, rows: list[dict[str, Any]]) -> str:
    heads = ("layer", "class", "outcome", "weight bits", "act. bits", "kB in file", "MACs", "how, or why not")
    cells = [
        (
            *(row["path"], row["layer"], row["outcome"], row["weight_bits"], row["activation_bits"]),
            *(None if row["file_bytes"] is None else row["file_bytes"] / 1000, row["macs"], row["detail"]),
        )
        for row in rows
    ]
    total = None if found.file_bytes is None else found.file_bytes / 1000
    cells.append(("total", "", "", None, None, total, found.macs, "scales, operators and names included"))
    size = f"no file: {found.no_file_because}" if total is None else f"file about {total:,.1f} kB"
    smaller = "".join(f", {size / 1000:,.1f} kB with --pack={kind}" for kind, size in found.smaller_files.items())
    return (
        f"{report.model} with {report.recipe}\n{table(heads, cells)}\n"
        f"float32 weights {4 * found.parameters / 1000:,.1f} kB; {size}{smaller}"
    )
