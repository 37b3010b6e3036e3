"""Keras layers on packed ternary weights: two bits a weight in the file, in memory and on the way to the kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import keras
import numpy as np

from keras_lowbit import quantizers
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.host import FORMAT_VERSION, PACKAGE, QuantizerHost, take_format_version
from keras_lowbit.ops.epilogue import Requantize, Rescale
from keras_lowbit.ops.packing import Layout, PackedWeights, unpack
from keras_lowbit.quantizers.former import upgrade


class PackedLayer(keras.layers.Layer):
    """What the packed layers share: `activation(scale * sum code * x + bias)` with weights packed as `keras_lowbit.ops`.

    layout: how the weights are packed (`Layout`, or its fields as a dict).   input_range: (scale, zero point) of the int8
    codes that the sums are made of. Float inputs are quantized to it, int8 inputs are taken as such codes. None: the
    weights are unpacked at every call and the layer computes in float (small, but not fast).   output_range: None for
    float outputs, or (scale, zero point): the layer gives int8 codes as an int8 file does (then activation is None,
    "relu" or "relu6").   use_bias, activation: as in Keras.   output_quantizer: an activation range behind a fused
    activation, as in `QuantizedLayer`.

    Weights, none trained: data uint8, scales int8, sums int32, scale float32 [channels], bias float32 [channels]. Gradients
    go through to float inputs as if nothing had been rounded, 0 where an input saturates.
    """

    kernel_rank = 0

    def __init__(
        self,
        layout: Any,
        input_range: Sequence[float] | None = None,
        output_range: Sequence[float] | None = None,
        activation: Any = None,
        use_bias: bool = True,
        output_quantizer: Any = None,
        **kwargs: Any,
    ) -> None:
        version = take_format_version(kwargs, f"A {type(self).__name__}")
        super().__init__(**kwargs)
        self.supports_jit = (
            keras.backend.backend() == "jax"
        )  # there XLA calls the kernels; TensorFlow's ops are no part of it
        self.layout = layout if isinstance(layout, Layout) else Layout(**layout)
        self.input_range, self.output_range = _grid(input_range, "input_range"), _grid(output_range, "output_range")
        self.activation, self.use_bias = keras.activations.get(activation), use_bias
        found = quantizers.get(upgrade(output_quantizer, version))
        self.output_host = None if found is None else QuantizerHost(found, (), name="output_quantizer")
        self._check()

    def _check(self) -> None:
        if len(self.layout.kernel_shape) != self.kernel_rank:
            raise ValueError(
                f"{self.name!r} has packed weights of shape {self.layout.kernel_shape}; expected {self.kernel_rank} sizes"
            )
        if self.output_range is None:
            return
        if self.input_range is None or self.output_host is not None:
            raise ValueError(f"{self.name!r} has an output_range; it needs an input_range too, and no output_quantizer")
        if self.activation_name not in ("linear", "relu", "relu6"):
            raise ValueError(
                f"{self.name!r} gives int8 codes behind {self.activation_name!r}; only relu and relu6 are part of an integer "
                "layer: leave output_range out, or put the activation behind it"
            )

    @property
    def activation_name(self) -> str:
        """The activation's name in Keras."""
        name = keras.activations.serialize(self.activation)
        return name if isinstance(name, str) else "?"

    @property
    def fused_activation(self) -> str | None:
        """The activation as an integer layer names it."""
        return None if self.activation_name == "linear" else self.activation_name

    @property
    def zero_point(self) -> int:
        """Zero point of the input codes."""
        return 0 if self.input_range is None else self.input_range[1]

    def build(self, input_shape: Any) -> None:
        """Create the packed weights; `load` fills them."""
        layout, channels = self.layout, self.layout.window[3]
        shapes = {"data": layout.data_shape, "scales": layout.scales_shape, "sums": layout.sums_shape}
        kinds = {"data": "uint8", "scales": "int8", "sums": "int32"}
        for name, shape in shapes.items():
            weight = self.add_weight(name=name, shape=shape, dtype=kinds[name], initializer="zeros", trainable=False)
            setattr(self, f"packed_{name}", weight)
        self.scale = self._real("scale", channels)
        self.bias = self._real("bias", channels) if self.use_bias else None
        if self.output_host is not None:
            self.output_host.build(self.compute_output_shape(input_shape))
        self.built = True

    def _real(self, name: str, channels: int) -> Any:
        return self.add_weight(
            name=name, shape=(channels,), dtype="float32", initializer="zeros", trainable=False, autocast=False
        )

    def load(self, packed: PackedWeights, scale: np.ndarray, bias: np.ndarray | None) -> None:
        """Fill the weights of a built layer. scale: real size of the integer 1, [channels].   bias: reals [channels]."""
        for name in ("data", "scales", "sums"):
            getattr(self, f"packed_{name}").assign(getattr(packed, name))
        self.scale.assign(np.asarray(scale, np.float32))
        if self.bias is not None:
            self.bias.assign(np.zeros(len(scale)) if bias is None else bias)

    def packed(self) -> PackedWeights:
        """The packed weights as tensors."""
        tensors = (keras.ops.convert_to_tensor(getattr(self, f"packed_{name}")) for name in ("data", "scales", "sums"))
        return PackedWeights(self.layout, *tensors)

    def unpacked(self) -> np.ndarray:
        """The integer weights, int8 in the shape of the layout's kernel."""
        arrays = (self.packed_data, self.packed_scales, self.packed_sums)
        return unpack(PackedWeights(self.layout, *map(to_numpy, arrays)))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Float reals, or int8 codes with an output_range."""
        name = "jax_call" if keras.backend.backend() == "jax" else "integer_call"
        packed_call = import_module(f"keras_lowbit.deploy.packed.{name}")
        if self.output_range is not None:
            return packed_call.codes(self, inputs)
        outputs = packed_call.reals(self, inputs)
        fuses = self.activation_name in ("linear", "relu", "relu6")
        if fuses:
            outputs = self.activation(outputs)
        if self.output_host is not None:
            outputs = self.output_host(outputs)
        outputs = outputs if fuses else self.activation(outputs)
        return keras.ops.cast(outputs, self.compute_dtype)

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> keras.KerasTensor:
        """Shape and type of the outputs: int8 with an output_range."""
        kind = self.compute_dtype if self.output_range is None else "int8"
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype=kind)

    def integer(self, codes: Any, output: Requantize | Rescale, bias: Any = None) -> Any:
        """The layer's operation on int8 codes."""
        raise NotImplementedError(f"{type(self).__name__} does not define integer().")

    def linear(self, inputs: Any, kernel: Any) -> Any:
        """The layer's operation on reals with an unpacked kernel."""
        raise NotImplementedError(f"{type(self).__name__} does not define linear().")

    def get_config(self) -> dict[str, Any]:
        """Layout, ranges and the rest as plain values."""
        host = self.output_host
        config = super().get_config() | {
            "layout": dataclasses.asdict(self.layout),
            "input_range": self.input_range,
            "output_range": self.output_range,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "output_quantizer": None if host is None else quantizers.serialize(host.quantizer),
        }
        return config | {"format_version": FORMAT_VERSION}


@keras.saving.register_keras_serializable(PACKAGE)
class PackedTernaryConv2D(PackedLayer):
    """A 2-D convolution on packed ternary (or clustered) weights. Input [batch, h, w, c_in], output [batch, h', w', c_out].

    Made by `keras_lowbit.pack`.
    strides, padding, dilation_rate: as in `keras.layers.Conv2D`; padding is "valid" or "same".
    layout: a `Layout`, or its fields as a dict.   The rest as in `PackedTernaryDense`.

    >>> packed = klb.pack(ternary)
    >>> type(packed.get_layer("pointwise")).__name__
    'PackedTernaryConv2D'
    """

    kernel_rank = 4

    def __init__(
        self, layout: Any, strides: Any = 1, padding: str = "valid", dilation_rate: Any = 1, **kwargs: Any
    ) -> None:
        super().__init__(layout, **kwargs)
        self.strides, self.dilation_rate = (
            (value, value) if isinstance(value, int) else tuple(value) for value in (strides, dilation_rate)
        )
        self.padding = padding

    def integer(self, codes: Any, output: Requantize | Rescale, bias: Any = None) -> Any:
        """A convolution of int8 codes."""
        window: dict[str, Any] = {"strides": self.strides, "padding": self.padding, "dilations": self.dilation_rate}
        return _functions().clustered_ternary_conv2d(
            codes, self.packed(), input_zero_point=self.zero_point, output=output, bias=bias, **window
        )

    def linear(self, inputs: Any, kernel: Any) -> Any:
        """A convolution of reals."""
        return keras.ops.conv(inputs, kernel, self.strides, self.padding, "channels_last", self.dilation_rate)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """[batch, h', w', c_out]."""
        stock = keras.layers.Conv2D(
            self.layout.window[3],
            self.layout.window[:2],
            self.strides,
            self.padding,
            dilation_rate=self.dilation_rate,
            groups=self.layout.groups,
        )
        return tuple(stock.compute_output_shape(input_shape))

    def get_config(self) -> dict[str, Any]:
        """As `PackedLayer`, with strides, padding and dilation."""
        own = {"strides": self.strides, "padding": self.padding, "dilation_rate": self.dilation_rate}
        return super().get_config() | own


@keras.saving.register_keras_serializable(PACKAGE)
class PackedTernaryDense(PackedLayer):
    """A dense layer on packed ternary (or clustered) weights. Input [..., inputs], output [..., units].

    Made by `keras_lowbit.pack`.
    layout: a `Layout`, or its fields as a dict.   input_range, output_range: (scale, zero point) of int8 codes, None for float.
    activation, use_bias: as in Keras.   output_quantizer: an activation range behind a fused activation.

    >>> packed = klb.pack(ternary)
    >>> type(packed.get_layer("kind")).__name__
    'PackedTernaryDense'
    """

    kernel_rank = 2

    def integer(self, codes: Any, output: Requantize | Rescale, bias: Any = None) -> Any:
        """A product of int8 codes."""
        return _functions().ternary_dense(
            codes, self.packed(), input_zero_point=self.zero_point, output=output, bias=bias
        )

    def linear(self, inputs: Any, kernel: Any) -> Any:
        """A product of reals."""
        return keras.ops.matmul(inputs, kernel[0, 0])

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """[..., units]."""
        return (*input_shape[:-1], self.layout.window[3])


def _functions() -> Any:
    """The integer layers of Keras' backend."""
    return import_module(f"keras_lowbit.ops.{'jax_functions' if keras.backend.backend() == 'jax' else 'functions'}")


def _grid(value: Sequence[float] | None, name: str) -> tuple[float, int] | None:
    if value is None:
        return None
    scale, zero_point = float(value[0]), int(value[1])
    if not scale > 0 or not np.isfinite(scale) or not -128 <= zero_point <= 127:
        raise ValueError(f"{name} is {tuple(value)}; expected (a step above 0, a zero point from -128 to 127)")
    return scale, zero_point
