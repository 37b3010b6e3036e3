"""SQ against its base quantizers on CIFAR-10, at the same budget, from the same pretrained ResNet-20.

    python -m studies.sq_cifar.run                                # everything in config.json
    python -m studies.sq_cifar.run --epochs 4 --seeds 0 --methods twn sq-twn

Every finished run is in result.json at once; runs that are there are skipped, so a killed study goes on where it was.
Two processes may share one result.json: `--threads 1` for each, on two cores, and other `--seeds` or `--methods`.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_lowbit as klb
from studies.common import cifar_resnet
from studies.common.cifar_training import Progress, accuracy, compile_model, run_missing, settings
from studies.common.machine import machine
from studies.common.restarts import Restarts

HERE = Path(__file__).resolve().parent
FLOAT = "float"  # no quantizer, same budget: what the extra epochs alone do
# Method -> (recipe, restarts). "-restarts" is the fairness control: the base quantizer under SQ's restarts.
METHODS = {
    FLOAT: (None, False),
    "twn": ("twn", False),
    "twn-restarts": ("twn", True),
    "sq-twn": ("sq-twn", True),
    "bwn": ("bwn", False),
    "bwn-restarts": ("bwn", True),
    "sq-bwn": ("sq-bwn", True),
}


def run_one(method: str, seed: int, config: dict, data, folder: Path) -> dict:
    """Trains one method once; returns its record for result.json."""
    (x_train, y_train), (x_test, y_test) = data
    started = time.perf_counter()
    keras.utils.set_random_seed(seed)
    recipe_name, restarts = METHODS[method]
    model = cifar_resnet.pretrained(folder, config["depth"])
    callbacks: list[keras.callbacks.Callback] = []
    if recipe_name is not None:
        recipe = klb.recipes.get(recipe_name).replace(activations=None)  # weights only, as in the paper
        model, _ = klb.quantize_model(model, recipe)  # every convolution and the classifier, as in the paper
        callbacks += recipe.callbacks(epochs=config["epochs"])
    if restarts and not method.startswith("sq-"):
        callbacks.append(Restarts(config["epochs"] // config["stages"]))
    train = cifar_resnet.AugmentedImages(x_train, y_train, config["batch_size"], seed)
    schedule_epochs = config["epochs"] // (config["stages"] if restarts else 1)
    compile_model(model, config, schedule_epochs * train.num_batches)
    x_test = cifar_resnet.normalize(x_test)
    curve = slice(config["curve_images"])  # for the plot only: nothing is chosen by it
    before = accuracy(model, x_test, y_test)
    history = model.fit(
        train,
        epochs=config["epochs"],
        validation_data=(x_test[curve], y_test[curve].astype(np.int32)),
        validation_batch_size=250,
        callbacks=[*callbacks, Progress(f"{method} seed {seed}")],
        verbose=0,
    )
    return {
        "method": method,
        "seed": seed,
        "settings": settings(config),
        "test_accuracy": accuracy(model, x_test, y_test),
        "test_accuracy_before_training": before,
        "wall_s": round(time.perf_counter() - started, 1),
        "curves": {name: [round(float(value), 5) for value in values] for name, values in history.history.items()},
        "machine": machine(),
    }


def summary(content: dict, epochs: int | None = None) -> str:
    """Mean and spread of the test accuracy per budget and method, as a text table."""
    groups: dict[tuple, list] = {}
    for run in content["runs"]:
        if epochs in (None, run["settings"]["epochs"]):
            groups.setdefault((run["settings"]["epochs"], run["method"]), []).append(100 * run["test_accuracy"])
    lines = [f"{'epochs':>6}  {'method':<13} {'seeds':>5}  {'mean %':>7}  {'std':>5}  {'min':>6}  {'max':>6}"]
    for (budget, method), values in groups.items():
        std = f"{np.std(values, ddof=1):5.2f}" if len(values) > 1 else "    -"
        numbers = f"{np.mean(values):7.2f}  {std}  {min(values):6.2f}  {max(values):6.2f}"
        lines.append(f"{budget:6d}  {method:<13} {len(values):5d}  {numbers}")
    return "\n".join(lines)


def parse_arguments(arguments=None) -> tuple[dict, argparse.Namespace]:
    """The configuration with the command line's changes, and the rest of the command line."""
    config = json.loads((HERE / "config.json").read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=config["epochs"], help="total budget of every method")
    parser.add_argument("--seeds", type=int, nargs="+", default=config["seeds"])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=config["methods"])
    parser.add_argument("--learning-rate", type=float, default=config["learning_rate"])
    parser.add_argument("--threads", type=int, default=0, help="threads per operation; 0: all cores")
    parser.add_argument("--output", type=Path, default=HERE / "result.json")
    parsed = parser.parse_args(arguments)
    if parsed.epochs < config["stages"] or parsed.epochs % config["stages"]:
        parser.error(
            f"--epochs {parsed.epochs}: give a multiple of {config['stages']}, so that all stages are equally long"
        )
    for name in ("epochs", "seeds", "methods", "learning_rate"):
        config[name] = getattr(parsed, name)
    return config, parsed


def main(arguments=None) -> None:
    """Runs what is missing, seed by seed, and prints the table."""
    config, parsed = parse_arguments(arguments)
    print(summary(run_missing(config, parsed, METHODS, run_one), config["epochs"]))


if __name__ == "__main__":
    main()
