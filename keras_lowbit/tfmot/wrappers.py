"""Access to what TFMOT's wrappers hold of ours: quantizers with their variables, kernels, ranges."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow_model_optimization as tfmot
import tf_keras

from keras_lowbit.quantizers import Quantized, Quantizer
from keras_lowbit.quantizers.base import SEED
from keras_lowbit.tfmot.adapter import LowbitQuantizer, state_values

_GIVEN_KERAS_3 = """{where} is for tf_keras (Keras 2) models, got a Keras 3 model: {kind}. Keras 3 models need no detour:
    model, report = keras_lowbit.quantize_model(model, "sq-twn")
    model.fit(..., callbacks=keras_lowbit.recipes.get("sq-twn").callbacks(epochs=12))"""


def require_tf_keras(where: str, model: Any) -> None:
    """A TypeError that says where to go unless `model` is a tf_keras model."""
    if isinstance(model, tf_keras.Model):
        return
    kind = f"{type(model).__module__}.{type(model).__name__}"
    if any(cls.__module__.partition(".")[0] == "keras" for cls in type(model).__mro__):
        raise TypeError(_GIVEN_KERAS_3.format(where=where, kind=kind))
    raise TypeError(f"{where} needs a tf_keras model, got {kind}.")


@dataclasses.dataclass(eq=False)
class WrappedQuantizer:
    """One quantizer of ours in a TFMOT wrapper with its variables, with the accessors of a `layers.QuantizerHost`."""

    path: str
    adapter: LowbitQuantizer
    variables: dict[str, Any]
    built: bool = True

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer."""
        return self.adapter.quantizer

    @property
    def filter_axes(self) -> tuple[int, ...]:
        """Axes that tell output channels apart, () for activations."""
        return self.adapter.filter_axes

    @property
    def state(self) -> dict[str, Any]:
        """Name -> variable, without the random generator's."""
        return {key: variable for key, variable in self.variables.items() if key != SEED}

    def values(self) -> dict[str, Any]:
        """The state as tensors, with the random generator under ``"seed"``."""
        return state_values(self.variables)

    def encode(self, real: Any) -> Quantized:
        """Codes, scale and zero point of `real` under the current state: what is deployed."""
        return self.adapter.encode(real, self.variables)


@dataclasses.dataclass(eq=False)
class WrappedKernel:
    """One kernel of a wrapped layer with its quantizer, with the accessors of a `layers.QuantizedLayer`."""

    kernel: Any
    kernel_host: WrappedQuantizer
    built: bool = True

    @property
    def kernel_quantizer(self) -> Quantizer:
        """The quantizer of the kernel."""
        return self.kernel_host.quantizer


class WrappedModel:
    """A tf_keras model with TFMOT's wrappers in it, with the accessors that `keras_lowbit.callbacks` need.

    Raises TypeError for any other model.
    """

    def __init__(self, model: Any, where: str = "keras_lowbit.tfmot") -> None:
        require_tf_keras(where, model)
        self.model = model
        self.name = model.name

    @property
    def optimizer(self) -> Any:
        """The optimizer `model` was compiled with."""
        return self.model.optimizer

    @property
    def trainable_variables(self) -> list[Any]:
        """The variables the optimizer trains."""
        return self.model.trainable_variables

    @property
    def distribute_strategy(self) -> Any:
        """The strategy `model` was built under."""
        return self.model.distribute_strategy

    def kernel_layers(self) -> list[WrappedKernel]:
        """Every kernel with a quantizer of ours, in the order of the layers."""
        return [kernel for wrapper in wrappers(self.model) for kernel in kernels_in(wrapper)]

    def quantizer_hosts(self) -> list[tuple[str, WrappedQuantizer]]:
        """Path ("quant_conv/kernel") and state of every quantizer of ours."""
        found = []
        for layer in self.model._flatten_layers():
            found += [(state.path, state) for state in _quantizers_in(layer)]
        return found


def wrappers(model: Any) -> list[Any]:
    """Every QuantizeWrapper of TFMOT inside a tf_keras model, nested models included."""
    kind = tfmot.quantization.keras.QuantizeWrapper
    return [layer for layer in model._flatten_layers() if isinstance(layer, kind)]


def inner_layer(layer: Any) -> Any:
    """The layer inside a QuantizeWrapper, any other layer itself."""
    return layer.layer if isinstance(layer, tfmot.quantization.keras.QuantizeWrapper) else layer


# TFMOT has no public way to a wrapper's quantizers; these functions are the only place that reads its private ones.


def weights_in(wrapper: Any) -> Iterator[tuple[str, Any, Any, dict[str, Any]]]:
    """Name ("kernel"), variable, quantizer and the quantizer's variables of each weight that a built wrapper quantizes."""
    for weight, quantizer, variables in wrapper._weight_vars:
        yield weight.name.split(":")[0].rpartition("/")[2], weight, quantizer, variables or {}


def kernels_in(wrapper: Any) -> list[WrappedKernel]:
    """The kernels with a quantizer of ours in one built wrapper."""
    return [
        WrappedKernel(weight, WrappedQuantizer(f"{wrapper.name}/{name}", quantizer, variables))
        for name, weight, quantizer, variables in weights_in(wrapper)
        if isinstance(quantizer, LowbitQuantizer)
    ]


def ranges_in(wrapper: Any) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Place ("pre_activation", "post_activation" or "output"), quantizer and variables of a wrapper's ranges."""
    for activation in wrapper._quantize_activations:
        for place in ("pre_activation", "post_activation"):
            if hasattr(activation, f"_{place}_vars"):  # None for a quantizer without variables
                yield place, activation.quantizer, getattr(activation, f"_{place}_vars") or {}
    if wrapper._output_quantizers:
        yield "output", wrapper._output_quantizers[0], wrapper._output_quantizer_vars or {}


def input_range(layer: Any) -> tuple[Any, dict[str, Any]] | None:
    """Quantizer and variables of a QuantizeLayer, None for any other layer."""
    if not (type(layer).__name__ == "QuantizeLayer" and hasattr(layer, "quantizer")):
        return None
    return layer.quantizer, getattr(layer, "quantizer_vars", None) or {}


def _quantizers_in(layer: Any) -> list[WrappedQuantizer]:
    if isinstance(layer, tfmot.quantization.keras.QuantizeWrapper):
        found = [kernel.kernel_host for kernel in kernels_in(layer)]
        ranges = [(f"{layer.name}/{place}", quantizer, variables) for place, quantizer, variables in ranges_in(layer)]
    else:
        found, own = [], input_range(layer)
        ranges = [] if own is None else [(layer.name, *own)]
    return found + [WrappedQuantizer(*entry) for entry in ranges if isinstance(entry[1], LowbitQuantizer)]
