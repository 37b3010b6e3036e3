"""Fine-tuning of the study: weights train through the straight-through estimator, scales follow them in every step."""

import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_lowbit as klb
from studies.common import cifar_resnet, imagenet
from studies.common.cifar10 import load_cifar10
from studies.common.cifar_training import CACHE, Progress

BATCH_SIZE, IMAGES = 128, 12_800  # one pass: 100 steps
HELD_BACK, EPOCHS, RATE = 192, 3, 2e-4  # without labels


def tune(quantized: keras.Model, folder: Path) -> dict[str, Any]:
    """Trains `quantized` in place for 100 steps on labelled training images of CIFAR-10; what it took."""
    started = time.perf_counter()
    (images, labels), _ = load_cifar10(folder, cache=CACHE)
    train = cifar_resnet.AugmentedImages(images[-IMAGES:], labels[-IMAGES:], BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(0.01, train.num_batches)
    quantized.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    quantized.fit(train, epochs=1, callbacks=[Progress("labels")], verbose=0)
    return {"tuning_images": IMAGES, "tuning_s": round(time.perf_counter() - started, 1)}


def tune_without_labels(quantized: keras.Model, teacher: keras.Model, pixels: np.ndarray) -> dict[str, Any]:
    """Trains all weights of `quantized` in place against the float logits of uint8 images [n, height, width, 3].

    Batch norms keep their statistics; the epoch of least loss on images held back stays, the start if none is better.
    """
    started = time.perf_counter()
    order = np.random.default_rng(0).permutation(len(pixels))  # they are sorted by class
    held_back, images = (imagenet.normalize(pixels[rows]) for rows in np.split(order, [HELD_BACK]))
    history = klb.distill(
        quantized,
        teacher,
        images,
        klb.DistillConfig(
            variables=quantized.trainable_variables,
            learning_rate=RATE,
            period=EPOCHS * -(-len(images) // 16),
        ),
        epochs=EPOCHS,
        batch_size=16,
        validation_data=held_back,
        verbose=2,
    )
    curves = {name: [round(float(value), 5) for value in values] for name, values in history.history.items()}
    return {"tuning_images": len(images), "tuning_s": round(time.perf_counter() - started, 1), "history": curves}
