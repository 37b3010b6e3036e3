"""Quantized layers of Keras 3 for the layers whose weights a TFMOT wrapper quantizes."""

import dataclasses
import warnings
from typing import Any

import numpy as np
import tensorflow_model_optimization as tfmot

from keras_lowbit.convert.analysis.operations import QUANTIZED_CLASSES
from keras_lowbit.convert.separable import split_separable
from keras_lowbit.quantizers import KeptScale, Quantizer, Uniform
from keras_lowbit.tfmot.adapter import LowbitQuantizer
from keras_lowbit.tfmot.configs import KERNELS
from keras_lowbit.tfmot.ranges import PlacedRange, set_state
from keras_lowbit.tfmot.stock import keras3_name, stock_layer
from keras_lowbit.tfmot.wrappers import weights_in

_Quantizers = tfmot.quantization.keras.quantizers
_OF_TFMOT = (_Quantizers.LastValueQuantizer, _Quantizers.MovingAverageQuantizer, _Quantizers.AllValuesQuantizer)
_FIRST_ENDS = (-6.0, 6.0)  # of TFMOT's ranges, before the first training step
_SPARSITY = "sparsity_mask"  # the variable of TFMOT's pruning-preserving quantizers


@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """A float weight of a wrapped layer with a quantizer of ours and the values of the quantizer's variables.

    scale: what a `KeptScale` keeps, a scalar or one value for each entry of the last axis; None: nothing.
    """

    values: np.ndarray
    quantizer: Quantizer
    state: dict[str, Any]
    scale: np.ndarray | None = None

    def place(self, host: Any, weight: Any) -> None:
        """Give the quantizer of a built layer its state. weight: the layer's variable, with these values."""
        state = self.state
        if isinstance(host.quantizer, KeptScale) and self.scale is not None:
            state = host.quantizer.scale_state(weight, self.scale, host.filter_axes)
        set_state(host, state)


def weights_of(layer: Any) -> dict[str, QuantizedWeight]:
    """The weights that a wrapper quantizes, by attribute ("kernel", "bias"); none of any other layer.

    TFMOT's own quantizers become `KeptScale` with the same bits and scales of the same groups of weights; `Uniform` where
    they have no scales yet.
    Raises ValueError for a quantizer or a weight that is neither ours nor TFMOT's.
    """
    if not isinstance(layer, tfmot.quantization.keras.QuantizeWrapper):
        return {}
    known = {*dict(KERNELS.get(type(layer.layer).__name__, ())), "bias"}
    found = {}
    for name, variable, quantizer, variables in weights_in(layer):
        of_tfmot = isinstance(quantizer, _OF_TFMOT)
        if name not in known or not (of_tfmot or isinstance(quantizer, LowbitQuantizer)):
            raise ValueError(
                f"The weight {name!r} of layer {layer.name!r} ({type(layer.layer).__name__}) is quantized by "
                f"{type(quantizer).__module__}.{type(quantizer).__name__}, which to_keras3 does not translate. Annotate the "
                "layer with keras_lowbit.tfmot.KernelQuantizeConfig, which takes any quantizer of this library."
            )
        read = _of_tfmot if of_tfmot else _of_ours
        found[name] = read(layer, variable.numpy(), quantizer, variables)
    return found


def _of_ours(layer: Any, values: np.ndarray, adapter: LowbitQuantizer, variables: dict[str, Any]) -> QuantizedWeight:
    return QuantizedWeight(values, adapter.quantizer, {key: variable.numpy() for key, variable in variables.items()})


def _of_tfmot(layer: Any, values: np.ndarray, quantizer: Any, variables: dict[str, Any]) -> QuantizedWeight:
    if not quantizer.symmetric:
        warnings.warn(
            f"The weights of layer {layer.name!r} have an asymmetric grid in TFMOT. They become symmetric, as int8 weights of "
            "LiteRT are, with steps up to twice as large; symmetric=True trains for that.",
            stacklevel=2,
        )
    if _SPARSITY in variables:
        values = values * np.asarray(variables[_SPARSITY])
    # TFMOT counts channels on the last axis, of which a depthwise kernel has as many as multipliers.
    channels = quantizer.per_axis and values.shape[-1] > 1
    grid = (quantizer.num_bits, "channel" if channels else "tensor")
    scale = _scale(layer, quantizer, variables) if quantizer.symmetric else None
    return QuantizedWeight(values, Uniform(*grid) if scale is None else KeptScale(*grid), {}, scale)


def _scale(layer: Any, quantizer: Any, variables: dict[str, Any]) -> np.ndarray | None:
    """The step of TFMOT's grid: one, or one for each entry of the last axis. None before the first training step.

    None, too, for a transposed convolution whose last axis, TFMOT's channels, is that of its inputs.
    """
    low, high = (np.asarray(variables[name], np.float32) for name in ("min_var", "max_var"))
    if (low == _FIRST_ENDS[0]).all() and (high == _FIRST_ENDS[1]).all():
        return None
    if high.size > 1 and type(layer.layer).__name__ == "Conv2DTranspose":
        return None
    return (high - low) / np.float32(2**quantizer.num_bits - 1 - quantizer.narrow_range)


def quantized_layers(
    inner: Any, weights: dict[str, QuantizedWeight], pre: PlacedRange | None, input_shape: Any
) -> list[Any]:
    """The quantized layer of a tf_keras layer, built, with weights and state; two for a separable convolution.

    inner: the layer inside the wrapper.   weights: those it quantizes.   pre: the range before its activation.
    """
    stock = _with_weights(stock_layer(inner), inner, weights, input_shape)
    kernels = [weights.get(name) for name, _ in KERNELS[type(stock).__name__]]
    quantizers = [None if kernel is None else kernel.quantizer for kernel in kernels]
    bias = weights.get("bias")
    changes = {
        "kernel_quantizer": quantizers[-1],
        "bias_quantizer": None if bias is None else bias.quantizer,
        "output_quantizer": None if pre is None else pre.quantizer,
    }
    if len(kernels) == 2:
        made = list(split_separable(stock, f"{keras3_name(inner)}_depthwise", quantizers[0], changes))
    else:
        made = [_quantized(stock, changes, input_shape)]
    for copy, kernel in zip(made, kernels, strict=True):
        if kernel is not None:
            kernel.place(copy.kernel_host, copy.kernel)
        copy.trainable = inner.trainable
    if bias is not None:
        bias.place(made[-1].bias_host, made[-1].bias)
    if pre is not None:
        set_state(made[-1].output_host, pre.state)
    return made


def _with_weights(stock: Any, inner: Any, weights: dict[str, QuantizedWeight], input_shape: Any) -> Any:
    """The stock layer with the float weights. In a wrapper that was called, the layer's own attributes are quantized."""
    stock.build(input_shape)
    names = [name for name, _ in KERNELS[type(stock).__name__]]
    for name in [*names, *(["bias"] if stock.bias is not None else [])]:
        target = stock.kernel if name == "depthwise_kernel" and len(names) == 1 else getattr(stock, name)
        target.assign(weights[name].values if name in weights else getattr(inner, name).numpy())
    return stock


def _quantized(stock: Any, changes: dict[str, Any], input_shape: Any) -> Any:
    copy = QUANTIZED_CLASSES[type(stock).__name__].from_config(stock.get_config() | changes)
    copy.build(input_shape)
    copy.kernel.assign(stock.kernel)
    if stock.bias is not None:
        copy.bias.assign(stock.bias)
    return copy
