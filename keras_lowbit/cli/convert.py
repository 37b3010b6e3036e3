"""keras-lowbit convert: from a float model and some images to a verified .tflite file, in one go.

    keras-lowbit convert model.keras --recipe int8 --data photos/ --labels labels.txt --output model.tflite
    keras-lowbit convert applications:MobileNetV2 --recipe fat --data photos/ --limit 800 --output m.tflite

Folds batch norms, equalizes where channels share a scale, quantizes, calibrates, corrects biases, learns rounding (w4), tunes
thresholds (fat, w4), exports and verifies against the float model. Each change is judged on images it was not made from. Exit
status 1 if the file does not verify; it is written then, too, and the reason is said. The quantized Keras model is written as
well, m.keras beside m.tflite.

What the steps give is kept beside the output, in m.tflite.stages/ for m.tflite, until the files are written. The same command
with --resume goes on there after a kill, to the same bits.
"""

import dataclasses
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import keras
from absl import flags

from keras_lowbit.cli import options
from keras_lowbit.cli.conversion import Conversion
from keras_lowbit.cli.dataset import define_data, open_data
from keras_lowbit.cli.models import define_model, load_model
from keras_lowbit.cli.recipes import needs
from keras_lowbit.cli.settings import digest_of
from keras_lowbit.cli.stages import ENDING, Stages
from keras_lowbit.convert.post_training.input_checks import warn_of_other_scale
from keras_lowbit.data import batches
from keras_lowbit.deploy.export import ExportReport, export_litert
from keras_lowbit.deploy.litert.target import target_of
from keras_lowbit.deploy.verification.verify import Parity, verify
from keras_lowbit.files import name_of, printable
from keras_lowbit.keras_graph.calls import find_layers
from keras_lowbit.layers import QuantActivation, QuantizedLayer
from keras_lowbit.recipes import Recipe
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
text = (
    "file for the quantized model, which verify and export read; by default --output with .keras at its end, unless that is "
    "MODEL; no for none"
)
flags.DEFINE_string("save", None, text, flag_values=FLAGS)
flags.DEFINE_bool("resume", False, "go on behind the last step of a run that was killed", flag_values=FLAGS)
text = "page (.html) about the result: layers, sizes, parity, ranges, weights; and the same as .json beside it"
flags.DEFINE_string("report", None, text, flag_values=FLAGS)
ARGUMENTS = ("MODEL",)


def run(values: Any, model: str) -> int:
    """Converts, prints the table, and says whether the file verified."""
    recipe, arguments = options.recipe_of(values.recipe), options.file_arguments(values)
    stages = Stages(values.output + ENDING, _settings(values, recipe, model))
    stages.open(values.resume, values.force)
    force = values.force or stages.writing  # what is there may be this run's
    pages = () if values.report is None else paths(values.report)
    saved = options.beside(values.output, ".keras", values.save, taken=model)
    for path in filter(None, (values.output, saved, *pages)):
        options.check_output(path, force)
    if pages:
        check_jinja()
    target_of(values.target)
    if values.resume:
        options.say(_resumed(stages))
    if saved is None and values.save is None:
        options.say("the quantized model is not saved, since its place is MODEL's: --save gives another")
    try:
        with options.working(values), tempfile.TemporaryDirectory() as folder:
            made = _converted(values, model, recipe, arguments, stages, Path(folder))
            stages.begin_writing()
            for path, name in ((saved, "model.keras"), (values.output, "model.tflite")):
                if path is not None:
                    options.write_output(path, Path(folder, name).read_bytes(), force)
            if pages:
                with made.work.step("report"):
                    _report(values, model, made).save(values.report)
    except (ValueError, TypeError, ImportError):  # refused: the same flags would be refused again
        stages.clear()
        raise
    report = dataclasses.replace(made.export, path=name_of(values.output))
    options.show(values, _text(made.work, report, made.parity), _fields(made, report))
    stages.clear()  # last: a kill before it goes on from the finished steps
    return int(not made.parity.ok)


class Made(NamedTuple):
    """What the steps gave."""

    work: Conversion
    quantized: keras.Model
    export: ExportReport
    parity: Parity
    preprocess: str


def _converted(
    values: Any, model: str, recipe: Recipe, arguments: dict[str, Any], stages: Stages, folder: Path
) -> Made:
    """All steps; the files are in the folder."""
    float_model = load_model(model, values)
    check_float(float_model, model)
    check_labels(float_model, arguments.get("labels"))
    if needs(recipe) == "fit":
        warnings.warn(f"{recipe.name} is made for training; without it expect a loss of accuracy", stacklevel=1)
    given = open_data(float_model, values)
    warn_of_other_scale(float_model, next(batches(given.dataset)), [])
    verbose = options.wants_progress(values)
    said = (lambda step: options.say(f"{step} ...")) if verbose else (lambda step: None)
    work = Conversion(float_model, recipe, given.dataset, values.batch_size, stages, verbose, said)
    quantized = work.quantized(values.skip, **options.loops(values))
    made = folder / "model.tflite"
    with work.step("export") as words:
        report = export_litert(quantized, made, **arguments)
        words.append(f"{report.size_bytes:,} bytes")
    with work.step("verify") as words:
        parity = verify(quantized, made, given.dataset, reference=float_model, verbose=verbose)
        words.append("ok" if parity.ok else "NOT OK")
    quantized.save(folder / "model.keras")
    return Made(work, quantized, report, parity, given.preprocess)


def _settings(values: Any, recipe: Recipe, model: str) -> dict[str, Any]:
    """What the steps before the export depend on."""
    names = "untrained classes input_size data data_dir preprocess resize batch_size limit seed skip unroll fuse_lstm"
    found = {"model": model, "model file": digest_of(model), "recipe": recipe.get_config()}
    return {**found, **{name: getattr(values, name) for name in names.split()}}


def _resumed(stages: Stages) -> str:
    if not stages.steps:
        return "nothing to go on from: from the start"
    return f"goes on behind {stages.steps[-1].step}, from {printable(stages.folder)}"


def _report(values: Any, model: str, made: Made) -> Report:
    """The page about all of it; what is known already is not computed again."""
    return make_report(
        made.quantized,
        reference=made.work.model,
        data=made.work.data,
        conversion=made.work.report,
        export=made.export,
        parity=made.parity,
        command=options.command_line("convert", values, model),
        **options.file_arguments(values),
    )


def check_float(model: Any, name: str) -> None:
    """ValueError for a model that is quantized already."""
    if find_layers(model, QuantActivation) or find_layers(model, QuantizedLayer):
        raise ValueError(f"{name} is quantized already: keras-lowbit export writes its file. Give the float model")


def check_labels(model: Any, labels: list[str] | None) -> None:
    """ValueError, before the work, for labels that are not one for each class of the model's first output."""
    classes = model.outputs[0].shape[-1]
    if labels is not None and classes is not None and len(labels) != classes:
        raise ValueError(
            f"--labels has {len(labels)} labels; {model.name!r} has {classes} classes. Give one on each line"
        )


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


def _fields(made: Made, report: ExportReport) -> dict[str, Any]:
    found, work = json.loads(made.parity.to_json()), made.work
    return {
        "model": work.model.name,
        "recipe": work.recipe.name,
        "output": report.path,
        "size_bytes": report.size_bytes,
        "float_weight_bytes": 4 * work.model.count_params(),
        "preprocess": made.preprocess,
        "steps": [dataclasses.asdict(step) for step in work.steps],
        "float_fallbacks": [{"path": each.path, "reason": each.reason} for each in report.float_fallbacks],
        **{name: found[name] for name in ("ok", "problems", "samples", "outputs", "notes")},
    }
