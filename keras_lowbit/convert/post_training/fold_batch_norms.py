"""fold_batch_norms: batch norms become part of the weights and biases beside them."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_lowbit import layers as klb_layers
from keras_lowbit.convert.analysis.operations import KINDS, activation_name, stock_kind
from keras_lowbit.convert.reports.conversion import ConversionReport, LayerReport, Refused
from keras_lowbit.keras_graph.calls import Call, CallGraph, calls_of, layers_inside
from keras_lowbit.keras_graph.edits import LayerEdit, rewrite_model, weights_of
from keras_lowbit.keras_graph.variables import batch_norm_affine, refuse_keras_quantization
from keras_lowbit.layers.find import hosts
from keras_lowbit.numerics.kernel_layouts import LAYOUTS, KernelLayout

Weights = dict[str, np.ndarray]


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

    model: Functional or built Sequential Keras 3 model.   return_report: whether the report is wanted too.
    Returns the copy, or (model, `ConversionReport`) with return_report=True.
    Raises TypeError for a subclassed model. Jacob et al. 2018, arXiv:1712.05877, section 3.2.

    >>> folded = klb.fold_batch_norms(model)
    >>> klb.layers.find_layers(folded, keras.layers.BatchNormalization)
    []
    """
    plan = _Plan(model)
    folded = rewrite_model(model, plan.edits(), exact=not hosts(model))
    return (folded, plan.report()) if return_report else folded


def fold_report(model: keras.Model) -> ConversionReport:
    """What `fold_batch_norms` does with every batch norm of the model ("folded" or "left"), without doing it."""
    return _Plan(model).report()


class _Plan:
    """Decides in running order; weights that several batch norms change are changed one after the other."""

    def __init__(self, model: keras.Model) -> None:
        refuse_keras_quantization(model)
        self.model = model
        self.graph: CallGraph = calls_of(model, inline=True)
        self.weights: dict[int, Weights] = {}  # id of a layer -> its folded weights
        self.dropped: dict[int, Call] = {}  # id of a batch norm -> its call
        self.rows: list[LayerReport] = []
        for call in self.graph.calls:
            if stock_kind(call.operation) == "BatchNormalization":
                self._visit(call)
        for path in layers_inside(model, keras.layers.BatchNormalization):
            self.rows.append(LayerReport(path, "BatchNormalization", "left", "inside a custom layer"))

    def edits(self) -> dict[int, LayerEdit]:
        found = {key: LayerEdit(drop=True) for key in self.dropped}
        return found | {key: LayerEdit(config={"use_bias": True}, weights=new) for key, new in self.weights.items()}

    def report(self) -> ConversionReport:
        return ConversionReport(self.model.name, "fold_batch_norms", tuple(self.rows))

    def _visit(self, norm: Call) -> None:
        fold = self._fold(norm)
        if isinstance(fold, Refused):
            self.rows.append(LayerReport.of(norm, "left", fold.reason))
            return
        self.weights[id(fold.call.operation)] = fold.weights
        self.dropped[id(norm.operation)] = norm
        detail = f"into {fold.call.path}, which stands {fold.where} it"
        self.rows.append(LayerReport.of(norm, "folded", detail))

    def _fold(self, norm: Call) -> "_Fold | Refused":
        """The fold into the layer before the batch norm, else into the one after it, else why there is neither."""
        if reason := self._own_reason(norm):
            return Refused(reason)
        before = self._behind(norm)
        if isinstance(before, _Fold):
            return before
        after = self._in_front(norm)
        return after if isinstance(after, _Fold) else Refused(f"{before.reason}; {after.reason}")

    def _own_reason(self, norm: Call) -> str | None:
        """Why a batch norm folds into no layer, whatever stands beside it; None if it may."""
        axes = len(norm.tensors[0].shape)
        if self.graph.uses(norm.operation) > 1:
            return f"shared: it runs {self.graph.uses(norm.operation)} times"
        if norm.operation.axis not in (-1, axes - 1):
            return f"normalises axis {norm.operation.axis}, not the last one"
        if any(constant is True for constant in norm.constants()):
            return "called with training=True: it uses the statistics of each batch"
        return None

    def _behind(self, norm: Call) -> "_Fold | Refused":
        """The fold into the layer that makes the batch norm's input, or why there is none."""
        key = norm.inputs[0]
        call = self.graph.producers.get(key)
        while call is not None and id(call.operation) in self.dropped and self._only(call.outputs[0]) is not None:
            key = call.inputs[0]
            call = self.graph.producers.get(key)
        if call is None:
            return Refused("nothing before it: it reads an input")
        if reason := self._unfit(call):
            return Refused(f"before it {reason}")
        if activation_name(call.operation) != "linear":
            return Refused(f"the activation {activation_name(call.operation)} of {call.path} stands between")
        if self._only(norm.inputs[0]) is None:
            return Refused(f"the output of {call.path} has other readers")
        return _Fold(
            call,
            "before",
            multiplied_outputs(stock_kind(call.operation), self._weights(call), *batch_norm_affine(norm.operation)),
        )

    def _in_front(self, norm: Call) -> "_Fold | Refused":
        """The fold into the only layer that reads the batch norm's output, or why there is none."""
        call = self._only(norm.outputs[0])
        if call is None:
            return Refused("its output has several readers or leaves the model")
        if reason := self._unfit(call):
            return Refused(f"after it {reason}")
        factor, offset = batch_norm_affine(norm.operation)
        if np.any(offset) and _pads(call.operation):
            padding = offset[np.argmax(abs(offset))]
            return Refused(f"{call.path} after it pads with zeros, which would have to be {padding:.3g}")
        groups = getattr(call.operation, "groups", 1)
        folded = multiplied_inputs(stock_kind(call.operation), self._weights(call), factor, offset, groups)
        return _Fold(call, "after", folded)

    def _only(self, key: int) -> Call | None:
        return self.graph.only_consumer(key)

    def _weights(self, call: Call) -> Weights:
        return self.weights.get(id(call.operation)) or _with_bias(call.operation)

    def _unfit(self, call: Call) -> str | None:
        """Why an operation cannot take a batch norm in."""
        operation, kind = call.operation, stock_kind(call.operation)
        if isinstance(operation, klb_layers.QuantizedLayer):
            return f"stands {call.path}, which is quantized already (its batch norm folds at export)"
        if kind not in KINDS:
            return f"stands {call.path} ({call.kind}), which has no weights to fold into"
        if getattr(operation, "data_format", "channels_last") != "channels_last":
            return f"stands {call.path}, which is channels_first"
        if self.graph.uses(operation) > 1:
            return f"stands {call.path}, which is shared: it runs {self.graph.uses(operation)} times"
        return None


@dataclasses.dataclass(frozen=True)
class _Fold:
    call: Call  # of the layer that takes the batch norm in
    where: str  # where the layer stands: "before" or "after"
    weights: Weights


def multiplied_outputs(kind: str, weights: Weights, factor: np.ndarray, offset: np.ndarray) -> Weights:
    """Weights of a layer of that class followed by ``factor * y + offset``. factor, offset: [output channels]."""
    name, layout = _making_outputs(kind)
    kernel = weights[name] * layout.per_output(factor, weights[name].shape)
    return weights | {name: kernel, "bias": weights["bias"] * factor + offset}


def multiplied_inputs(kind: str, weights: Weights, factor: np.ndarray, offset: np.ndarray, groups: int = 1) -> Weights:
    """Weights of a layer of that class behind ``factor * x + offset``. factor, offset: [input channels].

    Exact without padding, or for offset 0. groups: of a convolution.
    """
    name, layout = _reading_inputs(kind)
    kernel = weights[name]
    factors, offsets = (layout.per_input(values, kernel.shape, groups) for values in (factor, offset))
    shift = (kernel * offsets).sum(axis=layout.inner_axes).reshape(-1)
    if "pointwise_kernel" in weights:
        shift = shift @ weights["pointwise_kernel"][0, 0]
    return weights | {name: kernel * factors, "bias": weights["bias"] + shift}


def _making_outputs(kind: str) -> tuple[str, KernelLayout]:
    """The kernel that makes the outputs of a layer."""
    return ("pointwise_kernel", LAYOUTS["Conv2D"]) if kind == "SeparableConv2D" else ("kernel", LAYOUTS[kind])


def _reading_inputs(kind: str) -> tuple[str, KernelLayout]:
    """The kernel that reads the inputs of a layer."""
    return ("depthwise_kernel", LAYOUTS["DepthwiseConv2D"]) if kind == "SeparableConv2D" else ("kernel", LAYOUTS[kind])


def _with_bias(layer: Any) -> Weights:
    weights = weights_of(layer)
    name, layout = _making_outputs(stock_kind(layer))
    return {"bias": np.zeros(layout.output_channels(weights[name].shape)), **weights}


def _pads(layer: Any) -> bool:
    """Whether windows of the layer reach over the edge, so that it sees zeros which are not its input's."""
    if stock_kind(layer) == "Conv2DTranspose":
        return True  # at edges and between strides its windows are not full
    if stock_kind(layer) == "Dense":
        return False
    return str(layer.padding) != "valid" and any(size > 1 for size in layer.kernel_size)
