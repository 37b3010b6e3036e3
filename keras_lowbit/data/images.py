"""Pictures to batches: decoded, resized, prepared, batched and prefetched by tf.data, a few batches in memory at a time."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_lowbit.arguments import check_seed, check_whole, nearest_first, shown
from keras_lowbit.data.augmentation import AUGMENTATIONS, padded_crop, random_resized_crop
from keras_lowbit.data.preprocessing import MODES, apply_mode

RESIZE = {
    "crop": "the largest centred part of the model's proportions, then resized",
    "stretch": "the whole picture, resized",
}


@dataclasses.dataclass(frozen=True)
class Images:
    """How the pictures of a source become batches of what a model takes, float32 [batch, height, width, channels].

    size: (height, width) of the model's input.   channels: 3 (RGB) or 1.   preprocess: a mode of `preprocessing.MODES`.
    resize: "crop" or "stretch"; both bilinear, with antialiasing. A picture that has the size stays as it is.
    batch_size: samples in a batch.   limit: use so many samples at most.   seed: of the order of files and arrays, and so of
    the choice under a limit; every reading gives the same order. None keeps that of the source.
    epoch: for training: gives a number with which the order of files and arrays is drawn anew at every reading, so that an
    epoch has its own order, also in a process that goes on behind it.
    augment: for training: one of `augmentation.AUGMENTATIONS`, drawn from (seed, epoch, place in the epoch); without `epoch`
    every reading is another epoch.
    Orientation that cameras note in EXIF is not applied: TensorFlow does not read it.
    Raises ValueError for numbers and names that are not among these.

    >>> klb.data.Images((224, 224), preprocess="tf", limit=100).order(1000).shape
    (100,)
    """

    size: tuple[int, int]
    channels: int = 3
    preprocess: str = "none"
    resize: str = "crop"
    batch_size: int = 32
    limit: int | None = None
    seed: int | None = 0
    epoch: Callable[[], int] | None = None
    augment: str | None = None

    def __post_init__(self) -> None:
        for name, value in zip(("height", "width"), self.size, strict=True):
            check_whole("Images", name, value)
        check_whole("Images", "batch_size", self.batch_size)
        check_whole("Images", "limit", 1 if self.limit is None else self.limit)
        check_seed("Images", self.seed)
        for name, known in (("preprocess", MODES), ("resize", RESIZE)):
            if (given := getattr(self, name)) not in known:
                raise ValueError(f"Images got {name}={shown(given)}; choose one of {nearest_first(str(given), known)}.")
        if self.augment is not None and self.augment not in AUGMENTATIONS:
            names = nearest_first(str(self.augment), AUGMENTATIONS)
            raise ValueError(f"Images got augment={shown(self.augment)}; choose one of {names}, or None.")
        if self.channels not in (1, 3):
            raise ValueError(f"Images got channels={shown(self.channels)}; pictures have 1 (grey) or 3 (RGB).")
        if self.channels == 1 and self.preprocess in ("torch", "caffe"):
            raise ValueError(f"preprocess={self.preprocess!r} is for pictures of 3 channels; this model takes 1.")

    def order(self, count: int) -> np.ndarray:
        """Which of `count` samples are used, in which order."""
        rows = np.arange(count) if self.seed is None else np.random.default_rng(self.seed).permutation(count)
        rows = rows[: self.limit]
        return rows if self.epoch is None else np.random.default_rng((self.seed or 0, self.epoch())).permutation(rows)

    def samples(self, count: int, row: Callable[[int], Any], signature: Any) -> Any:
        """A tf.data.Dataset of `row(place)` for the places of `order`, asked for at every reading."""
        import tensorflow as tf

        dataset = tf.data.Dataset.from_generator(lambda: map(row, self.order(count)), output_signature=signature)
        length = count if self.limit is None else min(count, self.limit)
        return dataset.apply(tf.data.experimental.assert_cardinality(length))

    def decoded(self, content: Any, name: Any) -> Any:
        """The uint8 pixels of an encoded picture, in a tf.data function. name: what it is called if it cannot be decoded."""
        import tensorflow as tf

        def decode(content: Any, name: Any) -> Any:
            try:
                return tf.io.decode_image(content, channels=self.channels, expand_animations=False)
            except tf.errors.OpError as error:
                said = str(error.message).split(" [Op:")[0].splitlines()[0].split("}} ")[-1]
                raise ValueError(f"cannot decode {name.numpy().decode(errors='replace')}: {said}") from None

        pixels = tf.py_function(decode, [content, name], tf.uint8)
        pixels.set_shape((None, None, self.channels))
        return pixels

    def prepared(self, pixels: Any, seed: Any = None) -> Any:
        """One picture [height, width, channels] as the model takes it. seed: of its augmentation, two integers."""
        import tensorflow as tf

        pixels = tf.cast(pixels, tf.float32)
        if self.augment == "imagenet":
            pixels = random_resized_crop(pixels, self.size, seed)
        else:
            pixels = self._resized(pixels)
        pixels = tf.ensure_shape(pixels, (*self.size, self.channels))
        if self.augment == "cifar":
            pixels = padded_crop(pixels, seed)
        return apply_mode(self.preprocess, pixels)

    def _resized(self, pixels: Any) -> Any:
        import tensorflow as tf

        if self.resize == "crop":
            height, width = (tf.cast(length, tf.float64) for length in tf.unstack(tf.shape(pixels)[:2]))
            tall, wide = self.size
            kept = tf.minimum(height, tf.round(width * tall / wide)), tf.minimum(width, tf.round(height * wide / tall))
            rows, columns = (tf.cast(tf.maximum(length, 1.0), tf.int32) for length in kept)
            top, left = (tf.cast(height, tf.int32) - rows) // 2, (tf.cast(width, tf.int32) - columns) // 2
            pixels = pixels[top : top + rows, left : left + columns]
        return tf.image.resize(pixels, self.size, antialias=True)

    def _seeds(self) -> Any:
        """A tf.data.Dataset of a seed for each place of an epoch, another one at every reading."""
        import tensorflow as tf

        readings = itertools.count()

        def of_epoch() -> Iterator[tuple[int, int]]:
            number = next(readings) if self.epoch is None else self.epoch()
            return iter([(self.seed or 0, number)])

        first = tf.data.Dataset.from_generator(of_epoch, output_signature=tf.TensorSpec((2,), tf.int32))
        return first.flat_map(
            lambda seed: tf.data.Dataset.counter(dtype=tf.int32).map(lambda place: tf.random.fold_in(seed, place))
        )

    def encoded_batches(self, samples: Any) -> Any:
        """Batches of a tf.data.Dataset of (encoded picture, its name[, label]), in its order."""

        def read(seed: Any, content: Any, name: Any, *label: Any) -> Any:
            return (self.prepared(self.decoded(content, name), seed), *label)

        return self.batches_of(samples, read)

    def batches_of(self, samples: Any, read: Any) -> Any:
        """Batches of a tf.data.Dataset, each sample mapped by ``read(seed of its augmentation, *sample)``; (x,) becomes x."""
        import tensorflow as tf

        def alone(*parts: Any) -> Any:
            return parts if len(parts) > 1 else parts[0]

        samples = samples if self.limit is None else samples.take(self.limit)
        if self.augment is None:
            mapped = samples.map(lambda *parts: alone(*read(None, *parts)), num_parallel_calls=tf.data.AUTOTUNE)
        else:
            drawn, count = tf.data.Dataset.zip(self._seeds(), samples), int(samples.cardinality())
            drawn = drawn if count < 0 else drawn.apply(tf.data.experimental.assert_cardinality(count))
            mapped = drawn.map(lambda seed, parts: alone(*read(seed, *parts)), num_parallel_calls=tf.data.AUTOTUNE)
        return mapped.batch(self.batch_size).prefetch(2)
