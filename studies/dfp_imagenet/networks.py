"""The networks of the study with their images: what is converted, on what, and how accuracy is measured."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_lowbit as klb
from keras_lowbit.deploy.litert.file_runner import FileRunner
from studies.common import cifar_resnet, imagenet
from studies.common.cifar10 import load_cifar10
from studies.common.cifar_training import CACHE


@dataclasses.dataclass(frozen=True)
class Network:
    """A pretrained network and where its images come from.

    make: builds it.   tuning: images for calibration and statistics, [n, h, w, 3] ready for the network; never the
    labelled ones.   statistics: how many of them.   batch_size: of their forward passes; every batch encodes every
    kernel, so few, large ones.   labelled: images and classes that accuracy is measured on.
    """

    make: Callable[[Path], keras.Model]
    tuning: Callable[[Path, int], np.ndarray]
    labelled: Callable[[Path, int], tuple[np.ndarray, np.ndarray]]
    statistics: int
    batch_size: int


def _imagenet_tuning(folder: Path, count: int) -> np.ndarray:
    pixels, _ = imagenet.images(folder, imagenet.TRAINING)
    return imagenet.normalize(pixels[_spread(len(pixels), count)])  # they are sorted by class


def _imagenet_labelled(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    pixels, classes = imagenet.images(folder, imagenet.VALIDATION, count)
    return imagenet.normalize(pixels), classes


def _cifar_tuning(folder: Path, count: int) -> np.ndarray:
    (images, _), _ = load_cifar10(folder, cache=CACHE)
    # Augmented as in training, crops with black borders included: statistics of the images as they are cost 3 points.
    augmented = cifar_resnet.augment(images[:count], np.random.default_rng(0))  # the file is shuffled
    return cifar_resnet.normalize(augmented)


def _cifar_labelled(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    _, (images, labels) = load_cifar10(folder, cache=CACHE)
    return cifar_resnet.normalize(images[:count]), labels[:count]


def _spread(size: int, count: int) -> np.ndarray:
    return np.linspace(0, size - 1, min(count, size)).round().astype(int)


NETWORKS = {
    "resnet20": Network(lambda folder: cifar_resnet.pretrained(folder, 20), _cifar_tuning, _cifar_labelled, 2048, 256),
    "resnet56": Network(lambda folder: cifar_resnet.pretrained(folder, 56), _cifar_tuning, _cifar_labelled, 2048, 256),
    "mobilenet_v1": Network(imagenet.mobilenet_v1, _imagenet_tuning, _imagenet_labelled, 192, 64),
    "mobilenet_v2": Network(imagenet.mobilenet_v2, _imagenet_tuning, _imagenet_labelled, 192, 64),
}


def file_accuracy(model: keras.Model, file: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of right classes of the exported int8 file, run by LiteRT: the integer pipeline, not its simulation."""
    klb.export_litert(model, file)
    return float(np.mean(FileRunner(file).run([images])[0].argmax(-1) == labels))


def keras_accuracy(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of right classes of a float model."""
    return float(np.mean(model.predict(images, batch_size=32, verbose=0).argmax(-1) == labels))


def unfold_batch_norms(model: keras.Model, images: np.ndarray, batch_size: int = 32) -> None:
    """Gives batch norms that hold only a bias the statistics of data back; the function of the model does not change.

    A folded batch norm is ``y = x + b``. With mean m and variance v of x over the images it is also
    ``y = sqrt(v + eps) * (x - m) / sqrt(v + eps) + (b + m)``, and m and v can be taken anew once weights are quantized.
    """
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    watch = keras.Model(model.input, [norm.input for norm in norms])
    sums: list[Any] = [np.zeros((2, norm.input.shape[-1])) for norm in norms]
    count = [0] * len(norms)
    for start in range(0, len(images), batch_size):
        for index, values in enumerate(watch(images[start : start + batch_size], training=False)):
            rows = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
            sums[index] += [rows.sum(0), np.square(rows).sum(0)]
            count[index] += len(rows)
    for norm, (total, squares), size in zip(norms, sums, count, strict=True):
        gamma, beta, mean, variance = (np.asarray(value, np.float64) for value in norm.get_weights())
        factor = gamma / np.sqrt(variance + norm.epsilon)
        new_mean = total / size
        new_variance = np.maximum(squares / size - new_mean**2, 0.0)
        root = np.sqrt(new_variance + norm.epsilon)
        norm.set_weights([factor * root, beta + factor * (new_mean - mean), new_mean, new_variance])
