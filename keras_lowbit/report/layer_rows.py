"""What became of each layer and what it takes: the rows of `quantize_model`'s report joined with those of `summary`."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from keras_lowbit.convert.reports.conversion import ConversionReport
from keras_lowbit.deploy.summary import LayerSummary, Summary

_SIZES = ("weight_bits", "activation_bits", "parameters", "file_bytes", "macs")


def layer_rows(conversion: ConversionReport | None, found: Summary) -> Iterator[dict[str, Any]]:
    """A dict for each layer of the model, and for those that the recipe made of them.

    Without a report of the conversion: the layers with weights, which are "quantized" or "float".
    """
    sizes = {layer.path: layer for layer in found.layers}
    for row in () if conversion is None else conversion.layers:
        yield {**_sizes(sizes.pop(row.path, None)), **dataclasses.asdict(row)}
    for path, layer in sizes.items():
        outcome = "made" if conversion is not None else "quantized" if layer.weight_bits < 32 else "float"
        yield {**_sizes(layer), "path": path, "layer": layer.layer, "outcome": outcome, "detail": ""}


def _sizes(layer: LayerSummary | None) -> dict[str, Any]:
    return {name: None if layer is None else getattr(layer, name) for name in _SIZES}
