"""Layers of what a model computes with beside kernels: factors and offsets of channels, constants of every position."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
from keras import ops

from keras_lowbit.layers.host import PACKAGE, require_float_policy
from keras_lowbit.quantizers import Quantized, Uniform


class Plain(keras.layers.Layer):
    """A layer of float weights whose result has the shape of its input."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_float_policy(self)
        self.supports_masking = True

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the input."""
        return input_shape


@keras.saving.register_keras_serializable(PACKAGE)
class ChannelAffine(Plain):
    """``y = scale * x + offset``, one trainable scale and offset for each channel (the last axis); both stay float.

    The integer graph has them in the factors and biases of a depthwise convolution, so nothing is rounded but the result.
    use_scale, use_offset: what there is of the two. scale [C] starts as ones, offset [C] as zeros. Any shape in, the same out.

    >>> layer = klb.layers.ChannelAffine(name="gamma_and_beta")
    >>> layer(images).shape
    TensorShape([32, 8, 8, 3])
    """

    def __init__(self, use_scale: bool = True, use_offset: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.use_scale, self.use_offset = use_scale, use_offset

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights."""
        channels = (input_shape[-1],)
        self.scale = self.add_weight(name="scale", shape=channels, initializer="ones") if self.use_scale else None
        self.offset = self.add_weight(name="offset", shape=channels, initializer="zeros") if self.use_offset else None
        self.built = True

    def call(self, inputs: Any) -> Any:
        """``scale * x + offset`` in the compute dtype."""
        scaled = inputs if self.scale is None else ops.multiply(inputs, ops.cast(self.scale, self.compute_dtype))
        return scaled if self.offset is None else ops.add(scaled, ops.cast(self.offset, self.compute_dtype))

    def get_config(self) -> dict[str, Any]:
        """What there is of scale and offset."""
        return super().get_config() | {"use_scale": self.use_scale, "use_offset": self.use_offset}


_EIGHT_BITS = Uniform(bits=8, granularity="tensor")


class _Constant(Plain):
    """Holds the constant of `AddConstant` or `MultiplyConstant`."""

    _START = "zeros"

    def __init__(self, shape: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape = tuple(int(size) for size in shape)
        self.quantizer: Uniform | None = _EIGHT_BITS

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the constant. ValueError if its shape does not fit the input's."""
        sizes = tuple(input_shape[1:])
        if len(self.shape) != len(sizes) or any(
            own not in (1, size) for own, size in zip(self.shape, sizes, strict=True)
        ):
            raise ValueError(
                f"{type(self).__name__} {self.name!r} has the shape {self.shape}, its input {sizes} without the batch: give as "
                "many axes, each of the input's size or of size 1."
            )
        self.constant = self.add_weight(name="constant", shape=self.shape, initializer=self._START)
        self.built = True

    def quantized(self) -> Quantized:
        """Codes and scale of the constant."""
        return _EIGHT_BITS.encode(ops.convert_to_tensor(self.constant), {}, ())

    def rounded(self) -> Any:
        """The constant as the file has it, in the compute dtype, with a batch axis."""
        real = ops.convert_to_tensor(self.constant)
        return ops.cast(real if self.quantizer is None else self.quantizer(real, {}), self.compute_dtype)[None]

    def get_config(self) -> dict[str, Any]:
        """The shape of the constant."""
        return super().get_config() | {"shape": self.shape}


@keras.saving.register_keras_serializable(PACKAGE)
class AddConstant(_Constant):
    """``y = x + c`` for a trainable constant of every position, such as an embedding of places.

    The constant is held to 8 bits with one scale, as the file has it: ``s * clip(round(c / s), -127, 127)`` with
    ``s = max|c| / 127``; its gradient passes through.
    shape: of the constant, without the batch: as many axes as the input has behind its batch, each of the input's size or of
    size 1; ValueError for another. It starts as zeros.

    >>> klb.layers.AddConstant(shape=(4, 1))(np.ones((1, 4, 3), "float32")).shape
    TensorShape([1, 4, 3])
    """

    def call(self, inputs: Any) -> Any:
        """``x + c``."""
        return ops.add(inputs, self.rounded())


@keras.saving.register_keras_serializable(PACKAGE)
class MultiplyConstant(_Constant):
    """``y = x * c`` for a trainable constant of every position, such as the slopes of a PReLU.

    The constant is held to 8 bits as that of `AddConstant`; it starts as ones.
    shape: as there.

    >>> klb.layers.MultiplyConstant(shape=(1, 3))(np.full((1, 4, 3), 2.0, "float32")).numpy().max()
    np.float32(2.0)
    """

    _START = "ones"

    def call(self, inputs: Any) -> Any:
        """``x * c``."""
        return ops.multiply(inputs, self.rounded())


@keras.saving.register_keras_serializable(PACKAGE)
class MaskScores(Plain):
    """``y = x`` where a constant mask allows it, else a number so low that a softmax behind it gives nothing: -1e9 (-3e4 in
    float16).

    In the integer graph a minimum with a constant: the lowest code stands for "not allowed", in a range that goes on below the
    smallest score (`ActivationRange.room_below`).
    shape: of the mask, without the batch: as many axes as the input has behind its batch, each of the input's size or of size
    1. The mask itself, `allowed`, is a weight that does not train, 1 and 0; it starts as ones.

    >>> mask = klb.layers.MaskScores(shape=(1, 3))
    >>> mask(np.ones((1, 4, 3), "float32")).shape
    TensorShape([1, 4, 3])
    """

    def __init__(self, shape: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape = tuple(int(size) for size in shape)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the mask."""
        self.allowed = self.add_weight(name="allowed", shape=self.shape, initializer="ones", trainable=False)
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The scores that are allowed."""
        lowest = -3e4 if self.compute_dtype == "float16" else -1e9
        return ops.where(ops.cast(self.allowed, "bool")[None], inputs, ops.cast(lowest, inputs.dtype))

    def get_config(self) -> dict[str, Any]:
        """The shape of the mask."""
        return super().get_config() | {"shape": self.shape}


@contextlib.contextmanager
def unrounded(layers: Iterable[Any]) -> Iterator[None]:
    """Inside of it the constants among `layers` are not rounded."""
    constants = [layer for layer in layers if isinstance(layer, _Constant)]
    try:
        for layer in constants:
            layer.quantizer = None
        yield
    finally:
        for layer in constants:
            layer.quantizer = _EIGHT_BITS


@keras.saving.register_keras_serializable(PACKAGE)
class InverseRoot(Plain):
    """``y = 1 / sqrt(factor * x + epsilon)``, as a normalization has it of a sum of squares: one table in the integer graph.

    factor, epsilon: numbers above 0. Any shape in, the same out; x below 0 counts as 0.

    >>> float(klb.layers.InverseRoot(factor=4.0, epsilon=1e-6)(np.ones((1, 1), "float32"))[0, 0])
    0.49999...
    """

    def __init__(self, factor: float = 1.0, epsilon: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor, self.epsilon = float(factor), float(epsilon)

    def call(self, inputs: Any) -> Any:
        """``1 / sqrt(factor * x + epsilon)`` in float32."""
        real = ops.maximum(ops.cast(inputs, "float32"), 0.0)
        return ops.cast(ops.rsqrt(ops.add(ops.multiply(real, self.factor), self.epsilon)), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Factor and epsilon."""
        return super().get_config() | {"factor": self.factor, "epsilon": self.epsilon}
