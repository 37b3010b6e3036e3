"""keras-lowbit demo: the whole way from a float network to verified files, on real images, in under four minutes.

    keras-lowbit demo --output demo_output

Trains a small network on scikit-learn's handwritten digits (8 x 8 pixels, 1,797 images, they come with the package).
From that float network on, TWN, SQ-TWN, BWN and SQ-BWN get the same number of epochs each, with 8-bit activations; the
results are exported to .tflite files, verified layer by layer, and run over the test images. Ends with a table and
writes the files and a picture of the training curves to --output.

What the other commands can be tried on is there too: digits.keras (the float network), digits.npz (images and labels), photos/
(parts of the two photographs that come with scikit-learn) and labels.txt (ten names).
"""

import contextlib
import dataclasses
import io
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from keras_lowbit import schedules
from keras_lowbit.cli import demo_data
from keras_lowbit.figures.canvas import figure
from keras_lowbit.figures.training import FAINT, curve, mark_stages, stage_starts
from keras_lowbit.files import check_writable
from keras_lowbit.keras_graph.depth import build_model

FLAGS = flags.FlagValues()
flags.DEFINE_string("output", "demo_output", "folder for what is written", flag_values=FLAGS)
flags.DEFINE_integer("epochs", 32, "epochs of each quantized run; at least 4", lower_bound=4, flag_values=FLAGS)
flags.DEFINE_integer("float_epochs", 20, "epochs of the float network", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "seed of weights, order of images and SQ's draws", flag_values=FLAGS)

METHODS = ("twn", "sq-twn", "bwn", "sq-bwn")
BASES = {"twn": "Ternary", "bwn": "Binary"}  # each is drawn beside its SQ
EXTRA = "demo"  # brings what the demo needs
STAGES = 4  # of SQ's exponential schedule; it restarts the learning rate in each
BATCH_SIZE = 32
LEARNING_RATE = 4e-3


@dataclasses.dataclass
class Outcome:
    """One row of the table. accuracies: fraction of right test images; size: bytes of the .tflite file."""

    method: str
    accuracy: float
    tflite_accuracy: float
    size_bytes: int
    verified: str
    curve: list[float]


def run(arguments: Any) -> int:
    """Runs the demo; 1 if a file does not verify."""
    import keras

    started = time.perf_counter()
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    check_writable(output / "curves.png")
    figure(1, 1, EXTRA)  # without matplotlib nothing is trained
    digits = load_digits()
    demo_data.write(output, *(np.concatenate(parts) for parts in zip(*digits, strict=True)))
    keras.utils.set_random_seed(arguments.seed)
    model = build_network()
    outcomes = [train_float(model, digits, arguments.float_epochs, output)]
    model.save(output / "digits.keras")
    for method in METHODS:
        keras.utils.set_random_seed(arguments.seed)
        outcomes.append(train_quantized(model, method, digits, arguments.epochs, output))
    print(f"\n{table(outcomes, len(digits[1][1]))}")
    print(f"Every quantized run: {arguments.epochs} epochs from the same float network; seed {arguments.seed}.")
    draw_curves(outcomes, output / "curves.png")
    print(f"Files and curves.png are in {output}{os.sep}.  {time.perf_counter() - started:.0f} s")
    return int(any(outcome.verified == "NO" for outcome in outcomes))


def load_digits() -> tuple[tuple, tuple]:
    """`(x_train, y_train), (x_test, y_test)`: float32 `[n, 8, 8, 1]` in 0..1, int classes; every fifth image tests."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError("The demo's images come with scikit-learn: pip install 'keras_lowbit[demo]'.") from error
    stored = datasets.load_digits()
    images = (stored.images[..., None] / 16).astype(np.float32)
    testing = np.arange(len(images)) % 5 == 4
    return (images[~testing], stored.target[~testing]), (images[testing], stored.target[testing])


def build_network() -> Any:
    """A network of 24,000 weights: three convolutions, batch norm and ReLU after each, and a classifier."""
    import keras
    from keras import layers

    inputs = keras.Input((8, 8, 1), name="image")
    features = inputs
    for index, (width, stride) in enumerate([(16, 1), (32, 2), (64, 1)], start=1):
        features = layers.Conv2D(width, 3, stride, "same", use_bias=False, name=f"conv{index}")(features)
        features = layers.BatchNormalization(momentum=0.9, name=f"bn{index}")(features)
        features = layers.ReLU(name=f"relu{index}")(features)
    features = layers.GlobalAveragePooling2D(name="pool")(features)
    return build_model(inputs, layers.Dense(10, name="classifier")(features), name="digits")


def train_float(model: Any, digits: Any, epochs: int, output: Path) -> Outcome:
    """The network that all methods start from."""
    curve = _fit(model, digits, epochs, epochs, [], "float")
    path = output / "float.tflite"
    _write_float_file(model, path)
    return _outcome("float", model, digits, path, "", curve)


def train_quantized(model: Any, method: str, digits: Any, epochs: int, output: Path) -> Outcome:
    """Quantizes a copy of the float network, tunes it, exports and verifies it."""
    import keras_lowbit as klb

    recipe = klb.recipes.get(method)
    quantized, _ = klb.quantize_model(model, recipe)
    (x_train, _), (x_test, _) = digits
    klb.calibrate(quantized, x_train, batch_size=BATCH_SIZE, verbose=0)
    callbacks = recipe.callbacks(epochs=epochs)
    curve = _fit(quantized, digits, epochs, max(1, epochs // STAGES) if callbacks else epochs, callbacks, method)
    path = output / f"{method}.tflite"
    klb.export_litert(quantized, path, io="float32")
    parity = klb.verify(quantized, path, x_test)
    return _outcome(method, quantized, digits, path, "yes" if parity.ok else "NO", curve)


def _fit(model, digits, epochs, schedule_epochs, callbacks, name) -> list[float]:
    """Adam under a cosine from `LEARNING_RATE` to 0 over that many epochs: all of them, or one stage of SQ."""
    import keras

    started = time.perf_counter()
    (x_train, y_train), test = digits
    steps = schedule_epochs * -(-len(x_train) // BATCH_SIZE)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    history = model.fit(
        x_train, y_train, BATCH_SIZE, epochs, verbose=0, callbacks=callbacks, validation_data=test
    ).history["val_accuracy"]
    print(f"{name:<7} {epochs} epochs, {history[-1]:7.2%} of the test images, {time.perf_counter() - started:.0f} s")
    return history


def _outcome(method, model, digits, path, verified, curve) -> Outcome:
    images, labels = digits[1]
    right = model.predict(images, verbose=0).argmax(-1) == labels
    right_in_file = run_file(path, images).argmax(-1) == labels
    return Outcome(method, right.mean(), right_in_file.mean(), path.stat().st_size, verified, curve)


def _write_float_file(model, path: Path) -> None:
    import tensorflow as tf

    with contextlib.redirect_stdout(io.StringIO()):  # the converter prints the signature of its temporary model
        content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    path.write_bytes(content)


def run_file(path: Path, images: Any) -> Any:
    """Outputs `[n, classes]` of a .tflite file with float input and output, one image after the other."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    result = interpreter.get_output_details()[0]["index"]
    outputs = []
    for image in images:
        interpreter.set_tensor(source, image[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(result)[0])
    return np.stack(outputs)


def table(outcomes: list[Outcome], images: int) -> str:
    """The outcomes as text, with what the figures can and cannot tell."""
    rows = [f"{'method':<8} {'accuracy':>9} {'.tflite':>9} {'size':>9}  verified"]
    for row in outcomes:
        accuracies = f"{row.accuracy:9.2%} {row.tflite_accuracy:9.2%}"
        rows.append(f"{row.method:<8} {accuracies} {row.size_bytes / 1000:6.1f} kB  {row.verified}")
    rows.append(f"{images} test images: one image is {1 / images:.2%}, so small differences are chance.")
    return "\n".join(rows)


def draw_curves(outcomes: list[Outcome], path: Path) -> None:
    """Test accuracy after each epoch, as a PNG: each base beside its SQ, whose stages are marked; float as a line."""
    by_method = {outcome.method: outcome for outcome in outcomes}
    whole = figure(11, 4.5, EXTRA)
    panels = whole.subplots(1, len(BASES), sharey=True)
    for panel, (base, title) in zip(panels, BASES.items(), strict=True):
        accuracy = 100 * by_method["float"].accuracy
        panel.axhline(accuracy, color="0.4", linestyle="--", linewidth=1, label="float, at its end")
        for method, colour in ((base, "tab:blue"), (f"sq-{base}", "tab:orange")):
            curve(panel, [100 * value for value in by_method[method].curve], method.upper(), color=colour)
        epochs = len(by_method[f"sq-{base}"].curve)
        mark_stages([panel], stage_starts([schedules.stage_at(epoch, STAGES, epochs) for epoch in range(epochs)]))
        panel.set(title=f"{title} weights", xlabel="epoch")
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, frameon=False)
    panels[0].set_ylabel("test accuracy, %")
    whole.suptitle(f"scikit-learn digits; SQ evaluates fully quantized\n{FAINT} (SQ)", fontsize="medium")
    whole.savefig(path, dpi=120)
