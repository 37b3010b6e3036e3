"""The real MobileNets and ImageNet crops of the data folder, as Keras models and arrays."""

import csv
import io
import zipfile
from pathlib import Path

import keras
import numpy as np

VALIDATION, TRAINING = "imagenet_val1024_224.zip", "imagenet_train1000_224.zip"


def images(folder: Path, name: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """uint8 RGB images [n, 224, 224, 3] and classes [n] (0..999, Keras order) of one of the two packed sets."""
    from PIL import Image

    with zipfile.ZipFile(folder / name) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))[:count]
        pixels = [np.asarray(Image.open(io.BytesIO(archive.read(row["file"]))).convert("RGB")) for row in rows]
    return np.stack(pixels), np.array([int(row["class"]) for row in rows], np.int32)


def normalize(pixels: np.ndarray) -> np.ndarray:
    """What both MobileNets were trained on: ``x / 127.5 - 1``, float32."""
    return pixels.astype(np.float32) / 127.5 - 1.0


def labels(folder: Path) -> list[str]:
    """Names of the 1000 classes, without their WordNet numbers."""
    lines = (folder / "imagenet_labels.txt").read_text().splitlines()
    return [line.split(" ", 1)[1] for line in lines]


def mobilenet_v1(folder: Path) -> keras.Model:
    """keras.applications' MobileNet of width 0.75 with the published weights, batch norms as they were trained."""
    with np.load(folder / "mobilenet_v1_075_224.npz") as packed:
        weights = {name: packed[name] for name in packed.files}
    model = keras.applications.MobileNet(alpha=0.75, weights=None)
    for layer in model.layers:
        if layer.weights:
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            names = ["depthwise_kernel"] if depthwise else [weight.name for weight in layer.weights]
            layer.set_weights([weights[f"{layer.name}/{name}"] for name in names])
    return model


def mobilenet_v2(folder: Path) -> keras.Model:
    """keras.applications' MobileNetV2 with the published weights; their folded batch norms become pure biases."""
    with np.load(folder / "mobilenet_v2_100_224.npz") as packed:
        weights = {name: packed[name] for name in packed.files}
    head = weights["Logits/kernel_int8"].astype(np.float32) * weights["Logits/kernel_scale"]
    model = keras.applications.MobileNetV2(weights=None)
    convolution_of = {"bn_Conv1": "Conv1", "Conv_1_bn": "Conv_1"}
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            bias = weights[convolution_of.get(layer.name, layer.name[:-3]) + "/bias"]
            variance = np.full_like(bias, 1 - layer.epsilon)
            layer.set_weights([np.ones_like(bias), bias, np.zeros_like(bias), variance])
        elif layer.name == "predictions":
            layer.set_weights([head, weights["Logits/bias"]])
        elif layer.weights:
            kind = "depthwise_kernel" if isinstance(layer, keras.layers.DepthwiseConv2D) else "kernel"
            layer.set_weights([weights[f"{layer.name}/{kind}"]])
    return model
