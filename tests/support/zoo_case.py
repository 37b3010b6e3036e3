"""What an entry of a zoo is, and the short ways to write one."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import layers as kl

IMAGE, SIGNAL, VECTOR = (9, 8, 4), (11, 4), (12,)


@dataclasses.dataclass(frozen=True)
class Case:
    """make: builds the float model.   float_fallbacks: paths that run in float.   arguments: of `quantize_model`.
    input_shapes: of `lower` and `export_litert`."""

    make: Callable[[], keras.Model]
    float_fallbacks: tuple[str, ...] = ()
    recipe: str = "int8"
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    input_shapes: Any = None
    reference: bool = True  # LiteRT's reference kernels have every operation of it
    quantized: bool = False  # made of drop-in layers: not to be converted


def case(*stack, shape=IMAGE, **fields) -> Case:
    """A chain of layers (called once each time the model is made)."""

    def make():
        value = entry = keras.Input(shape, name="x")
        for layer in stack:
            value = layer()(value) if callable(layer) and not isinstance(layer, kl.Layer) else layer(value)
        return keras.Model(entry, value, name="m")

    return Case(make, **fields)


def function(body, *shapes, **fields) -> Case:
    """A model made by a function of its inputs."""

    def make():
        inputs = [keras.Input(shape, name=f"x{i}") for i, shape in enumerate(shapes or (IMAGE,))]
        return keras.Model(inputs if len(inputs) > 1 else inputs[0], body(*inputs), name="m")

    return Case(make, **fields)


def conv(filters=4, size=3, **options):
    return lambda: kl.Conv2D(filters, size, **options)
