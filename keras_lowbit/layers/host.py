"""The quantizer state layer: a sub-layer that owns the variables a quantizer declares."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lowbit import quantizers
from keras_lowbit.keras_graph.calls import find_layers
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.float_files import is_float_file
from keras_lowbit.layers.kept_codes import KeptCodes
from keras_lowbit.quantizers import ActivationQuantizer, Quantizer, StateSpec, is_activation_quantizer
from keras_lowbit.quantizers.base import SEED
from keras_lowbit.quantizers.former import upgrade

PACKAGE = "keras_lowbit"
_CHOSEN: ContextVar[frozenset[int] | None] = ContextVar("ids of the hosts that quantize", default=None)
_MIXING: ContextVar[Callable[[Any, Any], Any] | None] = ContextVar("what activations are mixed by", default=None)
_STATES: ContextVar[Mapping[int, Mapping[str, Any]]] = ContextVar("state that stands in, by the id of the host")
FORMAT_VERSION = 2  # of saved layer configurations; raised when an older library could not read a newer file


@contextmanager
def only_quantizing(hosts: Iterable[Any]) -> Iterator[None]:
    """Inside, these alone quantize; the others pass their values on as they are. In this thread alone, in eager calls."""
    token = _CHOSEN.set(frozenset(map(id, hosts)))
    try:
        yield
    finally:
        _CHOSEN.reset(token)


@contextmanager
def activations_mixed(mix: Callable[[Any, Any], Any]) -> Iterator[None]:
    """Inside, every activation is ``mix(real, on_grid)`` of its float and its quantized values; in this thread alone."""
    token = _MIXING.set(mix)
    try:
        yield
    finally:
        _MIXING.reset(token)


@contextmanager
def states_standing_in(states: Mapping[Any, Mapping[str, Any]]) -> Iterator[None]:
    """Inside, these hosts read the given tensors in place of state of those names; in this thread alone."""
    token = _STATES.set({id(host): named for host, named in states.items()})
    try:
        yield
    finally:
        _STATES.reset(token)


def take_format_version(config: dict[str, Any], what: str) -> int:
    """Take ``format_version`` out of `config`, today's if it has none; a ValueError if it is newer than that."""
    version = config.pop("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            f"{what} was saved in format version {version!r}; this keras_lowbit reads up to {FORMAT_VERSION}. "
            "Load it with the keras_lowbit release that wrote it, or a newer one."
        )
    return version


def require_float_policy(layer: Any) -> None:
    """Raise a ValueError if the dtype policy of a layer of this library is one of Keras' quantized ones."""
    if (mode := layer.quantization_mode) is not None:
        raise ValueError(
            f"{type(layer).__name__} {layer.name!r} got the dtype policy {layer.dtype_policy.name!r}: under it Keras computes "
            f"with {mode} codes of its own and would pass over the layer's quantizers. Give dtype='float32', or "
            "'mixed_float16' or 'mixed_bfloat16'."
        )


class _Within(keras.constraints.Constraint):
    """Brings a variable back into [low, high] after every step of the optimizer."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, value: Any) -> Any:
        return ops.clip(value, self.low, self.high)


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizerHost(keras.layers.Layer):
    """Quantizer state layer: owns the state of one quantizer and applies it, ``y = quantizer(x, state)``, in float32.

    Weights added to a subclass of a stock Keras layer are dropped by that layer's own saving; a sub-layer's
    are not. The state of the random generator, which Keras does not save, is written and read here by name. Saved files
    name this class, so it is registered as QuantizerHost for good. Every variable, the generator's too, is an attribute
    ``state_NAME``, which makes it a weight of the layer: `tf.train.Checkpoint` and `get_weights` keep nothing else.

    Under ``trainable=False`` nothing is observed: ranges stand still in `fit`, as the statistics of a batch norm do.
    `calibrate` sets them all the same.

    quantizer: object, short name or plain dict.
    filter_axes: axes that tell output channels apart, () for activations.
    Input and output: any shape, the same; build with the shape of the tensor to quantize.
    Raises ValueError for None in place of a quantizer.

    >>> host = klb.layers.QuantizerHost("ternary", filter_axes=(-1,))
    >>> weights = np.linspace(-1, 1, 8, dtype="float32").reshape(4, 2)
    >>> len(np.unique(np.abs(host(weights)), axis=0)) <= 4
    True
    """

    built: bool

    def __init__(self, quantizer: Any, filter_axes: tuple[int, ...] = (), **kwargs: Any) -> None:
        # Quantizers compute in float32 whatever the policy: the input must not be cast on the way in.
        kwargs |= {"dtype": "float32", "autocast": False}
        super().__init__(**kwargs)
        self.supports_masking = True  # value by value: a mask passes on as it is
        found = quantizers.get(quantizer)
        if found is None:
            raise ValueError(f"QuantizerHost needs a quantizer, got None. Known: {quantizers.known_names()}.")
        self.quantizer: Quantizer = found
        self.filter_axes = tuple(filter_axes)
        self.state: dict[str, Any] = {}
        self._specs: dict[str, StateSpec] = {}
        self.seed_generator: keras.random.SeedGenerator | None = None
        self.watch: Callable[[Any], None] | None = None
        self._kept = KeptCodes()

    def build(self, input_shape: Any) -> None:
        """Create the variables the quantizer declares for that shape."""
        if self.built:
            return
        for name, spec in self.quantizer.state_specs(tuple(input_shape), self.filter_axes).items():
            self._specs[name] = spec
            if spec.seed:
                # A name of its own: Keras would count one up, and whatever keeps a model by the paths of its variables
                # (Orbax, `set_state_tree`, `state_dict`) would find no state of that path in a new process.
                self.seed_generator = keras.random.SeedGenerator(spec.initial, name=SEED)
                variable = self.seed_generator.state
            else:
                variable = self.state[name] = self._add_state(name, spec)
            setattr(self, f"state_{name}", variable)
        self.built = True

    @property
    def activation_range(self) -> ActivationQuantizer | None:
        """The quantizer if it is the range of an activation; None for a kernel, whatever its quantizer could do elsewhere."""
        return self.quantizer if not self.filter_axes and is_activation_quantizer(self.quantizer) else None

    @property
    def learned(self) -> list[Any]:
        """The state that its quantizer declares trainable, whatever the `trainable` of the layers says."""
        return [variable for name, variable in self.state.items() if self._specs[name].trainable]

    def _add_state(self, name: str, spec: StateSpec) -> Any:
        return self.add_weight(
            name=name,
            shape=spec.shape,
            initializer=keras.initializers.Constant(spec.initial),
            trainable=spec.trainable,
            constraint=None if spec.limits is None else _Within(*spec.limits),
            # With the default ("none") the replicas of a MirroredStrategy keep different values, silently.
            aggregation="mean",
            dtype="float32",
        )

    def call(self, real: Any, training: bool = False, observe: bool = True) -> Any:
        """The quantized value; in training the quantizer observes first. `watch` sees floats instead.

        observe: False for values that the quantizer rounds and does not learn from.
        """
        if self.watch is not None:
            if observe:
                self.watch(real)
            return ops.cast(real, "float32")
        if (chosen := _CHOSEN.get()) is not None and id(self) not in chosen:
            return ops.cast(real, "float32")
        training = bool(training)
        if training and observe and self.trainable:
            for name, value in self.quantizer.observe(ops.stop_gradient(real), self.values()).items():
                self.state[name].assign(value)
        if self.quantizer.is_slow(training):
            return self.quantizer.on_grid(real, self.encode(real))
        on_grid = self.quantizer(real, self.values(), self.filter_axes, training)
        mix = None if self.filter_axes else _MIXING.get()
        return on_grid if mix is None else mix(ops.cast(real, "float32"), on_grid)

    def encode(self, real: Any) -> quantizers.Quantized:
        """Codes, scale and zero point of `real` under the current state: what is deployed.

        Those of a quantizer that `is_slow` are found once for each state of the weights, outside of compiled functions.
        """
        if not self.quantizer.is_slow(training=False):
            return self.quantizer.encode(real, self.values(), self.filter_axes)
        state = {name: ops.convert_to_tensor(variable) for name, variable in self.state.items()}
        return self._kept.get(real, state, lambda: self.quantizer.encode(real, self.values(), self.filter_axes))

    def values(self) -> dict[str, Any]:
        """The state as tensors, with the random generator under ``"seed"``."""
        values = {name: ops.convert_to_tensor(variable) for name, variable in self.state.items()}
        values |= _STATES.get({}).get(id(self), {})
        return values if self.seed_generator is None else values | {SEED: self.seed_generator}

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the input."""
        return input_shape

    def save_own_variables(self, store: Any) -> None:
        """Write every variable by name, the state of the random generator included."""
        for name, variable in self.state.items():
            store[name] = to_numpy(variable)
        if self.seed_generator is not None:
            store[SEED] = to_numpy(self.seed_generator.state)

    def load_own_variables(self, store: Any) -> None:
        """Read what `save_own_variables` wrote; an error that names both sides when they do not match.

        A file of stock layers holds nothing for it: the state stays as it began.
        """
        if not len(store.keys()) and is_float_file(store):
            self.require_new("The file holds float weights and no quantizer state.")
            return
        wanted = {*self.state} | ({SEED} if self.seed_generator is not None else set())
        if wanted != set(store.keys()):
            raise ValueError(
                f"The saved state of {self.path!r} holds {sorted(store.keys())}, "
                f"this layer's {self.quantizer} needs {sorted(wanted)}. "
                "Load the file into a model quantized with the same recipe."
            )
        for name, variable in self.state.items():
            variable.assign(store[name])
        if self.seed_generator is not None:
            self.seed_generator.state.assign(store[SEED])

    def require_new(self, why: str) -> None:
        """Raise a ValueError if the state holds anything found from weights or data, which others would not fit."""
        for name, variable in self.state.items():
            spec = self._specs[name]
            if not (spec.trainable or spec.setting) and bool(np.any(to_numpy(variable) != spec.initial)):
                raise ValueError(
                    f"{why} {self.path!r} has a {name!r} of other weights already, which would not fit. Load float weights "
                    "first: into a model that was just built, before it is calibrated or trained."
                )

    def copy_state_from(self, other: "QuantizerHost") -> None:
        """Take over the state of a host with an equal quantizer, that of its random generator included."""
        state: dict[str, Any] = {}
        other.save_own_variables(state)
        self.load_own_variables(state)

    def get_config(self) -> dict[str, Any]:
        """The plain dict of the quantizer, its axes and the format version."""
        config = super().get_config()
        config.pop("dtype", None)
        config |= {"quantizer": quantizers.serialize(self.quantizer), "filter_axes": list(self.filter_axes)}
        return config | {"format_version": FORMAT_VERSION}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizerHost":
        """The layer of `get_config`'s dict; an error if a newer library wrote it."""
        config = dict(config)
        version = take_format_version(config, "A QuantizerHost")
        return cls(**config | {"quantizer": upgrade(config.get("quantizer"), version)})


def stock_weights(layer: Any) -> list[Any]:
    """The weights of a layer or model without the state of its quantizers: those of the same stock network, in order."""
    state = {id(variable) for host in find_layers(layer, QuantizerHost) for variable in host.weights}
    return [variable for variable in layer.weights if id(variable) not in state]


def with_own_state(layer: Any, weights: Any) -> Any:
    """`get_weights` of the stock network, completed with the state of the quantizers as it is: what Keras' `set_weights` takes.

    Any other list is returned as it is. A ValueError if the state was found from other weights.
    """
    stock = {id(variable) for variable in stock_weights(layer)}
    if not len(weights) == len(stock) < len(layer.weights):
        return weights
    for host in find_layers(layer, QuantizerHost):
        host.require_new(f"{layer.name!r} got the {len(stock)} weights of stock layers.")
    values = iter(weights)
    return [next(values) if id(variable) in stock else to_numpy(variable) for variable in layer.weights]
