"""keras-lowbit train: quantizes a float model by a recipe and trains it, stage by stage; it goes on where it was killed.

    keras-lowbit train digits.keras --recipe sq-twn --data digits.npz --epochs 8 --output q.keras --checkpoint state/

The model learns the labels of the data, or with --teacher the outputs of another model, for which the data need none. With
--checkpoint the state is kept there after every epoch; the same command then goes on where it was, to the same bits. Folders
and arrays are read in another order in each epoch, TFRecord files and tfds: sets in their own. The result is a .keras file,
and beside it, q.tflite for q.keras, the file that keras-lowbit export makes of it. Exit status 1 if there is no such file; why
is said, and the .keras file is there.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import keras
from absl import flags

from keras_lowbit.callbacks.batch_norms import reestimate_batch_norms
from keras_lowbit.callbacks.summaries import QuantizationSummaries
from keras_lowbit.cli import options
from keras_lowbit.cli.backup import Backup
from keras_lowbit.cli.conversion import Epoch
from keras_lowbit.cli.convert import check_float, check_labels
from keras_lowbit.cli.dataset import define_data, open_data
from keras_lowbit.cli.models import define_model, load_model, read_model
from keras_lowbit.cli.recipes import needs
from keras_lowbit.cli.settings import check_same, digest_of, read_fields
from keras_lowbit.convert.post_training.calibrate import calibrate
from keras_lowbit.convert.quantize_model import quantize_model
from keras_lowbit.data import AUGMENTATIONS, batch_count
from keras_lowbit.deploy.export import export_litert
from keras_lowbit.deploy.litert.target import target_of
from keras_lowbit.distill import losses
from keras_lowbit.distill.logits import logits_model
from keras_lowbit.files import atomic_write, printable
from keras_lowbit.recipes import Recipe

FLAGS = flags.FlagValues()
options.define_json(FLAGS)
options.define_output(FLAGS, "the .keras file to write")
options.define_recipe(FLAGS)
define_data(FLAGS)
options.define_file(FLAGS)
define_model(FLAGS)
text = "the .tflite file; by default --output with .tflite at its end; no for none"
flags.DEFINE_string("file", None, text, flag_values=FLAGS)
flags.DEFINE_integer("epochs", 8, "epochs, of all stages together", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_float(
    "learning_rate", 1e-3, "of Adam, where a stage begins; to 0 along a cosine", lower_bound=0, flag_values=FLAGS
)
flags.DEFINE_string("validation", None, "data to evaluate on after every epoch, as --data", flag_values=FLAGS)
flags.DEFINE_string("teacher", None, "model whose outputs are learnt in place of labels", flag_values=FLAGS)
flags.DEFINE_float("temperature", 4.0, "of the teacher's outputs", lower_bound=0.01, flag_values=FLAGS)
flags.DEFINE_string("checkpoint", None, "folder for the state, to go on from after a kill", flag_values=FLAGS)
text = "; ".join(f"{name}: {meaning}" for name, meaning in AUGMENTATIONS.items())
flags.DEFINE_enum("augment", None, list(AUGMENTATIONS), f"of pictures that train. {text}", flag_values=FLAGS)
text = "folder for event files: ratio, flips, ranges, sparsity, histograms of codes, after every epoch"
flags.DEFINE_string("tensorboard", None, text, flag_values=FLAGS)
ARGUMENTS = ("MODEL",)
SETTINGS = "settings.json"  # of the run whose state a folder holds
_CALIBRATED_FROM = 256  # samples


def run(values: Any, model: str) -> int:
    """Trains and writes the quantized model and its file."""
    recipe, arguments = options.recipe_of(values.recipe), options.file_arguments(values)
    file = options.beside(values.output, ".tflite", values.file)
    if needs(recipe) == "distill":
        raise flags.Error(f"--recipe={values.recipe} is tuned without training: keras-lowbit convert does it")
    settings = None if values.checkpoint is None else Settings(values, recipe, model)
    force = values.force or (settings is not None and settings.writing)  # what is there may be this run's
    for path in filter(None, (values.output, file)):
        options.check_output(path, force)
    target_of(values.target)
    if values.tensorboard is not None and os.path.exists(values.tensorboard) and not os.path.isdir(values.tensorboard):
        raise flags.Error(f"--tensorboard={printable(values.tensorboard)} is a file. Give a folder")
    if settings is not None:
        settings.write(settings.writing)
    backup = None if values.checkpoint is None else Backup(values.checkpoint)
    with options.working(values), tempfile.TemporaryDirectory() as folder:
        quantized, history = _trained(values, recipe, model, arguments.get("labels"), backup)
        quantized.save(Path(folder, "q.keras"))
        reason = "" if file is None else _exported(quantized, Path(folder, "q.tflite"), arguments)
        if settings is not None:
            settings.write(writing=True)
        options.write_output(values.output, Path(folder, "q.keras").read_bytes(), force)
        if file is not None and not reason:
            options.write_output(file, Path(folder, "q.tflite").read_bytes(), force)
    _show(values, recipe, history, file, reason)
    if backup is not None:  # last: a kill before it goes on from the last epoch
        backup.clear()
    if settings is not None:
        settings.clear()
    return int(bool(reason))


def _show(values: Any, recipe: Recipe, history: dict[str, list[float]], file: str | None, reason: str) -> None:
    last = ", ".join(f"{name} {series[-1]:.4g}" for name, series in history.items())
    lines = [f"{printable(values.output)}: {recipe.name}, {values.epochs} epochs; last: {last or 'done before'}"]
    if file is not None:
        lines.append(
            f"no {printable(file)}: {reason}" if reason else f"{printable(file)}: {os.path.getsize(file):,} bytes"
        )
    fields = {"output": values.output, "file": None if reason else file, "no_file_because": reason}
    options.show(
        values, "\n".join(lines), {**fields, "recipe": recipe.name, "epochs": values.epochs, "history": history}
    )


def _exported(quantized: keras.Model, path: Path, arguments: dict[str, Any]) -> str:
    """Writes the file; why there is none, or ""."""
    try:
        export_litert(quantized, path, **arguments)
    except (ValueError, NotImplementedError) as error:  # the training is not lost by it
        return str(error)
    return ""


def _trained(
    values: Any, recipe: Recipe, name: str, labels: list[str] | None, backup: Backup | None
) -> tuple[keras.Model, dict[str, list[float]]]:
    keras.utils.set_random_seed(values.seed)
    float_model, epoch = load_model(name, values), Epoch()
    check_float(float_model, name)
    check_labels(float_model, labels)
    fixed = open_data(float_model, values).dataset
    data = open_data(float_model, values, quiet=True, epoch=lambda: epoch.number, augment=values.augment).dataset
    held = None if values.validation is None else open_data(float_model, values, values.validation).dataset
    quantized, _ = quantize_model(float_model, recipe, skip=values.skip, **options.loops(values))
    verbose = options.wants_progress(values)
    calibrate(quantized, fixed, steps=_first(values), verbose=verbose)
    student = logits_model(quantized)
    learnt, loss, metrics = _objective(values, student, data)
    steps = batch_count(data)
    if steps is None:
        steps = sum(1 for _ in data)
    callbacks: list[Any] = recipe.callbacks(epochs=values.epochs)
    stages = len(callbacks[0].values) if callbacks else 1
    decay = keras.optimizers.schedules.CosineDecay(values.learning_rate, steps * max(1, values.epochs // stages))
    student.compile(keras.optimizers.Adam(decay), loss, metrics=metrics)
    callbacks.append(epoch)
    if values.tensorboard is not None:
        callbacks.append(QuantizationSummaries(values.tensorboard))
    done = 0
    if backup is not None:
        done = backup.restore(student)
        callbacks.append(backup)
    validation = None if held is None else _objective(values, student, held)[0]
    history = student.fit(
        learnt,
        shuffle=False,
        initial_epoch=done,
        epochs=values.epochs,
        callbacks=callbacks,
        validation_data=validation,
        verbose=2 * verbose,
    )
    if "portions" in recipe.schedule:  # nothing but batch norms follows the last frozen weights
        reestimate_batch_norms(quantized, fixed, reference=float_model, verbose=verbose)
        calibrate(quantized, fixed, steps=_first(values), verbose=verbose)
    return quantized, {key: [float(value) for value in series] for key, series in history.history.items()}


def _first(values: Any) -> int:
    return max(1, _CALIBRATED_FROM // values.batch_size)


def _objective(values: Any, student: keras.Model, data: Any) -> tuple[Any, Any, list[Any]]:
    """The data as pairs, the loss on logits, and the metrics: of labels, or of a teacher's logits."""
    if len(student.outputs) != 1:
        raise ValueError(f"train is for models with one output; {student.name!r} has {len(student.outputs)}. Use fit")
    if values.teacher is not None:
        teacher = logits_model(read_model(values.teacher))
        taught = data.map(lambda x, *labels: (x, teacher(x, training=False)))
        return taught, losses.get("kl", values.temperature), []
    if not isinstance(data.element_spec, tuple):
        raise ValueError(f"--data={values.data} has no labels. Give data by class, or a model to learn from: --teacher")
    if student.output_shape[-1] == 1:
        return (
            data,
            keras.losses.BinaryCrossentropy(from_logits=True),
            [keras.metrics.BinaryAccuracy("accuracy", threshold=0.0)],
        )
    metric = keras.metrics.SparseCategoricalAccuracy("accuracy")
    return data, keras.losses.SparseCategoricalCrossentropy(from_logits=True), [metric]


class Settings:
    """What a run depends on, in the folder of its state.   writing: its files are about to be written, or some are.

    flags.Error if the folder holds the state of another run.
    """

    def __init__(self, values: Any, recipe: Recipe, model: str) -> None:
        names = (
            "data data_dir preprocess resize batch_size limit seed skip unroll fuse_lstm epochs learning_rate validation "
            "teacher temperature augment"
        )
        self.fields = {
            "model": model,
            "model file": digest_of(model),
            "recipe": recipe.get_config(),
            **{name: getattr(values, name) for name in names.split()},
        }
        self.path = os.path.join(values.checkpoint, SETTINGS)
        found = read_fields(self.path, "Give another --checkpoint")
        self.writing = found is not None and bool(found.get("writing"))
        if found is not None:
            check_same(f"--checkpoint={printable(values.checkpoint)}", found, self.fields, "or another folder")

    def write(self, writing: bool) -> None:
        """To the folder, which is made if need be."""
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        atomic_write(self.path, json.dumps({**self.fields, "writing": writing}, indent=1).encode())

    def clear(self) -> None:
        """The run is done."""
        os.unlink(self.path)
