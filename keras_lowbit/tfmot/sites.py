"""What TFMOT's wrappers hold of ours, in the form that callbacks and conversion know: hosts and layers with kernels."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow_model_optimization as tfmot
import tf_keras

from keras_lowbit.layers.host import SEED
from keras_lowbit.quantizers import Quantized, Quantizer
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
class Host:
    """One quantizer of ours in a TFMOT wrapper with its variables: what a `QuantizerHost` is in a Keras 3 layer."""

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
        """Axes that tell filters apart, () for activations."""
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
class Kernel:
    """One kernel of a wrapped layer with its host: what a `QuantizedLayer` is to the callbacks."""

    kernel: Any
    kernel_host: Host
    built: bool = True

    @property
    def kernel_quantizer(self) -> Quantizer:
        """The quantizer of the kernel."""
        return self.kernel_host.quantizer


class ModelView:
    """A tf_keras model as the callbacks of this library see models.

    model: tf_keras model with wrappers of TFMOT in it. Raises TypeError for any other.
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

    def kernel_layers(self) -> list[Kernel]:
        """Every kernel with a quantizer of ours, in the order of the layers."""
        return [kernel for wrapper in wrappers(self.model) for kernel in kernels_in(wrapper)]

    def quantizer_hosts(self) -> list[tuple[str, Host]]:
        """Path ("quant_conv/kernel") and host of every quantizer of ours."""
        found = []
        for layer in self.model._flatten_layers():
            found += [(host.path, host) for host in _hosts_in(layer)]
        return found


def wrappers(model: Any) -> list[Any]:
    """Every QuantizeWrapper of TFMOT inside a tf_keras model, nested models included."""
    kind = tfmot.quantization.keras.QuantizeWrapper
    return [layer for layer in model._flatten_layers() if isinstance(layer, kind)]


# TFMOT has no public way to a wrapper's quantizers; these functions are the only place that reads its private ones.


def kernels_in(wrapper: Any) -> list[Kernel]:
    """The kernels with a quantizer of ours in one built wrapper."""
    return [
        Kernel(weight, Host(f"{wrapper.name}/{weight.name.split(':')[0].rpartition('/')[2]}", quantizer, variables))
        for weight, quantizer, variables in wrapper._weight_vars
        if isinstance(quantizer, LowbitQuantizer)
    ]


def ranges_in(wrapper: Any) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Place ("pre_activation", "post_activation" or "output"), quantizer and variables of a wrapper's ranges."""
    for activation in wrapper._quantize_activations:
        for place in ("pre_activation", "post_activation"):
            variables = getattr(activation, f"_{place}_vars", None)
            if variables is not None:
                yield place, activation.quantizer, variables
    if wrapper._output_quantizers:
        yield "output", wrapper._output_quantizers[0], wrapper._output_quantizer_vars


def input_range(layer: Any) -> tuple[Any, dict[str, Any]] | None:
    """Quantizer and variables of a QuantizeLayer, None for any other layer."""
    if not (type(layer).__name__ == "QuantizeLayer" and hasattr(layer, "quantizer")):
        return None
    return layer.quantizer, getattr(layer, "quantizer_vars", {})


def _hosts_in(layer: Any) -> list[Host]:
    if isinstance(layer, tfmot.quantization.keras.QuantizeWrapper):
        found = [kernel.kernel_host for kernel in kernels_in(layer)]
        ranges = [(f"{layer.name}/{place}", quantizer, variables) for place, quantizer, variables in ranges_in(layer)]
    else:
        found, own = [], input_range(layer)
        ranges = [] if own is None else [(layer.name, *own)]
    return found + [Host(*entry) for entry in ranges if isinstance(entry[1], LowbitQuantizer)]
