"""LowbitQuantizer: the one adapter from a quantizer of this library to TFMOT's `Quantizer`."""

import random
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

from keras_lowbit import quantizers
from keras_lowbit.layers.host import FORMAT_VERSION, PACKAGE, take_format_version
from keras_lowbit.quantizers import Quantized, Quantizer, StateSpec
from keras_lowbit.quantizers.base import SEED
from keras_lowbit.quantizers.former import upgrade


class VariableSeed(keras.random.SeedGenerator):
    """A seed generator whose state is a variable that a tf_keras layer owns, trains with and saves.

    Draws the same numbers as a `keras.random.SeedGenerator` that starts from the same two integers.
    """

    def __init__(self, variable: tf.Variable) -> None:
        self.state = variable  # the base would make a Keras 3 variable, which no tf_keras model tracks

    def next(self, ordered: bool = True) -> tf.Tensor:
        """The seed of the next draw, an int vector of two; the state moves on by one."""
        seed = tf.identity(self.state)
        with tf.control_dependencies([seed]):  # which only graphs of TensorFlow 1 need
            moved = self.state.assign_add(tf.constant([0, 1], seed.dtype))
        with tf.control_dependencies([moved]):
            return tf.identity(seed)


class OwnedVariables(dict[str, Any]):
    """The variables of one quantizer by name, and the layer that they belong to: TFMOT hands a quantizer nothing else of it."""

    def __init__(self, variables: dict[str, Any], layer: Any) -> None:
        super().__init__(variables)
        self.layer = layer


@tf_keras.utils.register_keras_serializable(PACKAGE)
class LowbitQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """A quantizer of this library as TFMOT's `Quantizer`: declares its variables in `build`, receives them in calls.

    quantizer: object, short name or plain dict.   filter_axes: axes that tell output channels apart, () for activations.
    format_version: of the file that a configuration comes from; left out otherwise.
    Raises ValueError for None in place of a quantizer.

    In training the quantizer observes first, but not in a layer with ``trainable=False``: ranges and thresholds stand still
    there, as a batch norm's statistics do. As with those, compile after changing `trainable`. (The kernel of a frozen layer
    TFMOT trains all the same unless the whole model is frozen: its wrapper lists it whatever `trainable` says.)
    Computes in float32 with the very functions the Keras 3 layers call, and hands back the dtype of its input. One object
    serves any number of layers.

    >>> klt.LowbitQuantizer("ternary", filter_axes=(-1,)).quantizer
    Ternary(factor=0.7, granularity='channel', scale_granularity='channel', centered=False, calibration='mean')
    """

    def __init__(self, quantizer: Any, filter_axes: Any = (), format_version: int = FORMAT_VERSION) -> None:
        version = take_format_version({"format_version": format_version}, "A LowbitQuantizer")
        found = quantizers.get(upgrade(quantizer, version))
        if found is None:
            raise ValueError(f"LowbitQuantizer needs a quantizer, got None. Known: {quantizers.known_names()}.")
        self.quantizer: Quantizer = found
        self.filter_axes = tuple(filter_axes)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """The variables the quantizer declares for that shape (None for activations), made by and owned by `layer`."""
        shape = () if tensor_shape is None else tuple(tensor_shape)
        specs = self.quantizer.state_specs(shape, self.filter_axes)
        made = {key: _add_variable(layer, f"{name}_{key}", spec) for key, spec in specs.items()}
        return OwnedVariables(made, layer)

    @tf.autograph.experimental.do_not_convert  # nothing here depends on values; tf_keras would rewrite Keras 3 itself
    def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **kwargs: Any) -> tf.Tensor:
        """The quantized value of `inputs`; `training` is a Python bool, as TFMOT's wrappers give it."""
        real = tf.convert_to_tensor(inputs)
        frozen, assigned = _is_frozen(weights), []
        if training and not frozen:
            observed = self.quantizer.observe(tf.stop_gradient(real), state_values(weights))
            assigned = [weights[key].assign(value) for key, value in observed.items()]
        with tf.control_dependencies(assigned):  # a graph of TensorFlow 1 runs nothing that no result depends on
            values = state_values(weights)
            if frozen:  # TFMOT's wrapper lists all of its variables for training all the same
                values |= {key: tf.stop_gradient(values[key]) for key in weights if key != SEED}
            result = self.quantizer(real, values, self.filter_axes, bool(training))
            return tf.cast(result, real.dtype)

    def encode(self, inputs: Any, weights: dict[str, Any]) -> Quantized:
        """Codes, scale and zero point of `inputs` under the current state: what is deployed."""
        return self.quantizer.encode(tf.convert_to_tensor(inputs), state_values(weights), self.filter_axes)

    def get_config(self) -> dict[str, Any]:
        """The plain dict of the quantizer, its axes and the format version."""
        config = {"quantizer": quantizers.serialize(self.quantizer), "filter_axes": list(self.filter_axes)}
        return config | {"format_version": FORMAT_VERSION}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LowbitQuantizer) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((self.quantizer, self.filter_axes))

    def __repr__(self) -> str:
        return f"LowbitQuantizer({self.quantizer!r}, filter_axes={self.filter_axes})"


def _is_frozen(weights: dict[str, Any]) -> bool:
    return isinstance(weights, OwnedVariables) and not weights.layer.trainable


def state_values(weights: dict[str, Any]) -> dict[str, Any]:
    """The variables of a quantizer as tensors, the random generator under ``"seed"`` as one."""
    values = {key: tf.convert_to_tensor(variable) for key, variable in weights.items() if key != SEED}
    return values | {SEED: VariableSeed(weights[SEED])} if SEED in weights else values


def _add_variable(layer: Any, name: str, spec: StateSpec) -> tf.Variable:
    if spec.seed:
        return _add_seed(layer, name, spec)
    return layer.add_weight(
        name=name,
        shape=spec.shape,
        initializer=tf_keras.initializers.Constant(spec.initial),
        trainable=spec.trainable,
        constraint=None if spec.limits is None else _within(*spec.limits),
        dtype=tf.float32,
        # With the default the replicas of a MirroredStrategy keep different values, silently.
        aggregation=tf.VariableAggregation.MEAN,
    )


def _within(low: float, high: float) -> Callable[[Any], tf.Tensor]:
    return lambda variable: tf.clip_by_value(variable, low, high)


def _add_seed(layer: Any, name: str, spec: StateSpec) -> tf.Variable:
    # Where a generator of Keras 3 starts: from (seed, 0), with the given seed or the one that Python draws for it. Its own
    # state cannot be read in a graph of TensorFlow 1.
    start = [random.randint(1, int(1e9)) if spec.initial is None else int(spec.initial), 0]
    return layer.add_weight(
        name=name,
        shape=(2,),
        initializer=lambda shape, dtype=None, **kwargs: tf.constant(start, dtype),
        trainable=False,
        dtype=tf.as_dtype(keras.random.SeedGenerator(0).state.dtype),
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
