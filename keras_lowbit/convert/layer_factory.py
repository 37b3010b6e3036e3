"""Quantized layers in place of stock ones, each made once."""

from typing import Any

from keras_lowbit.convert.analysis.operations import QUANTIZED_CLASSES, stock_kind
from keras_lowbit.convert.separable import split_separable
from keras_lowbit.keras_graph.copies import Copies, live_config
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import QuantizedLayer
from keras_lowbit.quantizers import Quantizer


class LayerFactory:
    """The layers of the quantized model. A layer that the original calls several times is one layer here too.

    copies: of nested models and of the operations that stay as they are.
    """

    def __init__(self) -> None:
        self.copies = Copies()
        self._halves: dict[int, tuple[Any, Any]] = {}  # id of a separable layer -> its depthwise and pointwise copies

    def quantized(self, layer: Any, changes: dict[str, Any]) -> QuantizedLayer:
        """The quantized copy of a layer. changes: of its configuration, the quantizers among them."""
        return self.copies.get(layer, lambda: _quantized(layer, changes))

    def halves(
        self, layer: Any, name: str, depthwise: Quantizer | None, pointwise: dict[str, Any]
    ) -> tuple[Any, QuantizedLayer]:
        """The two copies of a separable convolution; arguments as for `split_separable`."""
        if id(layer) not in self._halves:
            self._halves[id(layer)] = split_separable(layer, name, depthwise, pointwise)
        return self._halves[id(layer)]


def _quantized(layer: Any, changes: dict[str, Any]) -> QuantizedLayer:
    copy = QUANTIZED_CLASSES[stock_kind(layer)].from_config({**live_config(layer), **changes})
    copy.build(layer.get_build_config()["input_shape"])
    copy.kernel.assign(to_numpy(layer.kernel))
    if layer.bias is not None:
        copy.bias.assign(to_numpy(layer.bias))
    for host in ("kernel_host", "bias_host", "output_host"):  # of a layer that is quantized already
        if (old := getattr(layer, host, None)) is not None:
            getattr(copy, host).copy_state_from(old)
    copy.trainable = layer.trainable
    return copy
