"""What the CIFAR studies share: one way to train and to measure, and a result file that several processes can fill."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from studies.common import cifar_resnet
from studies.common.cifar10 import data_folder, load_cifar10

CACHE = Path(__file__).resolve().parent / "work" / "cifar10.npz"  # the images, decoded once; ignored by git


class Progress(keras.callbacks.Callback):
    """One line per epoch."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock."""
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Prints what the logs hold."""
        values = "  ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
        print(f"{self.name} epoch {epoch + 1}: {values}  ({time.perf_counter() - self.start:.0f} s)", flush=True)


def compile_model(model: keras.Model, config: dict, schedule_steps: int) -> None:
    """SGD with momentum and a cosine schedule of that many steps.

    Keras' weight_decay is decoupled: it acts once, not through the momentum buffer. L2 of 1e-4 in a solver with
    momentum 0.9 shrinks a weight by lr * 1e-4 / (1 - 0.9) per step in the long run, so that is the value given here.
    """
    rate = keras.optimizers.schedules.CosineDecay(config["learning_rate"], schedule_steps)
    decay = config["l2"] / (1 - config["momentum"])
    model.compile(
        keras.optimizers.SGD(rate, momentum=config["momentum"], weight_decay=decay),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # XLA took over twice as long per step on two CPU cores
    )


def accuracy(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of right classes in inference mode, where SQ quantizes everything (ratio 1)."""
    logits = model.predict(images, batch_size=250, verbose=0)
    return float(np.mean(logits.argmax(-1) == labels))


def settings(config: dict) -> dict:
    """What two runs must share to be compared; not which methods and seeds were asked for."""
    return {name: value for name, value in config.items() if name not in ("methods", "seeds")}


class Results:
    """result.json, read fresh and replaced as a whole under a lock: processes can share it, a kill loses nothing."""

    def __init__(self, path: Path, methods: Iterable[str]):
        self.path = path
        self.methods = list(methods)  # the order of the runs in the file

    def read(self) -> dict:
        """The stored content; an empty study if there is none."""
        return json.loads(self.path.read_text()) if self.path.exists() else {"float_test_accuracy": {}, "runs": []}

    @contextlib.contextmanager
    def update(self):
        """Gives the content to change, and stores it afterwards."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = self.read()
            yield content
            content["runs"].sort(key=self._place)
            partial = self.path.with_suffix(".part")
            partial.write_text(json.dumps(content, indent=1) + "\n")
            os.replace(partial, self.path)

    def _place(self, run: dict) -> tuple:
        known = self.methods.index(run["method"]) if run["method"] in self.methods else len(self.methods)
        return run["settings"].get("epochs", 0), known, run["seed"]  # a method of another version goes last

    def has(self, method: str, seed: int, config: dict) -> bool:
        """Whether that run is finished, with these very settings."""
        wanted = (method, seed, settings(config))
        return any((run["method"], run["seed"], run["settings"]) == wanted for run in self.read()["runs"])


def record_float_accuracy(results: Results, config: dict, data, folder: Path) -> None:
    """Stores the accuracy of the pretrained network, on all test images, once."""
    name = f"resnet{config['depth']}"
    if name in results.read()["float_test_accuracy"]:
        return
    model = cifar_resnet.pretrained(folder, config["depth"])
    images, labels = data[1]
    found = accuracy(model, cifar_resnet.normalize(images), labels)
    with results.update() as content:
        content["float_test_accuracy"][name] = found
    print(f"pretrained {name}: {100 * found:.2f} %")


def run_missing(config: dict, parsed, methods: Iterable[str], run_one: Callable[..., dict]) -> dict:
    """Runs every seed and method that the result file lacks, seed by seed, and gives the file's content.

    parsed: the command line, with `threads` and `output`.   run_one: (method, seed, config, data, folder) -> record.
    """
    if parsed.threads:
        tf.config.threading.set_intra_op_parallelism_threads(parsed.threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    folder = data_folder()
    data = load_cifar10(folder, cache=CACHE)
    results = Results(parsed.output, methods)
    record_float_accuracy(results, config, data, folder)
    for seed in config["seeds"]:  # seed by seed: a study that is cut short has every method
        for method in config["methods"]:
            if results.has(method, seed, config):
                print(f"{method} seed {seed}: already in {parsed.output.name}")
                continue
            record = run_one(method, seed, config, data, folder)
            with results.update() as content:
                content["runs"].append(record)
            print(
                f"{method} seed {seed}: {100 * record['test_accuracy']:.2f} % in {record['wall_s']:.0f} s", flush=True
            )
            keras.backend.clear_session()
    return results.read()
