"""Integer layers on packed weights for TensorFlow: compiled kernels, or plain TensorFlow with equal integers.

Nothing is loaded before the first call, TensorFlow included. `available_kernels()` and `active_kernel()` say what can
run and what does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from keras_lowbit.ops.epilogue import Requantize, Rescale, ResidualAdd
from keras_lowbit.ops.library import (
    LibraryError,
    active_kernel,
    available_kernels,
    ceilings,
    compiled_kernels,
    load,
    using_kernel,
    why_not,
)
from keras_lowbit.ops.packing import Layout, PackedWeights, pack_int8, pack_kernel, pack_ternary, unpack

if TYPE_CHECKING:
    from keras_lowbit.ops.functions import (
        clustered_ternary_conv2d,
        int8_conv2d,
        int8_dense,
        int8_depthwise_conv2d,
        ternary_dense,
    )

__all__ = [
    "Layout",
    "LibraryError",
    "PackedWeights",
    "Requantize",
    "Rescale",
    "ResidualAdd",
    "active_kernel",
    "available_kernels",
    "ceilings",
    "clustered_ternary_conv2d",
    "compiled_kernels",
    "int8_conv2d",
    "int8_dense",
    "int8_depthwise_conv2d",
    "load",
    "pack_int8",
    "pack_kernel",
    "pack_ternary",
    "ternary_dense",
    "unpack",
    "using_kernel",
    "why_not",
]


def __getattr__(name: str) -> Any:
    """The functions, whose module imports TensorFlow."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module("keras_lowbit.ops.functions"), name)
