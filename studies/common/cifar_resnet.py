"""ResNet-20, -32, -44, -56 for CIFAR-10, with the layer names of the pretrained weights, and their input values.

He et al. 2015, arXiv:1512.03385, section 4.2; weights by akamaster/pytorch_resnet_cifar10 (BSD-2-Clause).
"""

import os

import keras
import numpy as np
from keras import layers

MEAN = np.float32([0.485, 0.456, 0.406])
STD = np.float32([0.229, 0.224, 0.225])
_WIDTHS = (16, 32, 64)


def normalize(images: np.ndarray) -> np.ndarray:
    """uint8 RGB `[n, 32, 32, 3]` -> the float32 values that the pretrained networks expect: (x / 255 - mean) / std."""
    return (images.astype(np.float32) / 255 - MEAN) / STD


def cifar_resnet(
    depth: int = 20, classes: int = 10, norm: type[layers.Layer] = layers.BatchNormalization
) -> keras.Model:
    """Functional ResNet of `6 n + 2` layers: float32 `[batch, 32, 32, 3]` in, logits `[batch, classes]` out.

    Shortcuts are option A of the paper: where the width doubles, every second pixel, and zeros for the new channels,
    half of them on each side. Convolutions pad 1 on every side, also at stride 2 (not TensorFlow's SAME).
    norm: the class of the batch norms.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"A CIFAR ResNet has 6 n + 2 layers, got depth={depth}. Use 20, 32, 44 or 56.")
    inputs = keras.Input((32, 32, 3), name="image")
    features = _conv_bn(inputs, 16, 1, "conv1", "bn1", norm)
    features = layers.ReLU(name="relu1")(features)
    for group, width in enumerate(_WIDTHS, start=1):
        for block in range(blocks):
            stride = 2 if group > 1 and block == 0 else 1
            features = _residual_block(features, width, stride, f"layer{group}_{block}_", norm)
    pooled = layers.GlobalAveragePooling2D(name="pool")(features)
    return keras.Model(inputs, layers.Dense(classes, name="linear")(pooled), name=f"cifar_resnet{depth}")


def _residual_block(features, width, stride, prefix, norm):
    main = _conv_bn(features, width, stride, f"{prefix}conv1", f"{prefix}bn1", norm)
    main = layers.ReLU(name=f"{prefix}relu1")(main)
    main = _conv_bn(main, width, 1, f"{prefix}conv2", f"{prefix}bn2", norm)
    if stride == 2:
        features = _option_a(features, width, prefix)
    return layers.ReLU(name=f"{prefix}relu2")(layers.Add(name=f"{prefix}add")([main, features]))


def _conv_bn(features, width, stride, conv_name, bn_name, norm):
    if stride == 1:
        padding = "same"
    else:  # SAME would pad 0 before and 1 after here
        features = layers.ZeroPadding2D(1, name=f"{conv_name}_pad")(features)
        padding = "valid"
    features = layers.Conv2D(width, 3, stride, padding, use_bias=False, name=conv_name)(features)
    # momentum 0.9 is 0.1 in PyTorch's words
    return norm(momentum=0.9, epsilon=1e-5, name=bn_name)(features)


def _option_a(features, width, prefix):
    """`x[:, ::2, ::2]` and zero channels before and after, in stock layers that convert and export."""
    smaller = layers.AveragePooling2D(1, 2, name=f"{prefix}subsample")(features)  # a 1x1 window: every second pixel
    new_channels = (width - smaller.shape[-1]) // 2
    # ZeroPadding2D pads the two middle axes, so channels stand in the middle for a moment.
    height, columns, channels = smaller.shape[1:]
    flat = layers.Reshape((height * columns, channels, 1), name=f"{prefix}flat")(smaller)
    wider = layers.ZeroPadding2D(((0, 0), (new_channels, new_channels)), name=f"{prefix}widen")(flat)
    return layers.Reshape((height, columns, width), name=f"{prefix}shortcut")(wider)


def load_weights(model: keras.Model, path: str | os.PathLike) -> keras.Model:
    """Fills `model` with the arrays of an npz file, named `<layer>/<weight>`, and returns it.

    Raises ValueError unless every weight of the model is in the file with its shape, and every array has its place.
    """
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    places = {f"{layer.name}/{weight.name}": weight for layer in model.layers for weight in layer.weights}
    if wrong := sorted(places.keys() ^ arrays.keys()):
        raise ValueError(f"{path} and {model.name} differ in {wrong[:5]}. Is it the file of this depth?")
    for name, weight in places.items():
        weight.assign(arrays[name])  # Keras checks the shape and names both
    return model


def pretrained(folder: str | os.PathLike, depth: int = 20, **choices) -> keras.Model:
    """The trained network of `folder`: depth 20 (91.73 % on the test images) or 56 (93.39 %)."""
    return load_weights(cifar_resnet(depth, **choices), os.path.join(folder, f"cifar10_resnet{depth}.npz"))


def augment(images: np.ndarray, rng: np.random.Generator, margin: int = 4) -> np.ndarray:
    """One epoch of standard augmentation: a random crop of the zero-padded image, half of them mirrored.

    images: `[n, height, width, 3]`; the border is 0, black in images that are not normalised yet.
    Images that share an offset are copied together: 81 copies, not n.
    """
    count, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    top, left = rng.integers(0, 2 * margin + 1, (2, count))
    result = np.empty_like(images)
    for y in range(2 * margin + 1):
        for x in range(2 * margin + 1):
            chosen = np.flatnonzero((top == y) & (left == x))
            result[chosen] = padded[chosen, y : y + height, x : x + width]
    mirrored = np.flatnonzero(rng.random(count) < 0.5)
    result[mirrored] = result[mirrored, :, ::-1]
    return result


class AugmentedImages(keras.utils.PyDataset):
    """Shuffled, augmented, normalised batches; every epoch is a function of (seed, epoch), so a run can resume.

    images: uint8 `[n, 32, 32, 3]`.   labels: `[n]`.   The last, smaller batch is left out: every step has one shape.
    """

    def __init__(self, images, labels, batch_size=128, seed=0, first_epoch=0):
        super().__init__(workers=1)
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.seed, self.epoch = seed, first_epoch
        self._prepare()

    def _prepare(self):
        rng = np.random.default_rng((self.seed, self.epoch))
        self._order = rng.permutation(len(self.images))
        self._augmented = augment(self.images, rng)

    @property
    def num_batches(self):
        """Batches in one epoch."""
        return len(self.images) // self.batch_size

    def __getitem__(self, index):
        chosen = self._order[index * self.batch_size : (index + 1) * self.batch_size]
        return normalize(self._augmented[chosen]), self.labels[chosen].astype(np.int32)

    def on_epoch_end(self):
        """Draws the crops, mirrors and order of the next epoch."""
        self.epoch += 1
        self._prepare()
