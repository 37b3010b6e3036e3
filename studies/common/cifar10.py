"""The folder of real data, and the packed CIFAR-10 in it."""

import io
import lzma
import os
import zipfile
from pathlib import Path

import numpy as np

from keras_lowbit.files import atomic_write

_FOLDER_VARIABLE = "KERAS_LOWBIT_DATA"
_SPLITS = ("train", "test")
Split = tuple[np.ndarray, np.ndarray]


def data_folder() -> Path:
    """The folder with the data sets and pretrained networks of the studies.

    It is `$KERAS_LOWBIT_DATA`; without that variable, `../shared/data` beside this repository or beside the current
    folder. Raises FileNotFoundError, saying where it looked, when there is none.
    """
    named = os.environ.get(_FOLDER_VARIABLE)
    if named:
        candidates = [Path(named)]
    else:
        repository = Path(__file__).resolve().parent.parent
        candidates = [base.parent / "shared" / "data" for base in (repository, Path.cwd())]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    looked = ", ".join(sorted({str(candidate) for candidate in candidates}))
    raise FileNotFoundError(
        f"No data folder: looked at {looked}. Set {_FOLDER_VARIABLE} to the folder that holds the data sets."
    )


def load_cifar10(
    folder: str | os.PathLike | None = None, cache: str | os.PathLike | None = None
) -> tuple[Split, Split]:
    """CIFAR-10 from `cifar10.npz` in `folder` (default `data_folder()`): `(x_train, y_train), (x_test, y_test)`.

    x: uint8 RGB `[n, 32, 32, 3]`, y: uint8 classes 0..9, 50,000 and 10,000 of them, shuffled by the packer.
    cache: file for an uncompressed copy (184 MB), written once and read from then on; decoding takes seconds.

    A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    if cache is not None and Path(cache).exists():
        with np.load(cache) as stored:
            train, test = ((stored[f"x_{split}"], stored[f"y_{split}"]) for split in _SPLITS)
            return train, test
    train, test = (load_cifar10_split(split, folder) for split in _SPLITS)
    if cache is not None:
        stream = io.BytesIO()
        np.savez(stream, x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])
        Path(cache).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(cache, stream.getvalue())
    return train, test


def load_cifar10_split(split: str, folder: str | os.PathLike | None = None) -> Split:
    """One split of `load_cifar10`, "train" or "test", without decoding the other."""
    if split not in _SPLITS:
        raise ValueError(f"Unknown split {split!r} of CIFAR-10. Known: {', '.join(_SPLITS)}.")
    path = Path(data_folder() if folder is None else folder) / "cifar10.npz"
    if not path.is_file():
        raise FileNotFoundError(f"No {path}. Set {_FOLDER_VARIABLE} to the folder that holds cifar10.npz.")
    try:
        with np.load(path) as packed:
            labels = packed[f"y_{split}"]
            streams = [packed[f"{split}_{plane}"].tobytes() for plane in ("g", "rg", "bg")]
        residuals = [np.frombuffer(lzma.decompress(stream), np.uint8) for stream in streams]
        green, red, blue = (plane.reshape(len(labels), 32, 32) for plane in residuals)
        images = unpack_images(green, red, blue)
    except (zipfile.BadZipFile, lzma.LZMAError, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or no packed CIFAR-10 ({error}). Copy it again from its source."
        ) from error
    return images, labels


def unpack_images(green, red_minus_green, blue_minus_green, block: int = 500) -> np.ndarray:
    """Undoes the lossless packing of RGB images: prediction residuals in, uint8 `[n, height, width, 3]` out.

    Each argument: uint8 `[n, height, width]`, residuals modulo 256 of the green plane and of the planes red - green and
    blue - green. A pixel is predicted from its west, north and northwest neighbours by the median edge detector of
    JPEG-LS (ITU-T T.87, A.4.1); a neighbour outside the image counts as the other one, and the first pixel as 0.
    block: images decoded together, so that the planes in work stay in the processor's cache.
    """
    count, height, width = green.shape
    images = np.empty((count, height, width, 3), np.uint8)
    for start in range(0, count, block):
        chosen = slice(start, start + block)
        plane_g = _integrate(green[chosen], base=None)
        images[chosen, ..., 1] = _unskew(plane_g, width)
        for channel, residual in ((0, red_minus_green), (2, blue_minus_green)):
            difference = _integrate(residual[chosen], base=plane_g)
            images[chosen, ..., channel] = _unskew(difference + plane_g, width)
    return images


def _integrate(residual, base):
    """Prediction plus residual, one antidiagonal at a time: all its pixels depend on the two before it only.

    residual: uint8 [n, height, width].   base: None, or the skewed plane whose sum with the result wraps at 256.
    Returns int16 [height + width - 1, height, n], skewed: pixel (y, x) lies at [y + x, y].
    """
    count, height, width = residual.shape
    plane = np.zeros((height + width - 1, height, count), np.int16)
    residual = np.ascontiguousarray(residual.transpose(1, 2, 0)).astype(np.int16)  # [height, width, n]
    for diagonal in range(height + width - 1):
        rows = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        value = _predict(plane, diagonal, rows, width) + residual[rows, diagonal - rows]
        if base is None:
            plane[diagonal, rows] = value & 255
        else:
            under = base[diagonal, rows]
            plane[diagonal, rows] = ((value + under) & 255) - under
    return plane


def _predict(plane, diagonal, rows, width):
    """Median edge prediction of the pixels (y, diagonal - y), y in `rows`; int16 [rows, n]."""
    if diagonal == 0:
        return np.zeros_like(plane[0, :1])
    west = plane[diagonal - 1, rows]
    north = plane[diagonal - 1, rows - 1]
    northwest = plane[diagonal - 2, rows - 1]
    if rows[0] == 0:  # top row: no north, no northwest
        north[0] = northwest[0] = west[0]
    if rows[-1] == diagonal:  # first column: no west, no northwest
        west[-1] = northwest[-1] = north[-1]
    low, high = np.minimum(west, north), np.maximum(west, north)
    return np.clip(west + north - northwest, low, high)


def _unskew(plane, width):
    """int16 [height + width - 1, height, n] with pixel (y, x) at [y + x, y] -> uint8 [n, height, width]."""
    rows = np.arange(plane.shape[1])[:, None]
    return plane[rows + np.arange(width), rows].astype(np.uint8).transpose(2, 0, 1)
