"""keras-lowbit convert: from a float model and some images to a verified .tflite file, in one go.

    keras-lowbit convert model.keras --recipe int8 --data photos/ --labels labels.txt --output model.tflite
    keras-lowbit convert applications:MobileNetV2 --recipe fat --data photos/ --limit 800 --output model.tflite

Folds batch norms, equalizes where channels share a scale, quantizes, calibrates, corrects biases, tunes thresholds (fat),
exports and verifies against the float model. Each change is judged on images it was not made from. Exit status 1 if the file
does not verify; it is written then, too, and the reason is said.
"""

import dataclasses
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

from absl import flags

from keras_lowbit.cli import options
from keras_lowbit.cli.conversion import Conversion
from keras_lowbit.cli.dataset import define_data, open_data
from keras_lowbit.cli.models import define_model, load_model
from keras_lowbit.cli.recipes import needs
from keras_lowbit.convert.post_training.input_checks import warn_of_other_scale
from keras_lowbit.data import batches
from keras_lowbit.deploy.export import ExportReport, export_litert
from keras_lowbit.deploy.litert.target import target_of
from keras_lowbit.deploy.verification.verify import Parity, verify
from keras_lowbit.files import name_of
from keras_lowbit.keras_graph.calls import find_layers
from keras_lowbit.layers import QuantActivation, QuantizedLayer
from keras_lowbit.report.content import Report, paths
from keras_lowbit.report.make import report as make_report
from keras_lowbit.report.page import check_jinja
from keras_lowbit.tables import table

FLAGS = flags.FlagValues()
options.define_json(FLAGS)
options.define_output(FLAGS, "the .tflite file to write")
options.define_recipe(FLAGS)
define_data(FLAGS, limit=256)
options.define_file(FLAGS)
define_model(FLAGS)
flags.DEFINE_string(
    "save", None, ".keras file for the quantized model, which verify and export read", flag_values=FLAGS
)
text = "page (.html) about the result: layers, sizes, parity, ranges, weights; and the same as .json beside it"
flags.DEFINE_string("report", None, text, flag_values=FLAGS)
ARGUMENTS = ("MODEL",)


def run(values: Any, model: str) -> int:
    """Converts, prints the table, and says whether the file verified."""
    pages = () if values.report is None else paths(values.report)
    for path in filter(None, (values.output, values.save, *pages)):
        options.check_output(path, values.force)
    if pages:
        check_jinja()
    recipe, arguments = options.recipe_of(values.recipe), options.file_arguments(values)
    target_of(values.target)
    with options.working(values), tempfile.TemporaryDirectory() as folder:
        float_model = load_model(model, values)
        check_float(float_model, model)
        if needs(recipe) == "fit":
            warnings.warn(f"{recipe.name} is made for training; without it expect a loss of accuracy", stacklevel=1)
        given = open_data(float_model, values)
        warn_of_other_scale(float_model, next(batches(given.dataset)), [])
        said = (lambda step: options.say(f"{step} ...")) if options.wants_progress(values) else None
        work = Conversion(float_model, recipe, given.dataset, values.batch_size, options.wants_progress(values), said)
        quantized = work.quantized(values.skip)
        made = Path(folder, "model.tflite")
        with work.step("export") as words:
            report = export_litert(quantized, made, **arguments)
            words.append(f"{report.size_bytes:,} bytes")
        with work.step("verify") as words:
            parity = verify(quantized, made, given.dataset, reference=float_model)
            words.append("ok" if parity.ok else "NOT OK")
        if values.save is not None:
            quantized.save(Path(folder, "model.keras"))
            options.write_output(values.save, Path(folder, "model.keras").read_bytes(), values.force)
        options.write_output(values.output, made.read_bytes(), values.force)
        if pages:
            with work.step("report"):
                _report(values, model, work, quantized, report, parity).save(values.report)
    report = dataclasses.replace(report, path=name_of(values.output))
    options.show(values, _text(work, report, parity), _fields(work, report, parity, given.preprocess))
    return int(not parity.ok)


def _report(values: Any, model: str, work: Conversion, quantized: Any, export: ExportReport, parity: Parity) -> Report:
    """The page about all of it; what is known already is not computed again."""
    return make_report(
        quantized,
        reference=work.model,
        data=work.data,
        conversion=work.report,
        export=export,
        parity=parity,
        command=options.command_line("convert", values, model),
        **options.file_arguments(values),
    )


def check_float(model: Any, name: str) -> None:
    """ValueError for a model that is quantized already."""
    if find_layers(model, QuantActivation) or find_layers(model, QuantizedLayer):
        raise ValueError(f"{name} is quantized already: keras-lowbit export writes its file. Give the float model")


def _text(work: Conversion, report: ExportReport, parity: Parity) -> str:
    rows = [(step.step, step.outcome, step.seconds) for step in work.steps]
    before = 4 * work.model.count_params()
    lines = [
        table(("step", "outcome", "seconds"), rows),
        f"{report.path}: {report.size_bytes:,} bytes, {before / report.size_bytes:.1f} times smaller than float32 weights",
        *map(str, parity.outputs),
        *(f"in float: {found.path}: {found.reason}" for found in report.float_fallbacks),
        *(f"NOT OK: {problem}" for problem in parity.problems),
        *parity.notes,
    ]
    return "\n".join(lines)


def _fields(work: Conversion, report: ExportReport, parity: Parity, preprocess: str) -> dict[str, Any]:
    found = json.loads(parity.to_json())
    return {
        "model": work.model.name,
        "recipe": work.recipe.name,
        "output": report.path,
        "size_bytes": report.size_bytes,
        "float_weight_bytes": 4 * work.model.count_params(),
        "preprocess": preprocess,
        "steps": [dataclasses.asdict(step) for step in work.steps],
        "float_fallbacks": [{"path": each.path, "reason": each.reason} for each in report.float_fallbacks],
        **{name: found[name] for name in ("ok", "problems", "samples", "outputs", "notes")},
    }
