"""Data in, model-ready batches out.

`batches` is the one place where calibration, verification and distillation look at what a user hands them, so every
front end accepts the same things and refuses the same mistakes in the same words.
"""

import dataclasses
import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

_ACCEPTED = (
    "a NumPy array, a dict or list of arrays (several inputs), a tf.data.Dataset, a keras.utils.PyDataset, "
    "or a generator of batches (or a function that returns one)"
)

# ---------------------------------------------------------------------------------------------------- batches


def batches(data: Any, batch_size: int = 32, steps: int | None = None) -> Iterator[Any]:
    """Yields the inputs of a model, batch by batch, without labels.

    data: one of
        an array `[n, ...]`, or anything that converts to one (tensors of any backend);
        a dict of such arrays (inputs by name), or a list or tuple of them (several inputs, in order);
        a tf.data.Dataset or a keras.utils.PyDataset that is already batched;
        an iterator or other iterable of batches, or a function without arguments that returns any of these.
        Elements of data sets and iterators may be `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`, as for
        `model.fit`; only `x` is kept.
    batch_size: samples in a batch when `data` is arrays (the last one may be smaller); the others keep their own.
    steps: stop after this many batches; needed for a data set that never ends.
    Yields NumPy arrays, or a dict or list of them, dtype unchanged.

    Raises TypeError for data of another kind and for values that are no numbers; ValueError for empty data, arrays of
    different lengths, NaN or infinite values (naming the first bad batch), and a batch size that is no positive int.

    >>> [batch.shape[0] for batch in klb.data.batches(images, batch_size=20)]
    [20, 12]
    """
    return (inputs for inputs, _ in labelled_batches(data, batch_size=batch_size, steps=steps))


def labelled_batches(
    data: Any, labels: Any = None, batch_size: int = 32, steps: int | None = None
) -> Iterator[tuple[Any, Any]]:
    """Pairs of the inputs as `batches` gives them and the labels of those samples, None where there are none.

    data, batch_size, steps: as for `batches`.
    labels: for data in arrays: an array `[n, ...]`, a list of numbers, or for several outputs a list or dict of arrays.
    Data sets and iterators bring their own, the `y` of `(x, y)`, which is passed on as it is.
    Yields pairs (inputs, labels or None).
    Raises what `batches` raises, and ValueError for labels that are not one for each sample, or that come twice.

    >>> [(batch.shape[0], len(of_batch)) for batch, of_batch in klb.data.labelled_batches(images, labels, 16)]
    [(16, 16), (16, 16)]
    """
    _check_counts(batch_size, steps)
    return _checked(_raw_batches(data, labels, batch_size, steps), data, steps)


def batch_count(data: Any, batch_size: int = 32, steps: int | None = None) -> int | None:
    """How many batches `batches` will yield, for a progress bar; None when only running out of them will tell.

    data, batch_size, steps: as for `batches`.
    Returns an int, or None.
    Raises ValueError for a batch size or a number of steps that is no positive integer, as `batches` does.

    >>> klb.data.batch_count(images, batch_size=16)
    2
    """
    _check_counts(batch_size, steps)
    if _is_tf_dataset(data):
        count = size if (size := int(data.cardinality())) >= 0 else None
    elif _is_py_dataset(data):
        count = data.num_batches
    elif _is_structure(data) or _is_array(data):
        count = -(-_sample_count(_as_arrays(data)) // batch_size)
    else:
        count = None
    return count if steps is None else steps if count is None else min(steps, count)


@dataclasses.dataclass(frozen=True)
class Batches:
    """Data and how to read them: the arguments of `batches`, checked at once, and whether to show a progress bar.

    data, batch_size, steps: as for `batches`.   verbose: 1 a progress bar on a terminal, 0 nothing.

    >>> read = klb.data.Batches(images, batch_size=32, steps=2)
    """

    data: Any
    batch_size: int = 32
    steps: int | None = None
    verbose: int | bool = 0

    def __post_init__(self) -> None:
        _check_counts(self.batch_size, self.steps)

    def __iter__(self) -> Iterator[Any]:
        return batches(self.data, self.batch_size, self.steps)

    def with_progress(self) -> Iterator[Any]:
        """The batches; `Progress` counts them."""
        stream, bar = iter(self), Progress(batch_count(self.data, self.batch_size, self.steps), "batch", self.verbose)
        for batch in stream:
            yield batch
            bar.advance()
        bar.close()


class Progress:
    """Keras' bar, one line with the time left, where a person looks on: on a terminal or in a notebook, and if `verbose`.

    total: of the units, which are called `unit`; None if unknown. Elsewhere nothing shows: each step would be a line of a log.
    """

    def __init__(self, total: int | None, unit: str, verbose: int | bool) -> None:
        import keras  # for the bar alone

        seen = sys.stdout.isatty() or "ipykernel" in sys.modules
        self.total, self.done = total, 0
        self._bar = keras.utils.Progbar(total, verbose=int(bool(verbose) and seen), unit_name=unit)

    def advance(self, values: Mapping[str, float] | None = None) -> None:
        """One more is done, with these values behind the bar; the line ends with the last."""
        self.done += 1
        self._bar.update(self.done, list((values or {}).items()), finalize=self.done == self.total)

    def close(self) -> None:
        """No more will come."""
        if self.done != self.total:
            self._bar.update(self.done, finalize=True)


def _raw_batches(data, labels, batch_size, steps):
    """The pairs of inputs and labels as they come: chosen by the kind of `data`, nothing looked at yet."""
    if callable(data) and not _is_py_dataset(data) and not _is_tf_dataset(data) and not _is_array(data):
        data = data()
    if _is_tf_dataset(data):
        if steps is None and int(data.cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
            raise ValueError(f"{_describe(data)} never ends. Give steps=..., or leave out its .repeat().")
        return _own_pairs(_read(data), labels, data)
    if _is_py_dataset(data):
        return _own_pairs(_py_dataset_batches(data, steps), labels, data)
    if _is_structure(data) or _is_array(data):
        return _array_batches(_as_arrays(data), _label_arrays(labels), batch_size, data)
    if isinstance(data, Iterable) and not isinstance(data, str | bytes):
        return _own_pairs(data, labels, data)
    raise TypeError(f"Cannot read batches from {_describe(data)}. Give {_ACCEPTED}.")


def _checked(raw, data, steps):
    count = 0
    for index, (batch, labels) in enumerate(itertools.islice(raw, steps)):
        batch = _as_arrays(batch)
        if _sample_count(batch) == 0:
            continue
        for name, array in _leaves(batch):
            _check_numbers(array, f"batch {index}{name}")
        count += 1
        yield batch, labels
    if count == 0:
        raise ValueError(
            f"No data: {_describe(data)} gave no batch with a sample in it. Give at least one sample; a generator that "
            "was already read to its end must be made anew (pass the function that makes it)."
        )


def _read(dataset):
    """The elements of a tf.data.Dataset; ValueError where its functions fail, as for a picture that cannot be decoded."""
    import tensorflow as tf

    elements = iter(dataset)
    while True:
        try:
            element = next(elements)
        except StopIteration:
            return
        except (tf.errors.OpError, UnicodeDecodeError) as error:  # the latter: a message that quotes bytes
            raise ValueError(f"The data cannot be read: {words_of(error)}") from error
        yield element


def words_of(error: Any) -> str:
    """What an error of TensorFlow says, without its account of the graph; of a function of ours in tf.data, our words."""
    said = getattr(error, "message", "") or getattr(error, "object", b"").decode(errors="backslashreplace")
    reason = re.search(
        r"ValueError: (.*)|(.+)\n\s*\[\[\{\{node", said
    )  # of ours; or before the node where it was raised
    if reason:
        return reason[1] or reason[2]
    return next(iter(said.splitlines()), type(error).__name__)


def _array_batches(arrays, labels, batch_size, data):
    total = _sample_count(arrays)
    if total == 0:
        raise ValueError(f"No data: {_describe(data)} holds no sample. Give at least one.")
    if labels is not None and (counts := {len(array) for _, array in _leaves(labels)}) != {total}:
        raise ValueError(f"labels= holds {sorted(counts)} labels for {total} samples. Give one for each sample.")
    spans = ((start, start + batch_size) for start in range(0, total, batch_size))
    return ((_slice(arrays, *span), None if labels is None else _slice(labels, *span)) for span in spans)


def _label_arrays(labels):
    """Labels as arrays; a list of numbers is one array, a list of arrays one for each output."""
    if isinstance(labels, list | tuple) and not any(_is_array(part) and np.ndim(part) for part in labels):
        labels = np.asarray(labels)
    return None if labels is None else _as_arrays(labels)


def _own_pairs(elements, labels, data):
    if labels is not None:
        raise ValueError(f"labels= goes with data in arrays. {_describe(data)} gives its own: let it yield (x, y).")
    return map(_pair_of, elements)


def _py_dataset_batches(data, steps):
    count = data.num_batches
    if count is None and steps is None:
        raise ValueError(f"{_describe(data)} says num_batches=None: it never ends. Give steps=....")
    return (data[index] for index in (range(count) if count is not None else itertools.count()))


def _pair_of(element):
    """`(x, y)` of `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`: tuples mean that, lists are several inputs."""
    if not isinstance(element, tuple):
        return element, None
    if 1 <= len(element) <= 3:
        return element[0], element[1] if len(element) > 1 else None
    raise ValueError(
        f"An element of the data is a tuple of {len(element)} parts. Give x, (x, y) or (x, y, sample_weight); "
        "several inputs go into x as a dict or list: ([first, second], y)."
    )


def samples_in(batch: Any) -> int:
    """Samples in a batch as `batches` yields it.

    batch: an array, or a list or dict of arrays.
    Returns an int.

    >>> klb.data.samples_in(images)
    32
    """
    return _sample_count(batch)


def take(batch: Any, rows: np.ndarray) -> Any:
    """Some samples of a batch as `batches` yields it, in its structure.

    batch: an array, or a list or dict of arrays.   rows: places of the samples in it.
    Returns a batch of the same structure.

    >>> klb.data.take(images, np.arange(4)).shape
    (4, 8, 8, 3)
    """
    if isinstance(batch, dict):
        return {name: array[rows] for name, array in batch.items()}
    return [array[rows] for array in batch] if isinstance(batch, list) else batch[rows]


# ------------------------------------------------------------------------------------- what kind of data is it


def _is_tf_dataset(data) -> bool:
    # Looked up, not imported: without TensorFlow loaded nobody can hold a tf.data.Dataset.
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(data, tensorflow.data.Dataset)


def _is_py_dataset(data) -> bool:
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(data, keras.utils.PyDataset)


def _is_array(data) -> bool:
    return hasattr(data, "shape") and hasattr(data, "dtype")


def _is_structure(data) -> bool:
    return isinstance(data, Mapping | list | tuple)


def _describe(data) -> str:
    """`data` in a few words, with its sizes, for error messages."""
    if _is_array(data):
        return f"{type(data).__name__} of shape {tuple(data.shape)} and dtype {data.dtype}"
    if _is_structure(data):
        return f"{type(data).__name__} of {len(data)} parts"
    return f"{type(data).__name__} {str(data)[:80]!r}"


# ------------------------------------------------------------------------------------------ arrays and structures


def _as_arrays(data):
    """NumPy arrays in the structure of `data`: one array, a dict of them or a list of them, of equal lengths."""
    if isinstance(data, Mapping):
        arrays: Any = {name: _as_array(part, f" input {name!r}") for name, part in data.items()}
    elif isinstance(data, list | tuple):
        arrays = [_as_array(part, f" input {index}") for index, part in enumerate(data)]
    else:
        arrays = _as_array(data, "")
    lengths = {name: len(array) for name, array in _leaves(arrays)}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"The inputs have different numbers of samples: {lengths}. Axis 0 of every input counts the same samples. "
            "(A list or tuple of arrays means several inputs; for one input give one array: np.stack(images).)"
        )
    return arrays


def _as_array(part, name):
    if not _is_array(part):
        raise TypeError(
            f"Expected an array for the data{name}, got {_describe(part)}. Convert it first: np.asarray(...)."
        )
    array = np.asarray(part.detach().cpu() if hasattr(part, "detach") else part)
    if array.ndim == 0:
        raise ValueError(f"The data{name} is a single number, {array}. Axis 0 counts samples: give shape [n, ...].")
    return array


def _leaves(arrays) -> list[tuple[str, np.ndarray]]:
    """The arrays of a structure, each with words that name it in a message."""
    if isinstance(arrays, dict):
        return [(f", input {name!r}", array) for name, array in arrays.items()]
    if isinstance(arrays, list):
        return [(f", input {index}", array) for index, array in enumerate(arrays)]
    return [("", arrays)]


def _sample_count(arrays) -> int:
    return min((len(array) for _, array in _leaves(arrays)), default=0)


def _slice(arrays, start, stop):
    if isinstance(arrays, dict):
        return {name: array[start:stop] for name, array in arrays.items()}
    if isinstance(arrays, list):
        return [array[start:stop] for array in arrays]
    return arrays[start:stop]


def _check_numbers(array, where):
    if array.dtype.kind not in "biufV":  # V: bfloat16 and the other types that NumPy itself does not know
        raise TypeError(
            f"The values of {where} are no numbers: dtype {array.dtype}, first value {array.reshape(-1)[0]!r}. "
            "Give real numbers, for example images.astype('float32')."
        )
    if array.dtype.kind not in "fV":
        return
    with np.errstate(over="ignore"):  # float64 beyond float32 is infinite for the model, so it is here
        finite = np.isfinite(array.astype(np.float32))
    if not finite.all():
        first = tuple(int(axis) for axis in np.argwhere(~finite)[0])
        raise ValueError(
            f"The values of {where} are not all finite: {int(np.sum(~finite))} of {array.size} are NaN or infinite, "
            f"the first at index {first}. One such value spoils every range it touches: remove or repair it."
        )


def _check_counts(batch_size, steps):
    for name, value in (("batch_size", batch_size), ("steps", 1 if steps is None else steps)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value < 2**31:
            raise ValueError(f"{name} must be a positive integer below 2^31, got {value!r}. Use for example {name}=32.")
