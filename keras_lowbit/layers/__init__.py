"""Keras 3 layers: stock arguments plus quantizers. `keras.ops` only, so they train on every Keras backend."""

from keras_lowbit.keras_graph.calls import find_layers
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.activation import QuantActivation
from keras_lowbit.layers.base import QuantizedLayer
from keras_lowbit.layers.constants import AddConstant, ChannelAffine, InverseRoot, MaskScores, MultiplyConstant
from keras_lowbit.layers.conv import QuantConv1D, QuantConv2D, QuantConv2DTranspose, QuantDepthwiseConv2D
from keras_lowbit.layers.dense import QuantDense
from keras_lowbit.layers.find import freeze_ranges, hosts, set_ratio
from keras_lowbit.layers.host import QuantizerHost
from keras_lowbit.layers.keep_float import KeepFloat
from keras_lowbit.layers.recurrent import QuantLSTM
from keras_lowbit.layers.stock_networks import load_model, set_weights

__all__ = [
    "AddConstant",
    "ChannelAffine",
    "InverseRoot",
    "KeepFloat",
    "MaskScores",
    "MultiplyConstant",
    "QuantActivation",
    "QuantConv1D",
    "QuantConv2D",
    "QuantConv2DTranspose",
    "QuantDense",
    "QuantDepthwiseConv2D",
    "QuantLSTM",
    "QuantizedLayer",
    "QuantizerHost",
    "find_layers",
    "freeze_ranges",
    "hosts",
    "load_model",
    "set_ratio",
    "set_weights",
    "to_numpy",
]
