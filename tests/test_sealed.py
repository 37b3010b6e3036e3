"""Sealed files: the same bytes for the same content, and DamagedError for everything else."""

import json

import numpy as np
import pytest
import safetensors.numpy

from keras_lowbit.sealed import DamagedError, seal, strict_json, unseal

ABOUT = {"text": "Größe", "numbers": [1, 0.1, None]}
ARRAYS = {
    "a": np.arange(6, dtype=np.int8).reshape(2, 3),
    "b": np.float32([1.5, np.nan]),
    "none": np.zeros((0, 3)),
    "one": np.float64(0.1),
}


def test_what_is_sealed_comes_back():
    about, arrays = unseal("kind", seal("kind", ABOUT, ARRAYS))
    assert about == ABOUT
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(arrays[name], array)
    assert seal("kind", ABOUT, ARRAYS) == seal("kind", ABOUT, dict(reversed(ARRAYS.items())))


def test_every_flipped_bit_and_every_cut_is_seen():
    content = seal("kind", ABOUT, ARRAYS)
    for place in range(len(content)):
        broken = bytearray(content)
        broken[place] ^= 1 << (place % 8)
        try:
            about, arrays = unseal("kind", bytes(broken))
        except DamagedError:
            continue
        assert about == ABOUT, "a space of the padding"
        assert all(arrays[name].tobytes() == array.tobytes() for name, array in ARRAYS.items())
    for size in range(len(content)):
        with pytest.raises(DamagedError):
            unseal("kind", content[:size])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        b"\xff" * 64,
        (2).to_bytes(8, "little") + b"[]",
        (20000).to_bytes(8, "little") + b"[" * 20000,
        (38).to_bytes(8, "little") + b'{"__metadata__":{"kind":5}}           ',
        safetensors.numpy.save({"a": np.ones(3)}),
        safetensors.numpy.save({"a": np.ones(3)}, {"kind": "no digest"}),
        seal("another kind", ABOUT, ARRAYS),
    ],
    ids=range(9),
)
def test_other_bytes_are_refused(content):
    with pytest.raises(DamagedError):
        unseal("kind", content)


def test_an_array_that_the_description_makes_larger_than_the_file_is_refused():
    header = {
        "a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]},
        "__metadata__": {"kind": "x\n{}"},
    }
    text = json.dumps(header).encode()
    with pytest.raises(DamagedError):
        unseal("kind", len(text).to_bytes(8, "little") + text + b"\0" * 64)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "-Infinity", '{"a": 1e999}', "-1e400"])
def test_numbers_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match=r"no number of JSON|beyond float64"):
        strict_json(text)
    with pytest.raises(ValueError, match="JSON compliant"):
        seal("kind", {"a": float("inf")}, {})
