"""INQ at 5, 4, 3 and 2 bits on CIFAR-10, magnitude against random partition, from a pretrained ResNet-20.

    python -m studies.inq_cifar.run                                   # everything in config.json
    python -m studies.inq_cifar.run --methods inq-5-magnitude float-4
    python -m studies.inq_cifar.run --epochs-per-step 2 --last-step-epochs 2 --methods inq-3-random-filter-mse-taught

Every finished run is in result.json at once; runs that are there are skipped, so a killed study goes on where it was.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit import schedules
from keras_lowbit.distill import losses
from keras_lowbit.quantizers import Incremental, PowerOfTwo, Ternary
from studies.common import cifar_resnet
from studies.common.cifar_training import Progress, accuracy, compile_model, run_missing, settings
from studies.common.machine import machine
from studies.common.restarts import Restarts

HERE = Path(__file__).resolve().parent
PARTITIONS = ("magnitude", "random")
# "float-10" trains the float network under the restarts of the ten steps of 2 bits: what the extra epochs alone do.
# "-filter" has one grid per filter, without it there is one per layer; "-mse" has the top power of least squared error,
# without it that of the largest weight. Without both it is the paper's grid.
GRIDS = ("", "-filter", "-mse", "-filter-mse")
# "-taught": the loss is the distance to the pretrained network's logits under the same augmentation, no labels.
METHODS = [f"inq-{bits}-{partition}{grid}" for bits in (5, 4, 3, 2) for grid in GRIDS for partition in PARTITIONS]
METHODS += [f"{method}-taught" for method in METHODS]
# Two bits on a grid that is fitted to the weights: the same schedule over Ternary (TWN) instead of powers of two.
METHODS += ["inq-2-magnitude-ternary", "inq-2-magnitude-ternary-taught"]
METHODS += ["float-4", "float-10", "float-4-taught"]
TEMPERATURE = 4.0  # of the taught runs
REESTIMATION_IMAGES = 4_000


def prepared(method: str, config: dict, folder: Path, seed: int):
    """The model of a method, its callbacks and how many epochs it trains.

    The schedule gives the last step one epoch, in which a cosine over longer steps has hardly begun to fall. Epochs beyond
    the schedule's belong to that step: `last_step_epochs`.
    """
    model = cifar_resnet.pretrained(folder, config["depth"])
    kind, number, *rest = method.split("-")
    length = config["epochs_per_step"]
    if kind == "float":
        return model, [Restarts(length)], (int(number) - 1) * length + 1
    portions = schedules.portions(config.get("portions", int(number)))
    granularity, calibration = "channel" if "filter" in rest else "tensor", "mse" if "mse" in rest else "max"
    grid = PowerOfTwo(int(number), granularity=granularity, calibration=calibration)
    kernel = Incremental(Ternary() if "ternary" in rest else grid, partition=rest[0])
    # Every convolution and the classifier; activations float, as in the paper.
    recipe = klb.recipes.get(f"inq-{number}").replace(
        plan=(klb.recipes.Rule(kernel),), activations=None, schedule={"portions": portions}
    )
    model, _ = klb.quantize_model(model, recipe)
    epochs = (len(portions) - 1) * length + 1
    return model, recipe.callbacks(epochs=epochs, seed=seed), epochs - 1 + config.get("last_step_epochs", 1)


def run_one(method: str, seed: int, config: dict, data, folder: Path) -> dict:
    """Trains one method once; returns its record for result.json."""
    (x_train, y_train), (x_test, y_test) = data
    started = time.perf_counter()
    keras.utils.set_random_seed(seed)
    model, callbacks, epochs = prepared(method, config, folder, seed)
    train = cifar_resnet.AugmentedImages(x_train, y_train, config["batch_size"], seed)
    compile_model(model, config, config["epochs_per_step"] * train.num_batches)
    x_test = cifar_resnet.normalize(x_test)
    curve = slice(config["curve_images"])  # the curves, and what the learning rates were chosen by
    held_back = (x_test[curve], y_test[curve].astype(np.int32))
    if "taught" in method:
        teacher = cifar_resnet.pretrained(folder, config["depth"])
        train, held_back = taught(model, teacher, train), (held_back[0], np.eye(10, dtype=np.float32)[held_back[1]])
    history = model.fit(
        train,
        epochs=epochs,
        validation_data=held_back,
        validation_batch_size=250,
        callbacks=[*callbacks, Progress(f"{method} seed {seed}")],
        verbose=0,
    )
    rest = slice(config["curve_images"], None)
    found = {
        "test_accuracy": accuracy(model, x_test, y_test),
        "held_out_accuracy": accuracy(model, x_test[rest], y_test[rest]),
    }
    # As training saw them: the black borders of the crops are part of the statistics these networks hold.
    seen = cifar_resnet.augment(x_train[:REESTIMATION_IMAGES], np.random.default_rng(seed))
    klb.reestimate_batch_norms(
        model, cifar_resnet.normalize(seen), batch_size=config["batch_size"], check=False, verbose=0
    )
    return {
        "method": method,
        "seed": seed,
        "settings": settings(config),
        "epochs": epochs,
        **found,
        "held_out_accuracy_reestimated": accuracy(model, x_test[rest], y_test[rest]),
        "levels": levels(model),
        "wall_s": round(time.perf_counter() - started, 1),
        "curves": {name: [round(float(value), 5) for value in values] for name, values in history.history.items()},
        "machine": machine(),
    }


def taught(model: keras.Model, teacher: keras.Model, train: keras.utils.PyDataset) -> keras.utils.PyDataset:
    """Compiles the model for the teacher's logits, and gives the data with these in place of the labels.

    The metric stays *accuracy*: in training it is the agreement with the teacher.
    """
    metric = keras.metrics.CategoricalAccuracy(name="accuracy")
    model.compile(model.optimizer, losses.get("kl", TEMPERATURE), metrics=[metric], jit_compile=False)
    return Taught(train, tf.function(lambda images: teacher(images, training=False)))


class Taught(keras.utils.PyDataset):
    """The batches of another data set, with a teacher's logits in place of the labels."""

    def __init__(self, images: keras.utils.PyDataset, teacher):
        super().__init__(workers=1)
        self.images, self.teacher = images, teacher

    @property
    def num_batches(self):
        """Batches in one epoch."""
        return self.images.num_batches

    def __getitem__(self, index):
        images, _ = self.images[index]
        return images, np.asarray(self.teacher(images))

    def on_epoch_end(self):
        """The next epoch of the images."""
        self.images.on_epoch_end()


def levels(model: keras.Model) -> int | None:
    """The most magnitudes besides zero that any filter holds: what the width promises. None for a float network."""
    if not any(isinstance(layer, klb.layers.QuantizedLayer) for layer in model.layers):
        return None
    kernels = [np.abs(np.asarray(weights.real)) for weights in klb.quantized_weights(model).values()]
    filters = [row[row != 0] for kernel in kernels for row in kernel.reshape(-1, kernel.shape[-1]).T]
    return max(np.unique(row).size for row in filters)


def summary(content: dict) -> str:
    """Mean and spread over the seeds, beside the float network, as a text table."""
    groups: dict[tuple, list] = {}
    for run in content["runs"]:
        rate, steps = run["settings"]["learning_rate"], len(run["settings"].get("portions", ())) or "-"
        groups.setdefault((run["method"], run["epochs"], rate, steps), []).append(run)
    titles = ("epochs", "rate", "own steps", "test %", "std", "held out %", "re-estimated %", "magnitudes")
    lines = [f"{'method':<36}{'seeds':>6}" + "".join(f"{title:>{len(title) + 3}}" for title in titles)]
    for name, value in content["float_test_accuracy"].items():
        lines.append(f"{'pretrained ' + name:<70}{100 * value:9.2f}")
    measured = ("test_accuracy", "held_out_accuracy", "held_out_accuracy_reestimated")
    for (method, epochs, rate, steps), runs in groups.items():
        test, held_out, anew = (100 * np.array([run[name] for run in runs]) for name in measured)
        spread = f"{test.std(ddof=1):.2f}" if len(runs) > 1 else "-"
        numbers = f"{test.mean():9.2f}{spread:>6}{held_out.mean():13.2f}{anew.mean():17.2f}"
        lines.append(
            f"{method:<36}{len(runs):6d}{epochs:9d}{rate:7g}{steps:>12}{numbers}{runs[0]['levels'] or '-':>13}"
        )
    return "\n".join(lines)


def parse_arguments(arguments=None) -> tuple[dict, argparse.Namespace]:
    """The configuration with the command line's changes, and the rest of the command line."""
    config = json.loads((HERE / "config.json").read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs-per-step", type=int, default=config["epochs_per_step"])
    parser.add_argument("--last-step-epochs", type=int, default=1, help="epochs of the step with all weights frozen")
    parser.add_argument(
        "--portions", type=float, nargs="+", help="of every step, in place of the paper's for each width"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=config["seeds"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=config["methods"])
    parser.add_argument("--learning-rate", type=float, default=config["learning_rate"])
    parser.add_argument("--threads", type=int, default=0, help="threads per operation; 0: all cores")
    parser.add_argument("--output", type=Path, default=HERE / "result.json")
    parsed = parser.parse_args(arguments)
    if parsed.last_step_epochs < 1:
        parser.error(f"--last-step-epochs {parsed.last_step_epochs} must be at least 1, or some weights stay float")
    for name in ("epochs_per_step", "seeds", "methods", "learning_rate"):
        config[name] = getattr(parsed, name)
    if parsed.last_step_epochs != 1:  # absent from the settings of runs that do not ask for it
        config["last_step_epochs"] = parsed.last_step_epochs
    if parsed.portions:
        config["portions"] = parsed.portions
    return config, parsed


def main(arguments=None) -> None:
    """Runs what is missing and prints the table."""
    config, parsed = parse_arguments(arguments)
    print(summary(run_missing(config, parsed, METHODS, run_one)))


if __name__ == "__main__":
    main()
