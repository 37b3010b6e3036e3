"""Fine-tuning of the study: weights train through the straight-through estimator, scales follow them in every step."""

import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_lowbit.data import load_cifar10
from studies.common import cifar_resnet
from studies.common.cifar_training import CACHE, Progress

BATCH_SIZE, EPOCHS = 128, 1


def tune(how: str, quantized: keras.Model, teacher: keras.Model, folder: Path, images: np.ndarray) -> dict[str, Any]:
    """Trains `quantized` in place; what it took. how: "labels" (CIFAR-10) or "label-free" (the teacher's logits)."""
    started = time.perf_counter()
    found = _labels(quantized, folder) if how == "labels" else _label_free(quantized, teacher, images)
    return found | {"tuning_s": round(time.perf_counter() - started, 1)}


def _labels(quantized: keras.Model, folder: Path) -> dict[str, Any]:
    (images, labels), _ = load_cifar10(folder, cache=CACHE)
    train = cifar_resnet.AugmentedImages(images, labels, BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(0.01, EPOCHS * train.num_batches)
    quantized.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    quantized.fit(train, epochs=EPOCHS, callbacks=[Progress("labels")], verbose=0)
    return {"epochs": EPOCHS, "tuning_images": len(images)}


def _label_free(quantized: keras.Model, teacher: keras.Model, images: np.ndarray) -> dict[str, Any]:
    """Towards the float network's class probabilities, batch norms in inference mode, Adam at 1e-4 (the paper's rate)."""
    targets = teacher.predict(images, batch_size=32, verbose=0)
    for layer in quantized.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    quantized.compile(keras.optimizers.Adam(1e-4), "kl_divergence", jit_compile=False)
    quantized.fit(images, targets, batch_size=32, epochs=2, callbacks=[Progress("label-free")], verbose=0)
    return {"epochs": 2, "tuning_images": len(images)}
