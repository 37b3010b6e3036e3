"""The folder of real data, and the packed CIFAR-10 in it."""

import hashlib
import lzma

import numpy as np
import pytest

from studies.common import cifar10


def test_data_folder_is_the_variable_if_it_is_set(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_LOWBIT_DATA", str(tmp_path))
    assert cifar10.data_folder() == tmp_path
    monkeypatch.setenv("KERAS_LOWBIT_DATA", str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError, match=r"missing.*Set KERAS_LOWBIT_DATA"):
        cifar10.data_folder()


def pack(images):
    """The packer's inverse, pixel by pixel in plain Python, written from the format's description."""
    count, height, width, _ = images.shape
    values = images.astype(int)
    planes = [values[..., 1], values[..., 0] - values[..., 1], values[..., 2] - values[..., 1]]
    packed = [np.zeros((count, height, width), np.uint8) for _ in planes]
    for plane, residuals in zip(planes, packed, strict=True):
        for n, y, x in np.ndindex(count, height, width):
            residuals[n, y, x] = (plane[n, y, x] - predict(plane[n], y, x)) % 256
    return packed


def predict(plane, y, x):
    if y == 0 and x == 0:
        return 0
    if y == 0:
        return plane[y, x - 1]
    if x == 0:
        return plane[y - 1, x]
    west, north, northwest = plane[y, x - 1], plane[y - 1, x], plane[y - 1, x - 1]
    if northwest >= max(west, north):
        return min(west, north)
    if northwest <= min(west, north):
        return max(west, north)
    return west + north - northwest


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 7, 4), (1, 1, 1), (2, 1, 6), (2, 6, 1), (5, 8, 8)])
def test_unpacking_undoes_packing(shape):
    images = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    images[0, ..., 0] = 255  # the largest differences between planes
    np.testing.assert_array_equal(cifar10.unpack_images(*pack(images), block=2), images)


def write_packed(folder, images, labels):
    packed = dict(zip(("g", "rg", "bg"), pack(images), strict=True))
    streams = {name: np.frombuffer(lzma.compress(plane.tobytes()), np.uint8) for name, plane in packed.items()}
    arrays = {f"{split}_{name}": stream for split in ("train", "test") for name, stream in streams.items()}
    np.savez(folder / "cifar10.npz", y_train=labels, y_test=labels, **arrays)


def test_load_cifar10_reads_packed_files_and_its_own_cache(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    write_packed(tmp_path, images, np.array([3, 8], np.uint8))
    cache = tmp_path / "deep" / "cache.npz"
    for _ in range(2):
        (x_train, y_train), (x_test, y_test) = cifar10.load_cifar10(tmp_path, cache=cache)
        for x, y in ((x_train, y_train), (x_test, y_test)):
            np.testing.assert_array_equal(x, images)
            np.testing.assert_array_equal(y, [3, 8])
        (tmp_path / "cifar10.npz").unlink(missing_ok=True)  # the second round has only the cache
    assert [path.name for path in cache.parent.iterdir()] == ["cache.npz"]


def test_missing_and_damaged_files_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No .*cifar10\.npz"):
        cifar10.load_cifar10(tmp_path)
    (tmp_path / "cifar10.npz").write_bytes(b"no zip at all")
    with pytest.raises(ValueError, match="damaged or no packed CIFAR-10"):
        cifar10.load_cifar10(tmp_path)
    with pytest.raises(ValueError, match="Known: train, test"):
        cifar10.load_cifar10_split("validation", tmp_path)


@pytest.mark.slow
def test_real_cifar10_has_the_published_checksum(stored_data):
    images, labels = cifar10.load_cifar10_split("test", stored_data)
    assert images.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(labels), [1000] * 10)
    assert hashlib.sha256(images.tobytes()).hexdigest()[:16] == "5e95d80e3dfe4bb1"
    with np.load(stored_data / "cifar10.npz") as packed:
        names = lzma.decompress(packed["names_test"].tobytes()).decode().split("\n")
    cat = names.index("domestic_cat_s_000907.png")
    published = "af12e1241a1e7a0c9ba326825279bef5fe961ceb5f95212a99f9b1f22711f913"
    assert hashlib.sha256(images[cat].tobytes()).hexdigest() == published
