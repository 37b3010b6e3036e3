"""A piece of a Keras model as a float .tflite, the content of a float subgraph. The TF converter builds nothing else here."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras


def convert_to_float(
    run: Callable[..., list[Any]], shapes: Sequence[tuple[int | None, ...]], description: str, batch_size: int = 1
) -> bytes:
    """The float .tflite bytes of `run(*tensors)` for inputs of those shapes (without batch).

    Its inputs and outputs have the order that they have in `run`.
    description: of the piece, for errors.   Raises ValueError if the piece mixes the samples of a batch, and with the
    converter's reason if it cannot be converted.
    """
    inputs = [keras.Input(shape, dtype="float32") for shape in shapes]
    if any(output.shape[0] is not None for output in run(*inputs)):
        raise ValueError(
            f"{description} mixes the samples of a batch: its output has no batch axis. A device runs one sample at a time. "
            "Leave it out of the exported model."
        )
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return _convert(run, [(batch_size, *shape) for shape in shapes])
    except Exception as error:  # the converter raises its own classes, with pages of text
        known = re.search(r"'tf\.\w+' op is [^\n]*", str(error))
        raise ValueError(
            f"{description} has no integer form, and the TensorFlow converter cannot express it in float either "
            f"({known[0] if known else str(error)[:300]}). Leave it out of the exported model."
        ) from error


def _convert(run: Callable[..., list[Any]], shapes: Sequence[tuple[int | None, ...]]) -> bytes:
    """By way of a function, which the converter freezes with its arguments and results in order.

    A Keras model would go by way of a SavedModel, whose signature orders them by names that Keras counts up.
    """
    import tensorflow as tf

    inputs = [keras.Input(batch_shape=shape, dtype="float32") for shape in shapes]
    model = keras.Model(inputs, run(*inputs), name="island")  # the name is part of the bytes of written files
    # A mixed policy has Keras read every variable in the type its layer computes in, see `in_float32`.
    model.dtype_policy = keras.DTypePolicy("mixed_float16")
    arguments = [tf.TensorSpec(shape, tf.float32, name=f"input_{i}") for i, shape in enumerate(shapes)]
    archive = keras.export.ExportArchive()  # makes a tf.function of any backend's model
    archive.track(model)
    function = archive.add_endpoint("run", lambda *values: model(list(values), training=False), arguments)
    concrete = function.get_concrete_function()
    # The second argument keeps the variables alive; being a function, it also keeps the converter from a SavedModel.
    return bytes(tf.lite.TFLiteConverter.from_concrete_functions([concrete], function).convert())


@contextlib.contextmanager
def in_float32(operation: Any) -> Iterator[None]:
    """Inside, an operation's layers compute in float32 and are named by their place: "002_Dense".

    The converter sorts by names, and Keras counts those of a custom layer's own layers up with every model it makes:
    "dense_9" and "dense_10" would give another file than "dense_1" and "dense_2". See `lower.LOWERING`.
    """
    layers = list(operation._flatten_layers()) if isinstance(operation, keras.layers.Layer) else []
    before = [(layer, layer.name, layer._dtype_policy) for layer in layers]
    try:
        for place, layer in enumerate(layers):
            layer.name = f"{place:03}_{type(layer).__name__}"
            if layer.compute_dtype in ("float16", "bfloat16", "float64"):
                layer._dtype_policy = keras.DTypePolicy("float32")
        yield
    finally:
        for layer, name, policy in before:
            layer.name, layer._dtype_policy = name, policy
