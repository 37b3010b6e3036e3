"""The augmentations of the papers' trainings on tf.data: a picture and a seed in, another picture out."""

from typing import Any

AUGMENTATIONS = {
    "cifar": "resized, padded by 4 black pixels, cropped at random to its size, half of them mirrored",
    "imagenet": "a random part (8 to 100 % of the area, proportions 3:4 to 4:3), resized, half of them mirrored",
}
AREA, PROPORTIONS = (0.08, 1.0), (3 / 4, 4 / 3)


def padded_crop(pixels: Any, seed: Any, pad: int = 4) -> Any:
    """A random crop, of its own size, of a picture with zeros around it; mirrored with probability 1/2.

    pixels: [height, width, channels], 0 being black.   seed: two integers, as the stateless functions of TensorFlow take them.
    pad: pixels of zeros on each side, 0 or more.
    Returns a tensor of the picture's shape and type.
    He et al. 2016, arXiv:1512.03385, section 4.2 (CIFAR-10).

    >>> klb.data.padded_crop(tf.constant(images[0]), seed=(0, 1)).shape
    TensorShape([8, 8, 3])
    """
    import tensorflow as tf

    height, width, channels = pixels.shape
    framed = tf.pad(pixels, ((pad, pad), (pad, pad), (0, 0)))
    cropped = tf.image.stateless_random_crop(framed, (height, width, channels), seed)
    return tf.image.stateless_random_flip_left_right(cropped, tf.random.fold_in(seed, 1))


def random_resized_crop(pixels: Any, size: tuple[int, int], seed: Any) -> Any:
    """A random part of a picture, resized (bilinear, antialiased), mirrored with probability 1/2; float32.

    pixels: [height, width, channels] of any size.   size: (height, width) of the result.   seed: two integers.
    The part has `AREA` of the picture's area and `PROPORTIONS` (width to height), drawn until it fits; else it is the whole.
    Returns float32 [*size, channels].
    Szegedy et al. 2015, arXiv:1409.4842, section 6.

    >>> klb.data.random_resized_crop(images[0], size=(6, 6), seed=(0, 1)).shape
    TensorShape([6, 6, 3])
    """
    import tensorflow as tf

    begin, shape, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(pixels),
        tf.zeros((1, 0, 4)),
        seed,
        min_object_covered=0.0,
        aspect_ratio_range=PROPORTIONS,
        area_range=AREA,
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    part = tf.image.resize(tf.slice(pixels, begin, shape), size, antialias=True)
    return tf.image.stateless_random_flip_left_right(part, tf.random.fold_in(seed, 1))
