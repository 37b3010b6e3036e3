"""From a fresh clone to a verified file: the steps of the README, one after the other, with the minutes of each.

    python -m studies.ten_minutes.run

Clones this checkout, installs it into a virtual environment that is made for it, trains a small network of the reader's own
with Keras alone (handwritten digits, pictures in a folder for each class), and gives it to the command line. Needs a network
for pip, or its cache. Writes result.json beside this file; exit status 1 if a step fails.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from keras_lowbit.bench.machine import machine
from keras_lowbit.files import atomic_write

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# What the reader has: a trained model, its pictures, the names of its classes.
OWN = """
import keras, numpy as np
from pathlib import Path
from sklearn.datasets import load_digits
images, labels = load_digits(return_X_y=True)
images = np.round(images.reshape(-1, 8, 8, 1) * 255 / 16)
keras.utils.set_random_seed(0)
layers = keras.layers
model = keras.Sequential([keras.Input((8, 8, 1)), layers.Rescaling(1 / 255),
    layers.Conv2D(16, 3, padding="same", use_bias=False), layers.BatchNormalization(), layers.ReLU(),
    layers.Conv2D(32, 3, 2, padding="same", use_bias=False), layers.BatchNormalization(), layers.ReLU(),
    layers.Conv2D(64, 3, padding="same", use_bias=False), layers.BatchNormalization(), layers.ReLU(),
    layers.GlobalAveragePooling2D(), layers.Dense(10, activation="softmax")])
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(images[:1438], labels[:1438], epochs=15, verbose=0)
print("accuracy in float:", model.evaluate(images[1438:], labels[1438:], verbose=0)[1])
model.save("model.keras")
for place, (image, label) in enumerate(zip(images[1438:], labels[1438:])):
    folder = Path("photos", str(label))
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.save_img(folder / f"{place}.png", image, scale=False)
Path("labels.txt").write_text("".join(f"{digit}\\n" for digit in range(10)))
"""
STEPS = {
    "convert": "convert model.keras --recipe int8 --data photos/ --labels labels.txt --output model.tflite --save q.keras",
    "compare": "compare model.keras model.tflite --data photos/",
    "verify": "verify q.keras model.tflite --data photos/ --reference model.keras",
    "benchmark": "benchmark model.tflite --threads 1 2",
}


def run(folder: Path) -> list[dict[str, object]]:
    """A row for each step: its command, minutes, and what it printed last."""
    bin_folder = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    commands: dict[str, list[str | Path]] = {
        "clone": ["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", folder / "clone"],
        "install": [bin_folder / "python", "-m", "pip", "install", "--quiet", f"{folder / 'clone'}[demo]"],
        "the reader's own model": [bin_folder / "python", "-c", OWN],
        **{name: [bin_folder / "keras-lowbit", *line.split()] for name, line in STEPS.items()},
    }
    rows = []
    for name, command in commands.items():
        begun = time.perf_counter()
        if name == "install":
            venv.create(folder / "venv", with_pip=True)
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        minutes = round((time.perf_counter() - begun) / 60, 2)
        print(f"{name:<24}{minutes:6.2f} min", flush=True)
        said = done.stdout.strip().splitlines()
        rows.append({"step": name, "command": STEPS.get(name, ""), "minutes": minutes, "said": said[-12:]})
        if done.returncode:
            raise SystemExit(f"{name} ended with status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return rows


def main() -> None:
    """Runs the steps, prints their minutes and writes them."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        rows = run(Path(folder))
    total = round(sum(float(str(row["minutes"])) for row in rows), 2)
    print(f"{'together':<24}{total:6.2f} min")
    about = {**machine(), "load_before": load, "load_after": os.getloadavg()[0]}
    report = {"machine": about, "python": sys.version.split()[0], "minutes": total, "steps": rows}
    atomic_write(HERE / "result.json", (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
