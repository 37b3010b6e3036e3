"""Fine-tuning of the study: weights train through the straight-through estimator, scales follow them in every step."""

import time
from pathlib import Path
from typing import Any

import keras

from keras_lowbit.data import load_cifar10
from studies.common import cifar_resnet
from studies.common.cifar_training import CACHE, Progress

BATCH_SIZE, IMAGES = 128, 12_800  # one pass: 100 steps


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
