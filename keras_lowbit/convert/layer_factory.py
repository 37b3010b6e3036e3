"""Quantized layers in place of stock ones, each made once."""

from typing import Any

import keras

from keras_lowbit.convert.analysis.operations import QUANTIZED_CLASSES, stock_kind
from keras_lowbit.convert.separable import split_separable
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.keras_graph.copies import Copies, merged_config
from keras_lowbit.keras_graph.variables import to_numpy, weight_value
from keras_lowbit.layers import QuantizedLayer
from keras_lowbit.layers.find import unquantized
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
        found = self.copies.get(layer, lambda: _quantized(layer, changes))
        if not isinstance(found, QuantizedLayer):
            raise ValueError(
                f"Layer {layer.name!r} stands inside another layer too, which runs before it, so that it cannot be quantized. "
                f"Leave it float: skip=[{layer.name!r}]."
            )
        return found

    def halves(
        self, layer: Any, name: str, depthwise: Quantizer | None, pointwise: dict[str, Any]
    ) -> tuple[Any, QuantizedLayer]:
        """The two copies of a separable convolution; arguments as for `split_separable`."""
        if id(layer) not in self._halves:
            self._halves[id(layer)] = split_separable(layer, name, depthwise, pointwise)
        return self._halves[id(layer)]

    def stand_in(self, call: Call, values: dict[int, Any]) -> list[Any] | None:
        """The outputs of what stands for a call in the copy, nothing quantized that was not before; None if nothing does."""
        operation, halves = call.operation, self._halves.get(id(call.operation))
        made: list[Any] = [self.copies.made(operation)] if halves is None else list(halves)
        if made[0] is None:
            return None
        if isinstance(operation, QuantizedLayer):
            return call.run(values, made[0])
        with unquantized(*(layer for layer in made if isinstance(layer, QuantizedLayer))):
            if halves is not None:
                return [made[1](made[0](values[call.inputs[0]]))]
            outputs = call.run(values, made[0])
        if isinstance(made[0], QuantizedLayer) and made[0].activation is not operation.activation:
            before = made[0].activation in (None, keras.activations.linear)  # a gate and a product stand behind it
            return [operation.activation(outputs[0])] if before and operation.activation is not None else outputs
        return outputs


def _quantized(layer: Any, changes: dict[str, Any]) -> QuantizedLayer:
    copy = QUANTIZED_CLASSES[stock_kind(layer)].from_config({**merged_config(layer), **changes})
    copy.build(layer.get_build_config()["input_shape"])
    copy.kernel.assign(weight_value(layer))
    if layer.bias is not None:
        copy.bias.assign(to_numpy(layer.bias))
    for host in ("kernel_host", "bias_host", "output_host"):  # of a layer that is quantized already
        if (old := getattr(layer, host, None)) is not None:
            getattr(copy, host).copy_state_from(old)
    copy.trainable = layer.trainable
    for name in ("kernel", "bias"):  # one alone may be frozen; LoRA freezes the kernel, which has its delta in it now
        if getattr(layer, name, None) is not None and not getattr(layer, "lora_enabled", False):
            getattr(copy, name).trainable = getattr(layer, name).trainable
    return copy
