"""Argument checks of the functions of `deploy`: a sentence in place of an AttributeError for a value of another kind."""

from __future__ import annotations

from typing import Any

import keras

from keras_lowbit import arguments
from keras_lowbit.deploy.graph import IntegerGraph
from keras_lowbit.deploy.packed.layers import PackedLayer
from keras_lowbit.keras_graph.calls import layers_of


def check_model(model: Any, caller: str) -> None:
    """TypeError unless it is a Keras model."""
    if isinstance(model, IntegerGraph):
        raise TypeError(f"{caller} takes a Keras 3 model, got IntegerGraph: give the model that it was lowered from.")
    arguments.check_model(model, caller)


def check_not_packed(model: keras.Model, caller: str) -> None:
    """ValueError for a model from `pack`: its layers have given up the quantizers that an integer graph is made from."""
    packed = [path for path, layer in layers_of(model) if isinstance(layer, PackedLayer)]
    if packed:
        some = ", ".join(packed[:3]) + (", ..." if len(packed) > 3 else "")
        raise ValueError(
            f"{caller} cannot use {model.name!r}, which keras_lowbit.pack has made (packed: {some}). "
            "Use the model that you packed."
        )


def check_graph(graph: Any, caller: str) -> None:
    """TypeError unless it is an integer graph."""
    if isinstance(graph, IntegerGraph):
        return
    remedy = "make one with keras_lowbit.deploy.lower(model)"
    if isinstance(graph, str):
        remedy = (
            "a file of keras_lowbit.deploy.graph.serialize is read with its load, a .keras file is loaded and lowered"
        )
    raise TypeError(f"{caller} takes an IntegerGraph, got {arguments.shown(graph)}: {remedy}.")
