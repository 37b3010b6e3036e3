"""What every quantized layer with a kernel shares: quantizer state for kernel, bias and output; configuration."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lowbit import quantizers
from keras_lowbit.keras_graph.calls import find_layers
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.float_files import is_float_file, turn_to_stock_entry
from keras_lowbit.layers.host import (
    FORMAT_VERSION,
    QuantizerHost,
    require_float_policy,
    take_format_version,
    with_own_state,
)
from keras_lowbit.quantizers.former import upgrade

_STAND_INS: ContextVar[Mapping[tuple[int, str], Any]] = ContextVar(
    "weights that stand in, by the id of the layer and role"
)


@contextmanager
def weights_standing_in(kernels: Mapping[Any, Any], biases: Mapping[Any, Any] | None = None) -> Iterator[None]:
    """Inside, eager calls of these layers compute with the given reals instead of their quantized kernels and biases.

    Only calls of this thread: nothing of a layer is changed, other threads see it as it is.
    """
    given = {"kernel": kernels, "bias": biases or {}}
    token = _STAND_INS.set({(id(layer), role): real for role, reals in given.items() for layer, real in reals.items()})
    try:
        yield
    finally:
        _STAND_INS.reset(token)


class HasQuantizers:
    """Mixin in front of a Keras layer: quantizers by role, as arguments, properties, sub-layers and configuration."""

    trainable: bool

    def take_quantizers(self, version: int, **given: Any) -> None:
        """Keep what the constructor was given for each role. ValueError for a quantizer that does not fit its role."""
        self._quantizers = {role: quantizers.get(upgrade(config, version)) for role, config in given.items()}
        for role, quantizer in self._quantizers.items():
            check_role(type(self).__name__, role, quantizer)

    def make_host(
        self, role: str, quantizer: quantizers.Quantizer | None, filter_axes: tuple[int, ...] = ()
    ) -> QuantizerHost | None:
        """The sub-layer of a quantizer; None without one."""
        if quantizer is None:
            return None
        return QuantizerHost(quantizer, filter_axes, name=f"{role}_quantizer", trainable=self.trainable)

    @property
    def kernel_quantizer(self) -> quantizers.Quantizer | None:
        """The quantizer of the kernel, or of both kernels of a recurrent layer, or None."""
        return self._quantizers["kernel"]

    @property
    def output_quantizer(self) -> quantizers.Quantizer | None:
        """The quantizer of the integer operation's output (see the class), or None."""
        return self._quantizers["output"]

    def get_config(self) -> dict[str, Any]:
        """The stock configuration and the quantizers as plain dicts."""
        config = super().get_config()  # type: ignore[misc]
        for role, quantizer in self._quantizers.items():
            config[f"{role}_quantizer"] = quantizers.serialize(quantizer)
        return config | {"format_version": FORMAT_VERSION}


class QuantizedLayer(HasQuantizers, keras.layers.Layer):
    """Mixin in front of a stock Keras layer: adds `kernel_quantizer`, `bias_quantizer`, `output_quantizer`.

    Each is an object, a short name, a plain dict or None (float). Kernel and bias are read as float32
    whatever the precision policy, quantized in float32, and only the result is cast. `output_quantizer`
    stands where the integer operation ends: behind no activation, relu or relu6, which fuse with it, and before
    any other (softmax, sigmoid, ...), which is an operation of its own. The stock layer's weights keep their places;
    quantizer state lives in sub-layers. Under ``trainable=False`` ranges stand still in `fit`, as a batch norm's statistics do.

    >>> [layer.name for layer in klb.layers.find_layers(ternary, klb.layers.QuantizedLayer)]
    ['first', 'depthwise', 'pointwise', 'kind']
    """

    #: Axes of the kernel that tell output channels apart: the `output_axes` of its `numerics.kernel_layouts.KernelLayout`.
    filter_axes: tuple[int, ...]

    def __init__(
        self,
        *args: Any,
        kernel_quantizer: Any = None,
        bias_quantizer: Any = None,
        output_quantizer: Any = None,
        **kwargs: Any,
    ) -> None:
        version = take_format_version(kwargs, f"A {type(self).__name__}")
        super().__init__(*args, **kwargs)
        require_float_policy(self)
        self.take_quantizers(version, kernel=kernel_quantizer, bias=bias_quantizer, output=output_quantizer)
        self.kernel_host = self.make_host("kernel", self.kernel_quantizer, self.filter_axes)
        self.bias_host = self.make_host("bias", self.bias_quantizer)
        self.output_host = self.make_host("output", self.output_quantizer)

    @property
    def bias_quantizer(self) -> quantizers.Quantizer | None:
        """The quantizer of the bias, or None."""
        return self._quantizers["bias"]

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras', except that a weight with a quantizer stays float32 inside a mixed-precision call."""
        if kwargs.get("name") in ("kernel", "bias") and self._quantizers[kwargs["name"]] is not None:
            kwargs["autocast"] = False
        return super().add_weight(*args, **kwargs)

    def build(self, input_shape: Any) -> None:
        """Build the stock weights, then the quantizers' variables for their shapes."""
        require_float_policy(self)  # it can be set between
        super().build(input_shape)
        if self.kernel_host is not None:
            self.kernel_host.build(tuple(self.kernel.shape))
        if self.bias_host is not None and self.bias is not None:
            self.bias_host.build(tuple(self.bias.shape))
        if self.output_host is not None:
            self.output_host.build(self.compute_output_shape(input_shape))
        self.built = True

    def effective_bias(self) -> np.ndarray | None:
        """The bias after its quantizer, a NumPy array [channels] of floats; None for a layer without a bias."""
        if self.bias is None:
            return None
        return to_numpy(self.bias if self.bias_host is None else self.bias_host.encode(self.bias).real)

    def quantized_kernel(self, training: bool | None = None) -> Any:
        """The kernel the forward pass multiplies with, in the compute dtype, layout of the stock kernel."""
        return self._weight("kernel", training)

    def linear(self, inputs: Any, training: bool | None = None) -> Any:
        """The operation with the quantized kernel alone, without bias: [batch, ..., channels]."""
        raise NotImplementedError(f"{type(self).__name__} does not define linear().")

    @property
    def activation_fuses(self) -> bool:
        """Whether the activation (none, relu, relu6) is part of the integer operation."""
        fused = (None, keras.activations.linear, keras.activations.relu, keras.activations.relu6)
        return self.activation in fused

    def integer_output(self, inputs: Any, training: bool | None = None) -> Any:
        """What the integer pipeline stores: linear operation, bias, an activation that fuses, output quantizer."""
        outputs = self.linear(inputs, training)
        if self.bias is not None:
            bias = self._weight("bias", training)
            if getattr(self, "data_format", "channels_last") == "channels_first":
                bias = ops.reshape(bias, (1, -1) + (1,) * (len(outputs.shape) - 2))
            outputs = ops.add(outputs, bias)
        if self.activation is not None and self.activation_fuses:
            outputs = self.activation(outputs)
        return self._through(self.output_host, outputs, training)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """``activation(linear(x, q(kernel)) + q(bias))``, with the output quantizer as the class says."""
        outputs = self.integer_output(inputs, training)
        return outputs if self.activation_fuses else self.activation(outputs)

    def _weight(self, role: str, training: bool | None) -> Any:
        if (real := _STAND_INS.get({}).get((id(self), role))) is not None:
            return ops.cast(real, self.compute_dtype)
        return self._through(getattr(self, f"{role}_host"), getattr(self, role), training)

    def _through(self, host: QuantizerHost | None, real: Any, training: bool | None) -> Any:
        if host is None:
            return real
        return ops.cast(host(real, training=training), self.compute_dtype)

    def load_own_variables(self, store: Any) -> None:
        """Read kernel and bias; from a file of the stock network those of the layer that this one stands in for."""
        if self.built and not len(store.keys()) and is_float_file(store):
            turn_to_stock_entry(store, self)
        super().load_own_variables(store)

    def set_weights(self, weights: Any) -> None:
        """As Keras'; a list from the stock layer's `get_weights` sets kernel and bias, the quantizers stay at their start."""
        super().set_weights(with_own_state(self, weights))

    def quantize(self, mode: Any = None, **options: Any) -> None:
        """Refused: Keras' codes would take the place of the kernel that `kernel_quantizer` quantizes."""
        raise NotImplementedError(
            f"{type(self).__name__} {self.name!r} has quantizers of its own, so Keras' quantize({mode!r}) passes it over. "
            "Use kernel_quantizer='uniform' for int8 weights, or keras_lowbit.dequantize(model) and quantize that."
        )


def check_role(owner: str, role: str, quantizer: quantizers.Quantizer | None) -> None:
    """ValueError for a quantizer of activations on weights, and for one of weights on the output."""
    if quantizer is None or quantizers.is_activation_quantizer(quantizer) == (role == "output"):
        return
    both = isinstance(quantizer, quantizers.DynamicFixedPoint)  # of weights and of activations
    if not both:
        fits = "activations: 'activation'" if role == "output" else "weights: 'uniform' or 'ternary'"
        raise ValueError(f"{owner} got {role}_quantizer={quantizer}; give one of {fits}.")


def kernel_layers(model: Any) -> list[Any]:
    """Every layer of `model` with a kernel quantizer, each once: `kernel`, `kernel_host`, `kernel_quantizer`, `built`.

    A view of a model of another Keras (see `keras_lowbit.tfmot`) names its own, in `kernel_layers()`.
    """
    if hasattr(model, "kernel_layers"):
        return model.kernel_layers()
    return [layer for layer in find_layers(model, QuantizedLayer) if layer.kernel_host is not None]
