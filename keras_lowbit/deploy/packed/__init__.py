"""Keras layers on packed weights."""

from keras_lowbit.deploy.packed.layers import PackedLayer, PackedTernaryConv2D, PackedTernaryDense

__all__ = ["PackedLayer", "PackedTernaryConv2D", "PackedTernaryDense"]
