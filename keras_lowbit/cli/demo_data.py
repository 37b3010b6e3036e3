"""What the demo leaves behind for the other commands: digits, photographs and names of classes."""

import importlib.util
from pathlib import Path

import numpy as np

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHOTOGRAPHS = ("china.jpg", "flower.jpg")  # of scikit-learn, 640 x 427 pixels
_SIZE = 224
_PARTS = 8  # of each photograph


def write(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """`digits.npz`, `labels.txt` and `photos/` in a folder. images: [n, 8, 8, 1] in 0..1.   labels: [n]."""
    np.savez_compressed(folder / "digits.npz", images=images, labels=labels)
    (folder / "labels.txt").write_text("\n".join(NAMES) + "\n")
    (folder / "photos").mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for name in PHOTOGRAPHS:
        for place, part in enumerate(_parts(name, rng)):
            (folder / "photos" / f"{Path(name).stem}-{place}.jpg").write_bytes(part)


def _parts(name: str, rng: np.random.Generator) -> list[bytes]:
    """Square parts of a photograph of random places and sizes, as JPEG."""
    import tensorflow as tf

    spec = importlib.util.find_spec("sklearn.datasets")
    if spec is None or spec.origin is None:
        raise ImportError("The demo's photographs come with scikit-learn: pip install 'keras_lowbit[demo]'.")
    pixels = tf.io.decode_jpeg((Path(spec.origin).parent / "images" / name).read_bytes())
    height, width = pixels.shape[:2]
    parts = []
    for _ in range(_PARTS):
        size = int(rng.integers(_SIZE, height + 1))
        top, left = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
        square = tf.image.resize(pixels[top : top + size, left : left + size], (_SIZE, _SIZE), antialias=True)
        parts.append(tf.io.encode_jpeg(tf.cast(tf.round(square), tf.uint8), quality=90).numpy())
    return parts
