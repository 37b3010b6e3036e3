"""`keras_lowbit.data`: what may be given as data, what is refused and in which words."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from keras_lowbit import data
from keras_lowbit.data import batching

IMAGES = np.arange(10 * 4, dtype=np.float32).reshape(10, 4)
LABELS = np.arange(10)


class Batched(keras.utils.PyDataset):
    """Batches of 4 of `IMAGES` with labels."""

    def __init__(self, endless=False):
        super().__init__()
        self.endless = endless

    @property
    def num_batches(self):
        return None if self.endless else 3

    def __getitem__(self, index):
        index %= 3
        return IMAGES[4 * index : 4 * index + 4], LABELS[4 * index : 4 * index + 4]


def dataset(*parts):
    return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0]).batch(4)


def chunks():
    for start in range(0, 10, 4):
        yield IMAGES[start : start + 4], LABELS[start : start + 4]


SOURCES = {
    "array": lambda: IMAGES,
    "tensor": lambda: tf.constant(IMAGES),
    "dataset of x": lambda: dataset(IMAGES),
    "dataset of (x, y)": lambda: dataset(IMAGES, LABELS),
    "dataset of (x, y, w)": lambda: dataset(IMAGES, LABELS, LABELS),
    "PyDataset": Batched,
    "generator": chunks,
    "function": lambda: chunks,
    "iterator of (x,)": lambda: iter([(IMAGES[:4],), (IMAGES[4:8],), (IMAGES[8:],)]),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_batches_without_labels(source):
    got = list(data.batches(SOURCES[source](), batch_size=4))
    assert [len(batch) for batch in got] == [4, 4, 2]
    assert all(isinstance(batch, np.ndarray) for batch in got)
    np.testing.assert_array_equal(np.concatenate(got), IMAGES)


@pytest.mark.parametrize("source", ["array", "dataset of x", "PyDataset", "tensor"])
def test_batch_count_is_the_number_of_batches(source):
    assert data.batch_count(SOURCES[source](), 4) == 3
    assert data.batch_count(SOURCES[source](), 4, steps=2) == 2


def test_batch_count_of_a_generator_is_unknown_unless_steps_are_given():
    assert data.batch_count(chunks(), 4) is None
    assert data.batch_count(chunks(), 4, steps=2) == 2


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50))
def test_batches_of_an_array_cover_it_once_in_order(count, batch_size):
    samples = np.arange(count)
    got = list(data.batches(samples, batch_size))
    np.testing.assert_array_equal(np.concatenate(got), samples)
    assert {len(batch) for batch in got[:-1]} <= {batch_size}
    assert len(got) == data.batch_count(samples, batch_size)


def test_several_inputs_keep_their_structure():
    second = IMAGES[:, :1]
    by_name = list(data.batches({"image": IMAGES, "extra": second}, 8))
    assert [sorted(batch) for batch in by_name] == [["extra", "image"]] * 2
    np.testing.assert_array_equal(by_name[1]["extra"], second[8:])
    in_order = list(data.batches((IMAGES, second), 8))
    assert isinstance(in_order[0], list)
    np.testing.assert_array_equal(in_order[0][1], second[:8])


def test_dataset_of_dict_inputs_with_labels_drops_only_the_labels():
    source = tf.data.Dataset.from_tensor_slices(({"image": IMAGES}, LABELS)).batch(5)
    first = next(iter(data.batches(source)))
    assert list(first) == ["image"]
    np.testing.assert_array_equal(first["image"], IMAGES[:5])


def test_labelled_batches_keep_the_labels_of_each_batch():
    pairs = ((IMAGES[i : i + 4], LABELS[i : i + 4]) for i in (0, 4, 8))
    for source, labels in ((IMAGES, list(LABELS)), (IMAGES, LABELS), (pairs, None)):
        found = list(data.labelled_batches(source, labels, batch_size=4))
        assert [list(own) for _, own in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        np.testing.assert_array_equal(np.concatenate([x for x, _ in found]), IMAGES)
    assert [own for _, own in data.labelled_batches(IMAGES)] == [None]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros(9), r"labels= holds \[9\] labels for 10 samples"),
        ({"a": np.zeros(10), "b": np.zeros(9)}, "different numbers"),
    ],
    ids=["one", "two"],
)
def test_labels_are_one_for_each_sample(labels, words):
    with pytest.raises(ValueError, match=words):
        data.labelled_batches(np.zeros((10, 2)), labels)


def test_labels_come_from_one_place():
    with pytest.raises(ValueError, match=r"labels= goes with data in arrays.*let it yield \(x, y\)"):
        data.labelled_batches(iter([np.zeros((2, 2))]), np.zeros(2))


def test_dtype_is_kept():
    for dtype in ("uint8", "float16", "float64", "bool"):
        assert next(data.batches(np.zeros((2, 3), dtype))).dtype == dtype


@pytest.mark.parametrize("endless", [lambda: dataset(IMAGES).repeat(), lambda: Batched(endless=True)])
def test_endless_data_needs_steps(endless):
    assert len(list(data.batches(endless(), steps=5))) == 5
    with pytest.raises(ValueError, match=r"Give steps=\.\.\."):
        list(data.batches(endless()))


@pytest.mark.parametrize(
    "empty",
    [np.zeros((0, 4)), {"image": np.zeros((0, 4))}, [], {}, dataset(IMAGES).take(0), iter([]), lambda: iter([])],
    ids=["array", "dict of empty", "list", "dict", "dataset", "iterator", "function"],
)
def test_empty_data_says_what_was_given_and_what_to_do(empty):
    with pytest.raises(ValueError, match=r"No data: .*[Gg]ive at least one"):
        list(data.batches(empty))


def test_used_up_generator_says_how_to_make_it_anew():
    used = chunks()
    list(data.batches(used))
    with pytest.raises(ValueError, match="pass the function that makes it"):
        list(data.batches(used))


@pytest.mark.parametrize("wrong", [None, 3, "images/", b"raw"])
def test_data_of_another_kind_is_refused_at_once_with_the_accepted_kinds(wrong):
    with pytest.raises(TypeError, match=r"Cannot read batches from .*tf\.data\.Dataset"):
        data.batches(wrong)


@pytest.mark.parametrize("values", [np.array(["cat.png", "dog.png"]), np.array([None, 1.0])])
def test_values_that_are_no_numbers_are_refused_with_the_value(values):
    with pytest.raises(TypeError, match=r"no numbers: dtype .*(cat\.png|None)"):
        list(data.batches(values))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_first_batch_with_a_value_that_is_not_finite_is_named(bad, dtype):
    images = IMAGES.astype(dtype)
    images[9, 2] = bad
    with pytest.raises(ValueError, match=r"batch 2 are not all finite: 1 of 8 .* first at index \(1, 2\)"):
        list(data.batches(images, 4))
    with pytest.raises(ValueError, match=r"batch 2, input 'image' are not all finite"):
        list(data.batches({"image": images}, 4))


def test_finite_float64_beyond_float32_is_refused_because_the_model_would_see_infinity():
    with pytest.raises(ValueError, match="not all finite"):
        list(data.batches(np.array([[1e300]])))


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, "32", None])
def test_batch_size_is_a_positive_integer(batch_size):
    with pytest.raises(ValueError, match="batch_size must be a positive integer below 2\\^31, got"):
        data.batches(IMAGES, batch_size)
    with pytest.raises(ValueError, match="batch_size must be a positive integer below 2\\^31, got"):
        data.batch_count(IMAGES, batch_size)


def test_numpy_integer_is_a_batch_size():
    assert len(list(data.batches(IMAGES, np.int64(5)))) == 2


def test_inputs_of_different_lengths_are_refused_with_their_lengths():
    with pytest.raises(ValueError, match=r"different numbers of samples.*10.*9"):
        data.batches([IMAGES, IMAGES[:9]])


def test_list_of_numbers_and_single_number_say_what_to_give():
    with pytest.raises(TypeError, match=r"np\.asarray"):
        data.batches([1.0, 2.0])
    with pytest.raises(ValueError, match="Axis 0 counts samples"):
        data.batches(np.float32(3))


def test_element_with_too_many_parts_is_refused():
    with pytest.raises(ValueError, match="tuple of 4 parts"):
        list(data.batches(iter([(IMAGES, 1, 2, 3)])))


@pytest.mark.parametrize("source", SOURCES)
def test_batches_with_progress_are_the_batches(source, monkeypatch, capsys):
    for verbose, terminal in ((0, True), (1, True), (1, False)):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        found = list(data.Batches(SOURCES[source](), 4, verbose=verbose).with_progress())
        for got, want in zip(found, data.batches(IMAGES, 4), strict=True):
            np.testing.assert_array_equal(got, want)
        shown = capsys.readouterr().out
        assert ("3" in shown) == (verbose and terminal)
        assert shown.endswith("\n") == (verbose and terminal)


def test_batches_are_checked_when_they_are_described():
    for numbers, name in (((0, None), "batch_size"), ((4, -1), "steps")):
        with pytest.raises(ValueError, match=f"{name} must be a positive integer"):
            data.Batches(IMAGES, *numbers)


def test_module_does_not_import_tensorflow_or_keras():
    code = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('d', sys.argv[1]);"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec));"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, batching.__file__], check=True)
