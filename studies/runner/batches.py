"""Which images a step sees, and how they are cropped and mirrored: a function of (seed, epoch), the same on every backend."""

import dataclasses

import numpy as np

from studies.common.cifar10 import Split

MARGIN = 4  # black pixels on each side, out of which 32 x 32 are cut


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One epoch as integers: for every step and place in the batch the image, its offset, and whether it is mirrored.

    Arrays [steps, batch]. The last, smaller batch is left out: every step has one shape.
    """

    rows: np.ndarray
    top: np.ndarray
    left: np.ndarray
    mirrored: np.ndarray

    def first(self, steps: int | None) -> "Epoch":
        """Only so many steps of it; None: all."""
        return Epoch(*(array[:steps] for array in dataclasses.astuple(self)))


def draw_epoch(images: int, batch_size: int, seed: int, epoch: int) -> Epoch:
    """The order, crops and mirrors of an epoch."""
    if images < batch_size:
        raise ValueError(f"{images} training images do not fill one batch of {batch_size}. Give a smaller batch_size.")
    rng = np.random.default_rng((seed, epoch))
    shape = (images // batch_size, batch_size)
    rows = rng.permutation(images)[: shape[0] * batch_size].reshape(shape)
    top, left = rng.integers(0, 2 * MARGIN + 1, (2, *shape))
    return Epoch(rows.astype(np.int32), top.astype(np.int32), left.astype(np.int32), rng.random(shape) < 0.5)


def pad(images: np.ndarray) -> np.ndarray:
    """uint8 `[n, height, width, 3]` with the black border that crops are cut from."""
    return np.pad(images, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)))


def cut(padded: np.ndarray, epoch: Epoch, step: int) -> np.ndarray:
    """The images of one step, uint8 `[batch, height, width, 3]`."""
    rows, top, left, mirrored = (array[step] for array in dataclasses.astuple(epoch))
    height, width = (size - 2 * MARGIN for size in padded.shape[1:3])
    columns = np.arange(width)
    across = left[:, None] + np.where(mirrored[:, None], columns[::-1], columns)
    down = top[:, None] + np.arange(height)
    return padded[rows[:, None, None], down[:, :, None], across[:, None, :]]


def hold_out(train: Split, count: int) -> tuple[Split, Split]:
    """Training images without the last `count`, and these."""
    images, labels = train
    if not 0 < count < len(images):
        raise ValueError(f"held_out={count} must leave some of the {len(images)} training images on both sides.")
    return (images[:-count], labels[:-count]), (images[-count:], labels[-count:])
