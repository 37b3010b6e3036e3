"""Which calls of an operation the integer pipeline supports. Any other call runs in float, and says why.

This is the one place that decides it: where ranges stand (conversion) and what runs in integers (lowering) both follow.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_lowbit.convert.analysis import functions, picks, resizing
from keras_lowbit.convert.analysis.functions import starts_with_tensor
from keras_lowbit.keras_graph.calls import Call

# Each draws at random in training and hands its input on in inference.
DROPOUTS = (
    "Dropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "GaussianNoise",
    "GaussianDropout",
    "AlphaDropout",
    "StochasticDepth",
)
# So do these. RandomCrop is none of them: it resizes.
AUGMENTATIONS = (
    *"AugMix CutMix MixUp RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast".split(),
    *"RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue RandomInvert".split(),
    *"RandomPerspective RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear".split(),
    *"RandomTranslation RandomZoom".split(),
)

RESIZES = ("Resizing", "Resize")
SPLITS = ("Split", "ArraySplit", "Unstack")  # operations whose several results are parts of one tensor

# What `convert.expansion` makes compositions of, where a call has a form that it knows.
EXPANDABLE = (
    *"Attention Bidirectional CustomScaleLayer DepthwiseConv1D Conv1DTranspose Dot EinsumDense GRU".split(),
    *"AverageOverAxes AveragePool Conv DepthToSpace DepthwiseConv DotProductAttention Logsumexp MaxPool Moveaxis".split(),
    *"Norm Normalize SpaceToDepth Swapaxes".split(),
    *"GroupNormalization LSTM LayerNormalization LayerScale MultiHeadAttention PReLU RMSNormalization RNN".split(),
    *"Conv3DTranspose Cumprod Prod SeparableConv1D SimpleRNN Sum".split(),
    *"AdditiveAttention Einsum GroupedQueryAttention LogSoftmax Std TimeDistributed UnitNormalization Var".split(),
    *"AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D AdaptiveMaxPooling1D".split(),
    *"AdaptiveMaxPooling2D AdaptiveMaxPooling3D AveragePooling3D Conv3D Cropping3D GlobalAveragePooling3D".split(),
    *"GlobalMaxPooling3D MaxPooling3D UpSampling3D ZeroPadding3D".split(),
)

_MOST_AXES = 4  # of two tensors that LiteRT adds or multiplies
MOST_SUMMED = 2**31 // 255**2  # products of differences of codes that int32 holds the sum of
_MOST_PLACES = 512  # that sums so far add up: their matrix of ones has as many bytes, squared
_MOST_STRIPS = 25  # of an image that an average pool with padding cuts at its borders


def unsupported_reason(call: Call, kind: str) -> str | None:
    """Why the integer pipeline does not support this call of an operation that it knows, for the report; None if it does.

    kind: the class name of the operation.
    """
    if kind in DROPOUTS + AUGMENTATIONS:
        return None
    layout = getattr(call.operation, "data_format", None) or "channels_last"
    if layout != "channels_last":
        return f"its data format is {layout}, the integer pipeline is channels_last"
    if call.arguments.kwargs.get("mask") is not None:
        return "it is called with a mask"
    rule = _RULES.get(kind)
    return None if rule is None else rule(call)


def index_of(call: Call) -> list[int | slice] | None:
    """What ``x[...]`` picks on each axis of x, new axes aside; None for tensors and parts of a batch."""
    key = [*call.arguments.args, *call.arguments.kwargs.values()][1]
    parts = [part for part in (key if isinstance(key, (tuple, list)) else [key]) if part is not None]
    if not all(part is Ellipsis or isinstance(part, (int, slice)) for part in parts):
        return None
    rank = len(call.tensors[0].shape)
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (rank - len(parts) + 1)
    parts += [slice(None)] * (rank - len(parts))
    return parts if parts[0] == slice(None) else None


def _given(call: Call) -> list[Any]:
    return [constant for constant in call.constants() if constant is not None]


def _rank(call: Call) -> int:
    return len(call.tensors[0].shape)


def _on_last_axis(call: Call, constant: Any) -> bool:
    """Whether a constant is one number, or one for each channel, and leaves the tensor's shape alone."""
    shape, channels = np.shape(constant), call.tensors[0].shape[-1]
    one_axis = int(np.prod(shape)) == 1 or (int(np.prod(shape)) == shape[-1] == channels)
    return one_axis and tuple(call.results[0].shape) == tuple(call.tensors[0].shape)


def _at_places(call: Call, constant: Any) -> bool:
    """Whether a constant is the same for every sample, and leaves the tensor's shape alone."""
    shape = (1,) * (_rank(call) - np.ndim(constant)) + np.shape(constant)
    return shape[0] == 1 and tuple(call.results[0].shape) == tuple(call.tensors[0].shape)


def _batch_norm(call: Call) -> str | None:
    axis = call.operation.axis
    return None if axis in (-1, _rank(call) - 1) else f"normalises axis {axis}, not the last one"


def _normalization(call: Call) -> str | None:
    axes = tuple(call.operation.axis)
    return None if axes in ((), (-1,), (_rank(call) - 1,)) else f"normalises axes {axes}, not the last one"


def _rescaling(call: Call) -> str | None:
    layer = call.operation
    if _on_last_axis(call, layer.scale) and _on_last_axis(call, layer.offset):
        return None
    return f"its scale or offset has the shape {np.shape(layer.scale)} or {np.shape(layer.offset)}: not one per channel"


def _same_shapes(call: Call) -> str | None:
    shapes = {tuple(tensor.shape) for tensor in call.tensors}
    if len(shapes) > 1 or _given(call):
        return f"it joins tensors of several shapes, or constants: {sorted(map(str, shapes))}"
    return None if _rank(call) <= _MOST_AXES else f"its tensors have {_rank(call)} axes, {_MOST_AXES} at most"


def _elementwise(call: Call) -> str | None:
    constants, kind = _given(call), type(call.operation).__name__
    if len(call.inputs) == len(constants) == 1:
        if _on_last_axis(call, constants[0]) or (kind in ("Maximum", "Minimum") and _at_places(call, constants[0])):
            return None
        return f"its constant of shape {np.shape(constants[0])} is neither one number nor one for each channel"
    if kind in ("Add", "Maximum", "Minimum") and len(call.inputs) > 2:
        return _same_shapes(call)
    if len(call.inputs) != 2 or constants:
        return f"it joins {len(call.inputs)} tensors and {len(constants)} constants, not two"
    left, right = (tuple(tensor.shape) for tensor in call.tensors)
    fits = len(left) == len(right) <= _MOST_AXES and left[0] == right[0]
    return None if fits else f"its shapes {left} and {right} have not the same batch and at most {_MOST_AXES} axes each"


def _divide(call: Call) -> str | None:
    """A tensor by a number or one for each channel; what divides something by a tensor is a function of it, if at all."""
    constants = _given(call)
    if len(call.inputs) == len(constants) == 1 and not starts_with_tensor(call):
        return None if np.size(constants[0]) == 1 else "it divides several numbers by a tensor"
    if len(call.inputs) != 1 or len(constants) != 1:
        return "it divides a tensor by another: LiteRT has no int8 division"
    return _elementwise(call) or ("it divides by zero" if not np.all(constants[0]) else None)


def _function(call: Call) -> str | None:
    if functions.is_function(call, type(call.operation).__name__):
        return None
    return "it takes other constants than single numbers: no table of 256 codes stands for it"


def _softmax(call: Call) -> str | None:
    axis = getattr(call.operation, "axis", -1)
    return None if axis in (-1, _rank(call) - 1) else f"its axis is {axis}, not the last one"


def _mean(call: Call) -> str | None:
    axis, rank = call.operation.axis, _rank(call)
    axes = [axis] if isinstance(axis, int) else axis or [0]
    return "it mixes the samples of a batch" if 0 in [a % rank for a in axes] else None


def _cumsum(call: Call) -> str | None:
    axis, shape = call.operation.axis, call.tensors[0].shape
    if axis is None or axis % len(shape) == 0:
        return "it mixes the samples of a batch"
    size = shape[axis]
    if size is None:
        return "it adds up an axis of unknown size"
    return None if size <= _MOST_PLACES else f"it adds up {size} places, {_MOST_PLACES} at most in integers"


def _matmul(call: Call) -> str | None:
    left, right = (tuple(tensor.shape) for tensor in (call.tensors[0], call.tensors[-1]))
    if len(call.inputs) != 2 or _given(call):
        return "it multiplies by a constant that is no matrix"
    fits = (
        3 <= len(left) == len(right) <= _MOST_AXES + 1 and left[:-2] == right[:-2] and None not in left[1:] + right[1:]
    )
    if not fits:
        return (
            f"its shapes {left} and {right} are no stacks of matrices of known sizes, all but the last two axes equal"
        )
    return None if left[-1] <= MOST_SUMMED else f"it sums {left[-1]} products, {MOST_SUMMED} at most in int32"


def _extremum_over_axes(call: Call) -> str | None:
    return _mean(call) or ("it starts from a value of its own" if call.operation.initial is not None else None)


def _embedding(call: Call) -> str | None:
    if str(call.tensors[0].dtype) != "int32":
        return f"its ids are {call.tensors[0].dtype} values: int32 ids pick rows of an int8 table"
    return None


def _cast(call: Call) -> str | None:
    source, made = call.tensors[0], call.results[0]
    if (source.dtype, made.dtype) == ("bool", "float32"):
        return None
    if str(source.dtype) != "uint8" or str(made.dtype) != "float32":
        return f"it makes {made.dtype} values of {source.dtype} ones"
    is_input = type(source._keras_history.operation).__name__ == "InputLayer"
    return None if is_input else "its bytes are no input of a model"


def _where(call: Call) -> str | None:
    """Of a mask that is a tensor, and tensors or numbers."""
    given = [*call.arguments.args, *call.arguments.kwargs.values()]
    masked = len(call.tensors) > 1 and given[0] is call.tensors[0] and str(call.tensors[0].dtype) == "bool"
    numbers = all(np.size(value) == 1 for value in _given(call))
    ranks = {len(tensor.shape) for tensor in call.tensors}
    if not masked or not numbers or len(ranks) > 1 or max(ranks) > _MOST_AXES:
        return (
            f"it chooses by {call.tensors[0].dtype} values, or between constants, or its tensors have not the same axes"
        )
    return None


def _argmax(call: Call) -> str | None:
    axis, rank = call.operation.axis, _rank(call)
    if axis is None or axis % rank == 0 or call.operation.keepdims:
        return "it looks for one place of all, mixes the samples of a batch or keeps the axis"
    return None


def _top_k(call: Call) -> str | None:
    if _rank(call) < 2:
        return "it mixes the samples of a batch"
    return None if call.operation.sorted else "sorted=False leaves the order of its results open"


def _concatenate(call: Call) -> str | None:
    if _given(call):
        return "it joins constants to tensors"
    return "it joins batches" if call.operation.axis % _rank(call) == 0 else None


def _stack(call: Call) -> str | None:
    if _given(call):
        return "it joins constants to tensors"
    return "it joins batches" if call.operation.axis % (_rank(call) + 1) == 0 else None


def _split(call: Call) -> str | None:
    if call.operation.axis % _rank(call) == 0:
        return "it cuts the batch"
    return None if all(0 not in tensor.shape[1:] for tensor in call.results) else "one of its parts is empty"


def _reshape(call: Call) -> str | None:
    before, after = (tuple(side[0].shape) for side in (call.tensors, call.results))
    if before[0] != after[0]:
        return "it changes the batch axis"
    return "more than one size behind it is variable" if after[1:].count(None) > 1 else None


def _transpose(call: Call) -> str | None:
    axes = getattr(call.operation, "axes", (0,))  # Permute has dims, which leave the batch out
    return None if axes and axes[0] % _rank(call) == 0 else "it moves the batch axis"


def _pad(call: Call) -> str | None:
    widths = np.broadcast_to(call.operation.pad_width, (_rank(call), 2))
    zeros = len(call.inputs) == 1 and not any(np.any(np.asarray(value)) for value in _given(call))
    if call.operation.mode not in ("constant", "reflect", "symmetric") or not zeros:
        return "it pads with other values than zeros or the image's own"
    if call.operation.mode != "constant" and None in call.tensors[0].shape[1:]:
        return "it mirrors an axis of unknown size"
    return "it pads the batch axis" if np.any(widths[0]) else None


def _get_item(call: Call) -> str | None:
    kept = call.results[0].shape[0] == call.tensors[0].shape[0]  # a new axis in front would move the batch
    return (
        None
        if index_of(call) is not None and kept
        else "its index has tensors, parts of the batch or an axis before it"
    )


def _pick(call: Call) -> str | None:
    sizes = [1 if size is None else size for size in call.tensors[0].shape[1:]]
    found = picks.picks(call, type(call.operation).__name__, sizes)
    return "it picks parts of the batch, or places that are not known beforehand" if found is None else None


def _average_pool(call: Call) -> str | None:
    layer = call.operation
    strips = 1
    for size, stride in zip(layer.pool_size, layer.strides, strict=True):
        before = (size - 1) // 2  # pixels of padding, at most; behind the image there may be one more
        strips *= -(-before // stride) + 1 + -(-(size - 1 - before) // stride)
    if layer.padding != "same" or strips <= _MOST_STRIPS:
        return None
    return (
        f"its padded windows {tuple(layer.pool_size)} are of up to {strips} kinds, {_MOST_STRIPS} at most in integers"
    )


def _transposed_convolution(call: Call) -> str | None:
    layer = call.operation
    if set(layer.dilation_rate) == {1} or set(layer.strides) == {1}:
        return None
    return "it has strides and dilation at once"


_RULES: dict[str, Callable[[Call], str | None]] = {
    "BatchNormalization": _batch_norm,
    "Normalization": _normalization,
    "Rescaling": _rescaling,
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Maximum", "Minimum"), _elementwise),
    **dict.fromkeys(functions.DIVISIONS, _divide),
    **dict.fromkeys(picks.KINDS, _pick),
    **dict.fromkeys(functions.OPERATIONS, _function),
    "Softmax": _softmax,
    "Mean": _mean,
    "Cumsum": _cumsum,
    "Matmul": _matmul,
    "Embedding": _embedding,
    "Argmax": _argmax,
    "Argmin": _argmax,
    "Cast": _cast,
    "Where": _where,
    "TopK": _top_k,
    **dict.fromkeys(("Max", "Min"), _extremum_over_axes),
    "Concatenate": _concatenate,
    "Stack": _stack,
    "Average": _same_shapes,
    **dict.fromkeys(SPLITS, _split),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "ExpandDims"), _reshape),
    **dict.fromkeys(("Permute", "Transpose"), _transpose),
    "Pad": _pad,
    "GetItem": _get_item,
    "UpSampling2D": resizing.upsample,
    **dict.fromkeys(RESIZES, resizing.resize),
    "CenterCrop": resizing.center_crop,
    **dict.fromkeys(("AveragePooling1D", "AveragePooling2D"), _average_pool),
    "Conv2DTranspose": _transposed_convolution,
}
