"""pack: a quantized Keras model becomes a Keras model whose ternary layers hold packed weights and run on the ops."""

from typing import Any

import keras
import numpy as np

from keras_lowbit.convert.analysis.operations import is_wide
from keras_lowbit.deploy.lowering.arguments import check_model, check_not_packed
from keras_lowbit.deploy.lowering.folding import channel_scales
from keras_lowbit.deploy.lowering.ranges import infer_ranges
from keras_lowbit.deploy.packed.layers import PackedLayer, PackedTernaryConv2D, PackedTernaryDense
from keras_lowbit.keras_graph.calls import calls_of, layers_of
from keras_lowbit.keras_graph.edits import LayerEdit, rewrite_model
from keras_lowbit.layers import QuantActivation, QuantConv2D, QuantDense, QuantizedLayer
from keras_lowbit.layers.kernels import kernel_codes
from keras_lowbit.ops.packing import PackedWeights, pack_if_ternary, pack_ternary

CLUSTER_SIZES = (64, 32, 16, 8, 4)


def pack(model: keras.Model) -> keras.Model:
    """A copy of a quantized model whose ternary and clustered convolutions and dense layers are packed at two bits.

    model: from `quantize_model`, or built from the drop-in layers, calibrated; Functional or Sequential. Float in and out,
    as before; its layers quantize their inputs to the ranges the model has learnt and sum in integers. Where the model has
    no ranges (or a layer is shared between different ones), a packed layer computes in float and only saves memory. All
    other layers are kept as they are.
    Returns the copy, a Keras model that is not compiled.

    The result saves to a `.keras` file that loads without a scope, and predicts the same bits with and without the compiled
    ops. Raises ValueError if no layer is ternary or one is packed already, TypeError for what is no Keras model, and what
    `lower` raises before calibration.

    >>> packed = klb.pack(ternary)
    >>> packed.save("packed.keras")
    >>> outputs = keras.saving.load_model("packed.keras").predict(images, verbose=0)
    """
    check_model(model, "pack")
    check_not_packed(model, "pack")
    layers = [(path, layer) for path, layer in layers_of(model) if isinstance(layer, QuantizedLayer)]
    weights = {path: packed_weights(layer) for path, layer in layers if type(layer) in (QuantConv2D, QuantDense)}
    found = {path: packed for path, packed in weights.items() if packed is not None}
    if not found:
        raise ValueError(
            f"{model.name!r} has no convolution or dense layer with ternary weights. Quantize it with a ternary recipe first, "
            "for example keras_lowbit.quantize_model(model, 'sq-twn')."
        )
    ranges = input_ranges(model)
    edits = {
        id(layer): LayerEdit(replacement=_layer(layer, *found[path], ranges.get(id(layer))))
        for path, layer in layers
        if path in found
    }
    return rewrite_model(model, edits)


def packed_weights(layer: Any) -> tuple[PackedWeights, np.ndarray] | None:
    """Packed kernel and real scales [channels] of a quantized layer; None if its kernel is not ternary in clusters."""
    if layer.kernel_host is None or getattr(layer, "data_format", "channels_last") != "channels_last":
        return None
    groups, quantizer = getattr(layer, "groups", 1), layer.kernel_quantizer
    if hasattr(quantizer, "structure"):
        structure = quantizer.structure(layer.kernel, layer.kernel_host.values(), layer.filter_axes)
        if np.abs(structure.pattern).max() > 1:
            return None
        packed = pack_ternary(structure.pattern, structure.alphas, quantizer.cluster_size, groups)
        return packed, np.ldexp(np.float32(1), structure.exponent).astype(np.float32)
    codes, scale = kernel_codes(layer)[:2]
    if codes.dtype != np.int8:
        return None
    found = pack_if_ternary(codes, groups, CLUSTER_SIZES)
    return None if found is None else (found, channel_scales(codes, scale, layer.filter_axes, layer.name))


def input_ranges(model: keras.Model) -> dict[int, tuple[float, int]]:
    """id of a layer -> (scale, zero point) of the int8 codes that it reads; layers without one range are left out.

    So are those that read or make 16-bit codes: packed layers take int8.
    """
    layers = [layer for _, layer in layers_of(model)]
    if not any(isinstance(x, QuantActivation) or getattr(x, "output_host", None) is not None for x in layers):
        return {}
    graph = calls_of(model, inline=True)
    ranges, found = infer_ranges(graph), dict[int, set[tuple[float, int]]]()
    for call in graph.calls:
        if isinstance(call.operation, QuantizedLayer) and call.inputs[0] in ranges:
            scale, zero_point, codes = ranges[call.inputs[0]]
            if codes == "int8" and not is_wide(call.operation.output_quantizer):
                found.setdefault(id(call.operation), set()).add((float(np.float32(scale)), zero_point))
    return {layer: grids.pop() for layer, grids in found.items() if len(grids) == 1}


def _layer(layer: Any, packed: PackedWeights, scale: np.ndarray, grid: tuple[float, int] | None) -> PackedLayer:
    arguments: dict[str, Any] = {
        "layout": packed.layout,
        "input_range": grid,
        "activation": layer.activation,
        "use_bias": layer.bias is not None,
        "output_quantizer": layer.output_quantizer,
        "name": layer.name,
        "dtype": layer.dtype_policy,
    }
    cls: type[PackedLayer] = PackedTernaryDense
    if isinstance(layer, QuantConv2D):
        cls = PackedTernaryConv2D
        arguments |= {"strides": layer.strides, "padding": layer.padding, "dilation_rate": layer.dilation_rate}
    made = cls(**arguments)
    made.build(layer.get_build_config()["input_shape"])
    made.load(packed, scale, layer.effective_bias())
    if layer.output_host is not None and made.output_host is not None:
        made.output_host.copy_state_from(layer.output_host)
    return made
