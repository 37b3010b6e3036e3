"""A piece of a Keras model as a float .tflite, the content of a float subgraph. The TF converter builds nothing else here."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from keras_lowbit.keras_graph.depth import build_model


def convert_to_float(
    run: Callable[..., list[Any]],
    shapes: Sequence[tuple[int | None, ...]],
    description: str,
    batch_size: int = 1,
    dtypes: Sequence[str] = (),
) -> bytes:
    """The float .tflite bytes of `run(*tensors)` for inputs of those shapes (without batch) and types (float32 by default).

    Its inputs and outputs have the order that they have in `run`.
    description: of the piece, for errors.   Raises ValueError if the piece mixes the samples of a batch, and with the
    converter's reason if it cannot be converted.
    """
    dtypes = list(dtypes) or ["float32"] * len(shapes)
    inputs = [keras.Input(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    check_batch(description, run(*inputs))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return _convert(run, [(batch_size, *shape) for shape in shapes], dtypes)
    except Exception as error:  # the converter raises its own classes, with pages of text
        known = re.search(r"'tf\.\w+' op is [^\n]*", str(error))
        raise ValueError(
            f"{description} has no integer form, and the TensorFlow converter cannot express it in float either "
            f"({known[0] if known else str(error)[:300]}). Leave it out of the exported model."
        ) from error


def check_batch(description: str, outputs: Sequence[Any]) -> None:
    """ValueError unless symbolic outputs have the variable batch axis that the inputs of a piece have."""
    if any(tuple(output.shape[:1]) != (None,) for output in outputs):
        raise ValueError(
            f"{description} mixes the samples of a batch: its output has no batch axis. A device runs one sample at a time. "
            "Leave it out of the exported model."
        )


def _convert(run: Callable[..., list[Any]], shapes: Sequence[tuple[int | None, ...]], dtypes: Sequence[str]) -> bytes:
    """By way of a function, which the converter freezes with its arguments and results in order.

    A Keras model would go by way of a SavedModel, whose signature orders them by names that Keras counts up.
    """
    import tensorflow as tf

    ends = list(zip(shapes, dtypes, strict=True))
    inputs = [keras.Input(batch_shape=shape, dtype=dtype) for shape, dtype in ends]
    model = build_model(inputs, run(*inputs), name="island")  # the name is part of the bytes of written files
    # A mixed policy has Keras read every variable in the type its layer computes in, see `in_float32`.
    model.dtype_policy = keras.DTypePolicy("mixed_float16")
    arguments = [tf.TensorSpec(shape, dtype, name=f"input_{i}") for i, (shape, dtype) in enumerate(ends)]
    archive = keras.export.ExportArchive()  # makes a tf.function of any backend's model
    archive.track(model)
    function = archive.add_endpoint("run", lambda *values: model(list(values), training=False), arguments)
    concrete = function.get_concrete_function()
    # The second argument keeps the variables alive; being a function, it also keeps the converter from a SavedModel.
    return bytes(tf.lite.TFLiteConverter.from_concrete_functions([concrete], function).convert())


@contextlib.contextmanager
def in_float32(operations: Sequence[Any]) -> Iterator[None]:
    """Inside, the operations' layers compute in float32 and are named by their place: "002_Dense".

    The converter sorts by names, and Keras counts those of a custom layer's own layers up with every model it makes:
    "dense_9" and "dense_10" would give another file than "dense_1" and "dense_2". Several operations may come from models
    inside one another and have one name; a model takes each name once. See `lower.LOWERING`.
    """
    distinct = list({id(operation): operation for operation in operations}.values())
    parts = [part for operation in distinct for part in _named_parts(operation, len(distinct) > 1)]
    before = [(part, part.name, getattr(part, "_dtype_policy", None)) for part in parts]
    try:
        for place, part in enumerate(parts):
            part.name = f"{place:03}_{type(part).__name__}"
            if getattr(part, "compute_dtype", None) in ("float16", "bfloat16", "float64"):
                part._dtype_policy = keras.DTypePolicy("float32")
        yield
    finally:
        for part, name, policy in before:
            part.name = name
            if policy is not None:
                part._dtype_policy = policy


@contextlib.contextmanager
def unrolled(operations: Sequence[Any]) -> Iterator[None]:
    """Inside, recurrent layers run step by step in place of a loop: a float subgraph is one graph without control flow."""
    loops = [layer for operation in operations for layer in loops_in(operation)]
    try:
        for layer in loops:
            layer.unroll = True
        yield
    finally:
        for layer in loops:
            layer.unroll = False


def loops_in(operation: Any) -> list[Any]:
    """The recurrent layers of an operation that run in a loop."""
    layers = operation._flatten_layers() if isinstance(operation, keras.layers.Layer) else ()
    return [layer for layer in layers if isinstance(layer, keras.layers.RNN) and not layer.unroll]


def _named_parts(operation: Any, several: bool) -> list[Any]:
    """The layers of an operation; of a bare operation itself, where it is not alone."""
    if isinstance(operation, keras.layers.Layer):
        return list(operation._flatten_layers())
    return [operation] if several else []
