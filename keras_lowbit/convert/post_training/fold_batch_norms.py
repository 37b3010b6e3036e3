"""fold_batch_norms: batch norms become part of the weights and biases beside them."""

import dataclasses
from collections import Counter
from typing import Any, Literal, overload

import keras
import numpy as np

from keras_lowbit import layers as klb_layers
from keras_lowbit.convert.analysis.operations import KINDS, activation_name, stock_kind
from keras_lowbit.convert.reports.conversion import ConversionReport, LayerReport
from keras_lowbit.keras_graph.calls import Call, CallGraph, calls_of, layers_inside
from keras_lowbit.keras_graph.edits import Edit, edited, weights_of
from keras_lowbit.keras_graph.variables import to_numpy

Weights = dict[str, np.ndarray]


@overload
def fold_batch_norms(model: keras.Model, return_report: Literal[False] = False) -> keras.Model: ...
@overload
def fold_batch_norms(model: keras.Model, return_report: Literal[True]) -> tuple[keras.Model, ConversionReport]: ...
def fold_batch_norms(model: keras.Model, return_report: bool = False) -> Any:
    """A stock copy of a float model whose batch norms are part of the layers beside them; the same function.

    ``W' = W * f``, ``b' = b * f + o`` with ``f = gamma / sqrt(variance + epsilon)``, ``o = beta - mean * f`` of the moving
    statistics, for a batch norm behind a Conv1D, Conv2D, DepthwiseConv2D, Conv2DTranspose, SeparableConv2D or Dense layer
    without an activation; layers without a bias get one. A batch norm in front of such a layer goes into it where that is
    exact: ``W' = f * W`` along the input channels, ``b' = b + sum W * o``. Padding puts zeros behind the batch norm, so
    in front of a padded layer it stays, unless o = 0.

    What cannot be folded stays as it is, and the report says why: other users of the value between, an activation between,
    a layer that runs several times or is quantized already, a batch norm of another axis or inside a custom layer. Nested
    models, several inputs and outputs are kept. Fold before `quantize_model` where thresholds are trained on the folded
    weights (FAT); for the other recipes export folds by itself.

    model: Functional or built Sequential Keras 3 model.   return_report: give (model, `ConversionReport`) instead.
    Raises TypeError for a subclassed model. Jacob et al. 2018, arXiv:1712.05877, section 3.2.
    """
    plan = _Plan(model)
    folded = edited(model, plan.edits())
    return (folded, plan.report()) if return_report else folded


def fold_report(model: keras.Model) -> ConversionReport:
    """What `fold_batch_norms` does with every batch norm of the model ("folded" or "left"), without doing it."""
    return _Plan(model).report()


class _Plan:
    """Decides in running order; weights that several batch norms change are changed one after the other."""

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self.graph: CallGraph = calls_of(model, inline=True)
        self.runs = Counter(id(call.operation) for call in self.graph.calls)
        self.weights: dict[int, tuple[Any, Weights]] = {}  # id of a layer -> the layer and its folded weights
        self.dropped: dict[int, Call] = {}  # id of a batch norm -> its call
        self.rows: list[LayerReport] = []
        for call in self.graph.calls:
            if stock_kind(call.operation) == "BatchNormalization":
                self._visit(call)
        for path in layers_inside(model, keras.layers.BatchNormalization):
            self.rows.append(LayerReport(path, "BatchNormalization", "left", "inside a custom layer"))

    def edits(self) -> dict[int, Edit]:
        found = {key: Edit(drop=True) for key in self.dropped}
        return found | {key: Edit(config={"use_bias": True}, weights=new) for key, (_, new) in self.weights.items()}

    def report(self) -> ConversionReport:
        return ConversionReport(self.model.name, "fold_batch_norms", tuple(self.rows))

    def _visit(self, norm: Call) -> None:
        reason = self._own_reason(norm)
        if reason is None:
            after, before = self._behind(norm), self._in_front(norm)
            for fold in (after, before):
                if isinstance(fold, _Fold):
                    return self._apply(norm, fold)
            reason = f"{after}; {before}"
        self.rows.append(LayerReport(norm.path, norm.kind, "left", reason))
        return None

    def _apply(self, norm: Call, fold: "_Fold") -> None:
        layer = fold.call.operation
        self.weights[id(layer)] = (layer, fold.weights)
        self.dropped[id(norm.operation)] = norm
        self.rows.append(
            LayerReport(norm.path, norm.kind, "folded", f"into {fold.call.path}, which stands {fold.where} it")
        )

    def _own_reason(self, norm: Call) -> str | None:
        axes = len(norm.tensors[0].shape)
        if self.runs[id(norm.operation)] > 1:
            return f"shared: it runs {self.runs[id(norm.operation)]} times"
        if norm.operation.axis not in (-1, axes - 1):
            return f"normalises axis {norm.operation.axis}, not the last one"
        if any(constant is True for constant in norm.constants()):
            return "called with training=True: it uses the statistics of each batch"
        return None

    def _behind(self, norm: Call) -> "_Fold | str":
        """The fold into the layer that makes the batch norm's input, or why there is none."""
        key = norm.inputs[0]
        call = self.graph.producers.get(key)
        while call is not None and id(call.operation) in self.dropped and self._only(call.outputs[0]) is not None:
            key = call.inputs[0]
            call = self.graph.producers.get(key)
        if call is None:
            return "nothing before it: it reads an input"
        if reason := self._unfit(call):
            return f"before it {reason}"
        if activation_name(call.operation) != "linear":
            return f"the activation {activation_name(call.operation)} of {call.path} stands between"
        if self._only(norm.inputs[0]) is None:
            return f"the output of {call.path} has other readers"
        return _Fold(
            call, "before", multiplied_outputs(call.operation, self._weights(call), *norm_affine(norm.operation))
        )

    def _in_front(self, norm: Call) -> "_Fold | str":
        """The fold into the only layer that reads the batch norm's output, or why there is none."""
        call = self._only(norm.outputs[0])
        if call is None:
            return "its output has several readers or leaves the model"
        if reason := self._unfit(call):
            return f"after it {reason}"
        factor, offset = norm_affine(norm.operation)
        if np.any(offset) and _pads(call.operation):
            return f"{call.path} after it pads with zeros, which would have to be {offset[np.argmax(abs(offset))]:.3g}"
        return _Fold(call, "after", multiplied_inputs(call.operation, self._weights(call), factor, offset))

    def _only(self, key: int) -> Call | None:
        return self.graph.only_consumer(key)

    def _weights(self, call: Call) -> Weights:
        layer = call.operation
        return self.weights[id(layer)][1] if id(layer) in self.weights else _with_bias(layer)

    def _unfit(self, call: Call) -> str | None:
        """Why an operation cannot take a batch norm in."""
        operation, kind = call.operation, stock_kind(call.operation)
        if isinstance(operation, klb_layers.QuantizedLayer):
            return f"stands {call.path}, which is quantized already (its batch norm folds at export)"
        if kind not in KINDS:
            return f"stands {call.path} ({call.kind}), which has no weights to fold into"
        if getattr(operation, "data_format", "channels_last") != "channels_last":
            return f"stands {call.path}, which is channels_first"
        if self.runs[id(operation)] > 1:
            return f"stands {call.path}, which is shared: it runs {self.runs[id(operation)]} times"
        return None


@dataclasses.dataclass(frozen=True)
class _Fold:
    call: Call  # of the layer that takes the batch norm in
    where: str  # where the layer stands: "before" or "after"
    weights: Weights


def norm_affine(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """``f = gamma / sqrt(variance + epsilon)`` and ``o = beta - mean * f`` of a batch norm, float64 [channels]."""
    mean, variance = (to_numpy(moment).astype(np.float64) for moment in (layer.moving_mean, layer.moving_variance))
    gamma = to_numpy(layer.gamma).astype(np.float64) if layer.scale else 1.0
    beta = to_numpy(layer.beta).astype(np.float64) if layer.center else 0.0
    factor = gamma / np.sqrt(variance + layer.epsilon)
    return factor, beta - mean * factor


def multiplied_outputs(layer: Any, weights: Weights, factor: np.ndarray, offset: np.ndarray) -> Weights:
    """Weights of the layer followed by ``factor * y + offset``. factor, offset: [output channels]."""
    new = dict(weights)
    name = "pointwise_kernel" if "pointwise_kernel" in weights else "kernel"
    kernel = weights[name]
    kind = stock_kind(layer)
    if kind == "DepthwiseConv2D":  # output channel = input channel * multiplier + index
        new[name] = kernel * factor.reshape(kernel.shape[2:])
    elif kind == "Conv2DTranspose":  # [height, width, output, input]
        new[name] = kernel * factor[:, None]
    else:
        new[name] = kernel * factor
    new["bias"] = weights["bias"] * factor + offset
    return new


def multiplied_inputs(layer: Any, weights: Weights, factor: np.ndarray, offset: np.ndarray) -> Weights:
    """Weights of the layer behind ``factor * x + offset``. factor, offset: [input channels].

    Exact without padding, or for offset 0.
    """
    new, kind = dict(weights), stock_kind(layer)
    if kind in ("DepthwiseConv2D", "SeparableConv2D"):
        name = "kernel" if kind == "DepthwiseConv2D" else "depthwise_kernel"
        new[name] = weights[name] * factor[:, None]
        shift = (weights[name] * offset[:, None]).sum(axis=(0, 1)).reshape(-1)
        new["bias"] = weights["bias"] + (
            shift if kind == "DepthwiseConv2D" else shift @ weights["pointwise_kernel"][0, 0]
        )
        return new
    kernel = weights["kernel"]
    if kind == "Conv2DTranspose":
        new["kernel"] = kernel * factor
        new["bias"] = weights["bias"] + (kernel * offset).sum(axis=(0, 1, 3))
        return new
    per_weight = _input_of(kernel.shape, getattr(layer, "groups", 1))
    new["kernel"] = kernel * factor[per_weight]
    new["bias"] = weights["bias"] + (kernel * offset[per_weight]).sum(axis=tuple(range(kernel.ndim - 1)))
    return new


def _input_of(shape: tuple[int, ...], groups: int) -> np.ndarray:
    """The input channel that each weight [channels of a group, outputs] of a (grouped) kernel is multiplied with."""
    inside, outputs = shape[-2:]
    return np.arange(inside)[:, None] + inside * (np.arange(outputs) // (outputs // groups))


def _with_bias(layer: Any) -> Weights:
    weights = weights_of(layer)
    if "bias" not in weights:
        weights["bias"] = np.zeros(output_channels(layer))
    return weights


def output_channels(layer: Any) -> int:
    """How many channels a stock layer with a kernel makes."""
    kind = stock_kind(layer)
    if kind == "DepthwiseConv2D":
        return int(np.prod(layer.kernel.shape[2:]))
    return int(layer.units if kind == "Dense" else layer.filters)


def _pads(layer: Any) -> bool:
    """Whether windows of the layer reach over the edge, so that it sees zeros which are not its input's."""
    if stock_kind(layer) == "Conv2DTranspose":
        return True  # at edges and between strides its windows are not full
    if stock_kind(layer) == "Dense":
        return False
    return str(layer.padding) != "valid" and any(size > 1 for size in layer.kernel_size)
