"""storage: what the quantized weights take in the variable-length code of INQ, with and without their zeros."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_lowbit.deploy.packed.layers import PackedLayer
from keras_lowbit.keras_graph.calls import layers_of
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.base import QuantizedLayer
from keras_lowbit.layers.host import QuantizerHost
from keras_lowbit.layers.kernels import kernel_codes
from keras_lowbit.quantizers import PowerOfTwo, Quantizer, Ternary
from keras_lowbit.tables import table


@dataclasses.dataclass(frozen=True)
class LayerStorage:
    """The kernel of one layer. path "total" for the sum of all.

    path: of the layer.
    bits: of a weight that is not zero.   weights, zeros: how many.   pruned: those of the zeros that were there before the
    first partition of INQ, None where no partition counted them.   code_bits: of the whole kernel, as in `storage`.
    dense_bits: the same if no weight were zero.

    >>> klb.storage(ternary).layers[0].path
    'first'
    """

    path: str
    bits: float
    weights: int
    zeros: int
    pruned: int | None
    code_bits: int
    dense_bits: int

    @property
    def code_bytes(self) -> int:
        """The code's size, whole bytes."""
        return -(-self.code_bits // 8)

    @property
    def ratio_alone(self) -> float:
        """Float32 size over the size without any zero: what quantization alone gives."""
        return 32 * self.weights / self.dense_bits if self.dense_bits else 1.0

    @property
    def ratio(self) -> float:
        """Float32 size over the code's size: quantization and the zeros, pruned ones and others, together."""
        return 32 * self.weights / self.code_bits if self.code_bits else 1.0


@dataclasses.dataclass(frozen=True)
class Storage:
    """Every quantized kernel; prints as a table.

    model: its name.   layers: a `LayerStorage` for each kernel.   float_weights: all other weights (biases, batch norms).

    >>> sizes = klb.storage(ternary)
    >>> sizes.total.weights == sum(layer.weights for layer in sizes.layers)
    True
    """

    model: str
    layers: tuple[LayerStorage, ...]
    float_weights: int

    @property
    def total(self) -> LayerStorage:
        """All quantized kernels together; bits is the mean over their weights."""
        weights = sum(layer.weights for layer in self.layers)
        pruned = [layer.pruned for layer in self.layers if layer.pruned is not None]
        return LayerStorage(
            path="total",
            bits=sum(layer.bits * layer.weights for layer in self.layers) / max(weights, 1),
            weights=weights,
            zeros=sum(layer.zeros for layer in self.layers),
            pruned=sum(pruned) if pruned else None,
            code_bits=sum(layer.code_bits for layer in self.layers),
            dense_bits=sum(layer.dense_bits for layer in self.layers),
        )

    @property
    def model_ratio(self) -> float:
        """The compression ratio of the whole model, with every other weight in float32."""
        floats = 32 * self.float_weights
        return (32 * self.total.weights + floats) / max(self.total.code_bits + floats, 1)

    def __str__(self) -> str:
        heads = (
            "layer",
            "bits",
            "weights",
            "% zero",
            "% pruned",
            "float32 bytes",
            "code bytes",
            "ratio alone",
            "ratio with zeros",
        )
        body = table(heads, [_row(layer) for layer in (*self.layers, self.total)])
        rest = f"{self.float_weights:,} other weights stay float32; with them the ratio is {self.model_ratio:.3g}"
        note = "bytes of the code, not of a file: those of the .tflite file are in summary"
        return f"{self.model}: variable-length code of the weights\n{body}\n{rest}\n{note}"


def _row(layer: LayerStorage) -> tuple[Any, ...]:
    share = 100 / max(layer.weights, 1)
    pruned = None if layer.pruned is None else layer.pruned * share
    sizes = (4 * layer.weights, layer.code_bytes, layer.ratio_alone, layer.ratio)
    return (layer.path, float(layer.bits), layer.weights, layer.zeros * share, pruned, *sizes)


def storage(model: keras.Model) -> Storage:
    """Size of every quantized kernel in the variable-length code of INQ, and the compression ratio against float32.

    A weight of a grid of powers of two or a ternary one takes one flag bit that says whether it is zero, and ``b - 1`` more
    bits (sign and exponent) if it is not: ``N + (b - 1) * nonzero`` bits for N weights, ``b * N`` if none is zero. Other
    grids take b bits a weight. Ratios are ``32 N`` over these: `ratio_alone` without, `ratio` with the zeros, which is what
    pruning adds. Scales (one exponent a layer in the paper) are not counted.
    This is a code for comparing methods; `summary` has the bytes of the .tflite file, which packs 8, 4 or 2 bits.
    model: quantized, or from `pack` (whose layers count as the ternary ones that they were made from); its weights as at
    inference, frozen or not.   Raises ValueError for a model without quantized layers.
    Returns a `Storage`: a row for each kernel, and the sum; `print` it.
    Zhou et al. 2017, arXiv:1702.03044, section 2.1: b counts the flag.

    >>> sizes = klb.storage(ternary)
    >>> sizes.total.bits, sizes.total.ratio > 16
    (2.0, True)
    """
    layers = {path: layer for path, layer in layers_of(model) if isinstance(layer, PackedLayer) or _is_quantized(layer)}
    if not layers:
        raise ValueError(
            f"{model.name!r} has no quantized layer. Quantize it first: keras_lowbit.quantize_model(model, 'inq-5')."
        )
    found = tuple((_packed if isinstance(x, PackedLayer) else _layer)(path, x) for path, x in layers.items())
    others = {id(weight): int(np.prod(weight.shape)) for weight in model.weights}
    for _, layer in layers_of(model):
        for counted in _not_float(layer):
            others.pop(id(counted), None)
    return Storage(model.name, found, sum(others.values()))


def _is_quantized(layer: Any) -> bool:
    return isinstance(layer, QuantizedLayer) and layer.kernel_host is not None


def _not_float(layer: Any) -> list[Any]:
    """The layer's variables that no other weight of the model is: what quantizers keep, and kernels that are counted."""
    if isinstance(layer, PackedLayer):
        return [layer.packed_data, layer.packed_scales, layer.packed_sums, layer.scale]
    if isinstance(layer, QuantizerHost):
        return list(layer.weights)
    return [layer.kernel] if _is_quantized(layer) else []


def _packed(path: str, layer: PackedLayer) -> LayerStorage:
    codes = layer.unpacked()
    zeros, bits = int(np.count_nonzero(codes == 0)), Ternary().bits
    return LayerStorage(path, bits, codes.size, zeros, None, 2 * codes.size - zeros, 2 * codes.size)


def _layer(path: str, layer: Any) -> LayerStorage:
    quantizer, weights = layer.kernel_host.quantizer, kernel_codes(layer)
    bits, count = quantizer.bits, weights.codes.size
    zeros = int(np.count_nonzero(weights.codes == weights.zero_point))
    dense = round(bits * count)
    code = count + (bits - 1) * (count - zeros) if _has_zero_flag(quantizer) else dense
    counted = layer.kernel_host.state.get("zeros")
    pruned = None if counted is None or to_numpy(layer.kernel_host.state["portion"]) == 0 else int(to_numpy(counted))
    return LayerStorage(path, bits, count, zeros, pruned, int(code), dense)


def _has_zero_flag(quantizer: Quantizer) -> bool:
    """Whether the grid at the bottom has the variable-length code."""
    while isinstance(base := getattr(quantizer, "base", None), Quantizer):
        quantizer = base
    return isinstance(quantizer, (PowerOfTwo, Ternary))
