"""QuantizeConfigs: which quantizer of this library sits where in a tf_keras layer."""

from collections.abc import Mapping
from typing import Any

import tensorflow_model_optimization as tfmot
import tf_keras

from keras_lowbit import quantizers
from keras_lowbit.layers.host import FORMAT_VERSION, PACKAGE, take_format_version
from keras_lowbit.numerics.kernel_layouts import LAYOUTS
from keras_lowbit.quantizers import (
    ActivationRange,
    AdjustableThreshold,
    Clustered,
    Incremental,
    PowerOfTwo,
    Stochastic,
    Uniform,
)
from keras_lowbit.quantizers.former import upgrade
from keras_lowbit.tfmot.adapter import LowbitQuantizer

_DEPTHWISE = ("depthwise_kernel", LAYOUTS["DepthwiseConv2D"].output_axes)
#: Class name of a tf_keras layer -> its kernels: attribute and the axes that tell output channels apart.
KERNELS: dict[str, tuple[tuple[str, tuple[int, ...]], ...]] = {
    **{kind: (("kernel", layout.output_axes),) for kind, layout in LAYOUTS.items()},
    "DepthwiseConv2D": (_DEPTHWISE,),
    "SeparableConv2D": (_DEPTHWISE, ("pointwise_kernel", LAYOUTS["Conv2D"].output_axes)),
}
# Around these TFMOT's QuantizeAwareActivation places a quantizer: before, behind or (gelu) on both sides.
_TFMOT_ACTIVATIONS = ("linear", "relu", "swish", "gelu", "softmax", "sigmoid", "tanh", "NoOpActivation")


def kernels_of(layer: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Attribute and filter axes of every kernel of a tf_keras layer, () for a layer without one that is known here.

    A subclass has the kernels of the nearest known class it derives from.
    """
    return next((KERNELS[cls.__name__] for cls in type(layer).__mro__ if cls.__name__ in KERNELS), ())


class LowbitQuantizeConfig(tfmot.quantization.keras.QuantizeConfig):
    """Base of the QuantizeConfigs of this library: none of its hooks quantizes anything.

    Two are equal if they have the same class and configuration.
    """

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, LowbitQuantizer]]:
        """Variables of `layer` and the quantizer of each: none."""
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        """Put quantized tensors in the places of the variables: nothing to do."""
        return  # AutoGraph cannot read a function of a docstring alone

    def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, LowbitQuantizer]]:
        """Activation functions of `layer` and the quantizer of each: none."""
        return []

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        """Put quantizing functions in the places of the activations: nothing to do."""
        return

    def get_output_quantizers(self, layer: Any) -> list[LowbitQuantizer]:
        """The quantizer of the layer's result: none."""
        return []

    def arguments(self) -> dict[str, Any]:
        """The arguments as plain values."""
        return {}

    def get_config(self) -> dict[str, Any]:
        """The arguments as plain values, with the format version."""
        return self.arguments() | {"format_version": FORMAT_VERSION}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "LowbitQuantizeConfig":
        """The config of a dict as `get_config` writes it; without a version it is of the first format."""
        arguments = {"format_version": 1} | dict(config)
        version = take_format_version(arguments, f"A {cls.__name__}")
        return cls._of(**upgrade(arguments, version))

    @classmethod
    def _of(cls, **arguments: Any) -> "LowbitQuantizeConfig":
        return cls(**arguments)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((type(self), str(self.get_config())))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.arguments().items())
        return f"{type(self).__name__}({arguments})"


@tf_keras.utils.register_keras_serializable(PACKAGE)
class NoOpQuantizeConfig(LowbitQuantizeConfig):
    """Leaves a layer as it is: float, or part of the operation in front of it (batch norm).

    >>> layer = annotate(tf_keras.layers.Conv2D(8, 3), klt.NoOpQuantizeConfig())
    """


@tf_keras.utils.register_keras_serializable(PACKAGE)
class OutputQuantizeConfig(LowbitQuantizeConfig):
    """Quantizes the result of a layer and nothing else: for Activation, ReLU, Add, pooling, batch norm.

    quantizer: object, short name or plain dict; "activation" (8 bits, asymmetric) by default.

    >>> layer = annotate(tf_keras.layers.ReLU(), klt.OutputQuantizeConfig())
    """

    def __init__(self, quantizer: Any = "activation") -> None:
        self.output_quantizer = LowbitQuantizer(quantizer)

    def get_output_quantizers(self, layer: Any) -> list[LowbitQuantizer]:
        """The quantizer of the layer's result."""
        return [self.output_quantizer]

    def arguments(self) -> dict[str, Any]:
        """The quantizer as a plain dict."""
        return {"quantizer": quantizers.serialize(self.output_quantizer.quantizer)}


@tf_keras.utils.register_keras_serializable(PACKAGE)
class KernelQuantizeConfig(LowbitQuantizeConfig):
    """Quantizes the kernels of Conv1D, Conv2D, DepthwiseConv2D, SeparableConv2D, Conv2DTranspose or Dense.

    kernel: object, short name or plain dict. Both kernels of a separable convolution get it.
    activation: quantizer of what the layer hands on, None leaves it float. It stands where the integer operation ends:
    before softmax, sigmoid and tanh, behind any other activation.
    Raises ValueError for None in place of the kernel's quantizer.

    >>> layer = annotate(tf_keras.layers.Conv2D(8, 3), klt.KernelQuantizeConfig(klb.quantizers.Uniform(4)))
    """

    def __init__(self, kernel: Any, activation: Any = "activation") -> None:
        found = quantizers.get(kernel)
        if found is None:
            raise ValueError(
                f"{type(self).__name__} needs a quantizer for the kernel, got None. Known: {quantizers.known_names()}. To "
                "quantize a layer's result alone use OutputQuantizeConfig."
            )
        self.kernel_quantizer = found
        given = quantizers.get(activation)
        self.activation_quantizer = None if given is None else LowbitQuantizer(given)

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, LowbitQuantizer]]:
        """Every kernel of `layer`, and the quantizer with the axes that tell its output channels apart."""
        kernels = _require_kernels(self, layer)
        return [(getattr(layer, name), LowbitQuantizer(self.kernel_quantizer, axes)) for name, axes in kernels]

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        """The layer computes with the quantized tensors from now on."""
        names = [name for name, _ in _require_kernels(self, layer)]
        if len(names) != len(quantize_weights):
            raise ValueError(f"Layer {layer.name!r} has the kernels {names}, got {len(quantize_weights)} tensors.")
        for name, quantized in zip(names, quantize_weights, strict=True):
            if tuple(getattr(layer, name).shape) != tuple(quantized.shape):
                raise ValueError(
                    f"{name} of layer {layer.name!r} has shape {tuple(getattr(layer, name).shape)}, the quantized tensor "
                    f"{tuple(quantized.shape)}. A quantizer must keep the shape."
                )
            setattr(layer, name, quantized)

    def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, LowbitQuantizer]]:
        """The layer's own activation, where TFMOT knows on which side of it to quantize."""
        if self.activation_quantizer is None or not _tfmot_knows(layer.activation):
            return []
        return [(layer.activation, self.activation_quantizer)]

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        """The layer ends with the quantizing function from now on."""
        for activation in quantize_activations:
            layer.activation = activation

    def get_output_quantizers(self, layer: Any) -> list[LowbitQuantizer]:
        """The activation quantizer, behind the activations TFMOT does not know (relu6, leaky relu, elu)."""
        if self.activation_quantizer is None or _tfmot_knows(layer.activation):
            return []
        return [self.activation_quantizer]

    def without_activation(self) -> "KernelQuantizeConfig":
        """The same for a layer whose result is quantized further on, behind a batch norm or a relu."""
        return KernelQuantizeConfig(self.kernel_quantizer, None)

    def arguments(self) -> dict[str, Any]:
        """Both quantizers as plain dicts."""
        activation = self.activation_quantizer and self.activation_quantizer.quantizer
        return {
            "kernel": quantizers.serialize(self.kernel_quantizer),
            "activation": quantizers.serialize(activation),
        }

    @classmethod
    def _of(cls, **arguments: Any) -> "KernelQuantizeConfig":
        made = cls.__new__(cls)  # subclasses have arguments of their own, which their configuration does not hold
        KernelQuantizeConfig.__init__(made, **arguments)
        return made


@tf_keras.utils.register_keras_serializable(PACKAGE)
class SQQuantizeConfig(KernelQuantizeConfig):
    """SQ, stochastic quantization of the kernel over any base grid: `quantizers.Stochastic`.

    base: "ternary" (SQ-TWN), "binary" (SQ-BWN) or any quantizer.   activation: as in `KernelQuantizeConfig`.
    options: granularity, probability, selection, hybrid_evaluation, seed of `Stochastic`.
    Train with `callbacks.RatioSchedule`, or `callbacks.for_model`. Dong et al. 2017, arXiv:1708.01001.

    >>> layer = annotate(tf_keras.layers.Conv2D(8, 3), klt.SQQuantizeConfig("ternary"))
    """

    def __init__(self, base: Any = "ternary", activation: Any = "activation", **options: Any) -> None:
        super().__init__(Stochastic(base, **options), activation)


@tf_keras.utils.register_keras_serializable(PACKAGE)
class INQQuantizeConfig(KernelQuantizeConfig):
    """INQ, incremental quantization of the kernel onto powers of two: `quantizers.Incremental`.

    bits: 2 to 5.   base: another grid in their place (then `bits` is not read).   activation: as in
    `KernelQuantizeConfig`.   options: partition, hybrid_evaluation of `Incremental`.
    Train with `callbacks.PartitionSchedule`, or `callbacks.for_model`. Zhou et al. 2017, arXiv:1702.03044.

    >>> layer = annotate(tf_keras.layers.Conv2D(8, 3), klt.INQQuantizeConfig(bits=4))
    """

    def __init__(self, bits: int = 5, activation: Any = "activation", base: Any = None, **options: Any) -> None:
        super().__init__(Incremental(PowerOfTwo(bits) if base is None else base, **options), activation)


@tf_keras.utils.register_keras_serializable(PACKAGE)
class ClusteredQuantizeConfig(KernelQuantizeConfig):
    """Clusters of few-bit codes with 8-bit scales: `quantizers.Clustered`; activations in dynamic fixed point.

    base: "ternary" or Uniform(4).   cluster_size: input channels in a cluster.   activation: as in
    `KernelQuantizeConfig`.   options: calibration, groups, scale_bits, granularity, int8_exact of `Clustered`.
    Mellempudi et al. 2017, arXiv:1701.08978.

    >>> layer = annotate(tf_keras.layers.Conv2D(8, 3), klt.ClusteredQuantizeConfig("ternary", cluster_size=4))
    """

    def __init__(
        self, base: Any = "ternary", cluster_size: int = 4, activation: Any = "dynamic_fixed_point", **options: Any
    ) -> None:
        super().__init__(Clustered(base, cluster_size, **options), activation)


@tf_keras.utils.register_keras_serializable(PACKAGE)
class FATQuantizeConfig(KernelQuantizeConfig):
    """FAT, thresholds with trained factors for kernel and result: `quantizers.AdjustableThreshold`.

    bits: of the kernel, 2 to 8.   granularity: thresholds per "channel" or "tensor".   activation: as in
    `KernelQuantizeConfig`; by default an asymmetric 8-bit range with trained ends.
    options: limits, calibration, project of the kernel's `AdjustableThreshold`.
    The factors are trainable variables of the model. Goncharenko et al. 2018, arXiv:1812.07872.

    >>> layer = annotate(tf_keras.layers.Conv2D(8, 3), klt.FATQuantizeConfig(bits=8, granularity="tensor"))
    """

    def __init__(self, bits: int = 8, granularity: str = "channel", activation: Any = "fat", **options: Any) -> None:
        if activation == "fat":
            activation = AdjustableThreshold(ActivationRange(), mode="asymmetric")
        super().__init__(AdjustableThreshold(Uniform(bits, granularity), **options), activation)


def _tfmot_knows(activation: Any) -> bool:
    return getattr(activation, "__name__", type(activation).__name__) in _TFMOT_ACTIVATIONS


def _require_kernels(config: Any, layer: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    kernels = kernels_of(layer)
    if not kernels:
        raise ValueError(
            f"{type(config).__name__} was given to layer {layer.name!r} ({type(layer).__name__}), which has no kernel known "
            f"here; it is for {', '.join(KERNELS)}. For a layer without a kernel use OutputQuantizeConfig or "
            "NoOpQuantizeConfig."
        )
    return kernels
