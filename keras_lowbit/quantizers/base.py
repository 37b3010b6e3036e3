"""The quantizer contract: a frozen dataclass that declares state and receives it, and the name registry.

A quantizer never creates or owns a variable. The same object therefore serves a Keras layer, a TFMOT
QuantizeConfig, a unit test and a JSON recipe.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, TypeGuard, TypeVar

from keras import ops

from keras_lowbit.arguments import check_flag, check_seed, nearest_first
from keras_lowbit.numerics import thresholds
from keras_lowbit.numerics.gradients import straight_through_where
from keras_lowbit.numerics.grids import Quantized
from keras_lowbit.quantizers import former

Tensor = Any
Axes = tuple[int, ...]
State = Mapping[str, Any]

GRANULARITIES = ("channel", "tensor")
WIDE = 16  # bits of the symmetric activations of LiteRT's 16x8 mode
#: The name under which a quantizer declares its random generator and finds it in its state.
SEED = "seed"
_BASE_PREFIX = "base_"


@dataclasses.dataclass(frozen=True)
class StateSpec:
    """One variable that a quantizer asks the layer it sits in for.

    shape: () for a scalar.   initial: the value it starts from.   trainable: learned by the optimizer.
    limits: a trainable variable is brought back into this closed interval after every step of the optimizer.
    seed: the variable is a `keras.random.SeedGenerator` started from `initial` (None: a random seed).
    setting: a schedule or the user sets it; the others hold what was found from weights or data.

    >>> klb.quantizers.StateSpec(shape=(1, 1, 1, 16), initial=1.0, trainable=True).shape
    (1, 1, 1, 16)
    """

    shape: tuple[int, ...] = ()
    initial: float | int | None = 0.0
    trainable: bool = False
    limits: tuple[float, float] | None = None
    seed: bool = False
    setting: bool = False


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """Base of all quantizers: a value that says how reals become codes.

    Subclasses define `encode` and, where they need them, `state_specs`, `observe`, `gradient_mask` (or, with
    trainable state, `__call__`) and `tuning_start`; those of activations see `ActivationQuantizer`.
    `filter_axes` are the axes of the tensor that tell output channels apart: (-1,) for Conv2D and Dense kernels,
    (2, 3) for DepthwiseConv2D, (2,) for Conv2DTranspose, () for activations and biases.

    >>> ternary = klb.quantizers.get("ternary")  # a Quantizer
    >>> found = ternary.encode(np.array([[-1.0], [0.1], [0.8]], "float32"), state={}, filter_axes=(-1,))
    >>> np.array(found.codes).ravel()
    array([-1.,  0.,  1.], dtype=float32)
    """

    name: ClassVar[str] = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Quantizer":
        """A TypeError that names today's argument for one of format version 1; flags and seeds are looked at."""
        former.refuse(cls.__name__, kwargs, _former_arguments(cls))
        _check_flags_and_seeds(cls, args, kwargs)
        return super().__new__(cls)

    def state_specs(self, shape: tuple[int, ...], filter_axes: Axes = ()) -> dict[str, StateSpec]:
        """The variables this quantizer needs for a tensor of that shape; none by default."""
        return {}

    def encode(self, real: Tensor, state: State, filter_axes: Axes = ()) -> Quantized:
        """Codes, scale and zero point of `real`: what is deployed."""
        raise NotImplementedError(f"{type(self).__name__} does not define encode().")

    def snap(self, real: Tensor, scale: Tensor) -> Tensor:
        """Codes nearest to `real` on the grid of a given scale, for wrappers that fix the scale themselves."""
        raise NotImplementedError(f"{type(self).__name__} has no grid with a scale of its own.")

    def observe(self, real: Tensor, state: State) -> dict[str, Tensor]:
        """New values of state variables after seeing `real` in a training step; none by default."""
        return {}

    def tuning_start(self, real: Tensor, filter_axes: Axes = ()) -> dict[str, Tensor]:
        """State variables as a tuning should find them, for weights `real`; `calibrate` assigns them. None by default."""
        return {}

    def gradient_mask(self, real: Tensor, quantized: Quantized) -> Tensor | None:
        """What multiplies the upstream gradient (None: 1 everywhere, the plain straight-through)."""
        return None

    def is_slow(self, training: bool) -> bool:
        """Whether codes take so long to find that a layer keeps them while its weights stand still.

        Only for quantizers whose call, in training or at inference, is ``on_grid(real, encode(real, state))``.
        """
        return False

    def __call__(
        self, real: Tensor, state: State | None = None, filter_axes: Axes = (), training: bool = False
    ) -> Tensor:
        """``scale * (codes - zero_point)``, exactly; gradient ``gradient_mask * upstream``."""
        return self.on_grid(real, self.encode(real, state or {}, filter_axes))

    def on_grid(self, real: Tensor, quantized: Quantized) -> Tensor:
        """The value of codes found for `real`, with the gradient that a call has."""
        return straight_through_where(real, quantized.real, lambda: self.gradient_mask(real, quantized))

    @property
    def bits(self) -> float:
        """Bits one weight or activation takes when packed (binary 1, ternary 2)."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """A plain JSON dict, ``{"name": "ternary", ...}``; `deserialize` makes an equal quantizer of it."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"name": self.name} | {key: _plain(value) for key, value in fields.items()}


@dataclasses.dataclass(frozen=True)
class ActivationQuantizer(Quantizer):
    """Base of the quantizers of activations, whose grid is a range that data or the arguments decide.

    >>> isinstance(klb.quantizers.get("activation"), klb.quantizers.ActivationQuantizer)
    True
    """

    @property
    def for_activations(self) -> bool:
        """Whether this object quantizes activations; False for one that trains thresholds of weights."""
        return True

    @property
    def has_static_range(self) -> bool:
        """Whether the range is given by the arguments, so that there is nothing for data to decide."""
        return False

    def grid(self, state: State) -> tuple[Tensor, Tensor]:
        """Scale and zero point (scalars) of the current range."""
        raise NotImplementedError(f"{type(self).__name__} does not define grid().")

    def widen_only(self) -> "ActivationQuantizer":
        """The quantizer to use where several tensors share one range: its range never shrinks."""
        return self

    def with_room_below(self, room: float) -> "ActivationQuantizer":
        """The quantizer for a range that goes on so far below the smallest value, in the units of x."""
        return self

    def with_bits(self, bits: int) -> "ActivationQuantizer":
        """The same range with so many bits."""
        changes: dict[str, Any] = {"bits": bits}
        return dataclasses.replace(self, **changes)

    def state_from_min_max(self, minimum: float, maximum: float, count: int) -> dict[str, float]:
        """State variables after `count` batches whose values lay in [minimum, maximum]."""
        raise NotImplementedError(f"{type(self).__name__} does not define state_from_min_max().")


def is_activation_quantizer(quantizer: Any) -> TypeGuard[ActivationQuantizer]:
    """Whether `quantizer` gives activations their range; True for `DynamicFixedPoint`, which quantizes kernels too.

    Returns a bool.

    >>> klb.quantizers.is_activation_quantizer(klb.quantizers.Ternary())
    False
    """
    return isinstance(quantizer, ActivationQuantizer) and quantizer.for_activations


_REGISTRY: dict[str, type[Quantizer]] = {}
Q = TypeVar("Q", bound=type[Quantizer])


def register(cls: Q) -> Q:
    """Class decorator: makes a quantizer known under its `name`.

    cls: a subclass of `Quantizer`, a frozen dataclass with a `name` of its own.
    Returns the class.
    Raises ValueError for a name that another class has.

    >>> @klb.quantizers.register
    ... @dataclasses.dataclass(frozen=True)
    ... class Seven(klb.quantizers.Uniform):
    ...     bits: int = 7
    ...     name = "seven"
    >>> klb.quantizers.get("seven").bits
    7
    """
    if cls.name in _REGISTRY:
        raise ValueError(f"A quantizer named {cls.name!r} exists already: {_REGISTRY[cls.name]}. Choose another.")
    _REGISTRY[cls.name] = cls
    return cls


def known_names() -> list[str]:
    """The short names `get` understands, sorted.

    Returns a list of str, those of `register` included.

    >>> "ternary" in klb.quantizers.known_names()
    True
    """
    return sorted(_REGISTRY)


def get(identifier: Any) -> Quantizer | None:
    """A quantizer from a short name (``"ternary"``), a plain dict, a class or an object; None stays None.

    identifier: a name of `known_names()`, a dict with "name" and arguments, a class, an object, or None.
    Returns the quantizer; short names and classes get their defaults.
    Raises TypeError for anything else, ValueError for an unknown name.

    >>> klb.quantizers.get("binary") == klb.quantizers.get(klb.quantizers.Binary)
    True
    """
    if identifier is None or isinstance(identifier, Quantizer):
        return identifier
    if isinstance(identifier, str):
        return _lookup(identifier)()
    if isinstance(identifier, Mapping):
        return deserialize(identifier)
    if isinstance(identifier, type) and issubclass(identifier, Quantizer):
        return identifier()
    raise TypeError(
        f"A quantizer is a name, a dict, a Quantizer or None, got {type(identifier).__name__}: "
        f"{identifier!r}. Known names: {', '.join(known_names())}."
    )


def serialize(quantizer: Quantizer | None) -> dict[str, Any] | None:
    """The plain JSON dict of a quantizer, or None.

    quantizer: any, or None.
    Returns a dict with "name" and the arguments, or None for None.

    >>> klb.quantizers.serialize(klb.quantizers.Binary())
    {'name': 'binary', 'granularity': 'channel'}
    """
    return None if quantizer is None else quantizer.get_config()


def deserialize(config: Mapping[str, Any] | None) -> Quantizer | None:
    """The quantizer of a plain dict as `serialize` writes it.

    config: a dict with "name" and the quantizer's arguments, or None.
    Returns the quantizer, or None for None.
    Raises ValueError for a dict without a name, an unknown name and unknown arguments.

    >>> klb.quantizers.deserialize({"name": "binary", "granularity": "tensor"})
    Binary(granularity='tensor')
    """
    if config is None:
        return None
    if "name" not in config:
        raise ValueError(f"A quantizer dict needs a 'name', got {dict(config)!r}. Known names: {known_names()}.")
    cls = _lookup(config["name"])
    arguments = {key: value for key, value in config.items() if key != "name"}
    former.refuse(cls.__name__, arguments, _former_arguments(cls))
    known = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(set(arguments) - known):
        raise ValueError(f"Quantizer {cls.name!r} has no argument {unknown}; it takes {sorted(known)}.")
    return cls(**arguments)


def require_choice(owner: str, argument: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise a ValueError that lists the choices unless `value` is one of them; a value of before gets today's word."""
    if value not in choices:
        today = former.todays_value(value)
        renamed = f", which is now {today!r}" if today in choices else ""
        raise ValueError(f"{owner} got {argument}={value!r}{renamed}; choose one of {', '.join(map(repr, choices))}.")


def require_bits(owner: str, bits: Any, remedy: str) -> None:
    """Raise a ValueError unless `bits` is a whole number from 2 to 8."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"{owner} needs 2 to 8 bits, got bits={bits!r}. {remedy}")


def require_activation_bits(owner: str, bits: Any) -> None:
    """Raise a ValueError unless `bits` is a whole number from 2 to 8, or 16."""
    if isinstance(bits, bool) or bits != WIDE:
        require_bits(
            owner, bits, f"Or {WIDE}, LiteRT's 16x8 mode. For float activations use activations=None in the recipe."
        )


def as_float32(real: Tensor) -> Tensor:
    """`real` as a float32 tensor; quantizers compute in nothing else."""
    return ops.cast(real, "float32")


def scale_axes(real: Tensor, filter_axes: Axes, granularity: str) -> Axes:
    """The axes of `real` whose values share one scale: all but `filter_axes` per "channel", all per "tensor"."""
    return thresholds.reduced_axes(len(real.shape), filter_axes if granularity == "channel" else ())


def scale_shape(shape: tuple[int, ...], filter_axes: Axes, granularity: str) -> tuple[int, ...]:
    """The shape of one scale for each filter per "channel", of one of all per "tensor", for a tensor of `shape`."""
    return thresholds.per_filter_shape(shape, filter_axes if granularity == "channel" else ())


def factor_limits(owner: str, given: Any, hint: str = "") -> tuple[float, float]:
    """The limits of a trained factor that starts at 1, as numbers; a ValueError for others. hint: at the error's end."""
    limits = tuple(float(value) for value in given)
    if len(limits) != 2 or not 0 < limits[0] <= 1 <= limits[1]:
        raise ValueError(f"{owner} needs limits (low, high) with 0 < low <= 1 <= high, got {limits}.{hint}")
    return limits[0], limits[1]


def add_base_prefix(values: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of a base quantizer under the names they have in its wrapper's state: ``base_NAME``."""
    return {_BASE_PREFIX + name: value for name, value in values.items()}


def base_state(state: State) -> dict[str, Any]:
    """What of a wrapper's state belongs to its base, under the base's own names."""
    return {name.removeprefix(_BASE_PREFIX): value for name, value in state.items() if name.startswith(_BASE_PREFIX)}


def _former_arguments(cls: type[Quantizer]) -> dict[str, str]:
    return {name: f"{today}={{}}" for name, today in former.FORMER_ARGUMENTS.get(cls.name, {}).items()}


def _check_flags_and_seeds(cls: type[Quantizer], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    fields = dataclasses.fields(cls)
    given = dict(zip((field.name for field in fields if not field.kw_only), args, strict=False)) | dict(kwargs)
    for field in (field for field in fields if field.name in given):
        value = given[field.name]
        if field.type is bool or (field.type == bool | None and value is not None):
            check_flag(cls.__name__, field.name, value)
        if field.name == SEED:
            check_seed(cls.__name__, value)


def _lookup(name: str) -> type[Quantizer]:
    if name not in _REGISTRY:
        raise ValueError(
            f"Unknown quantizer {name!r}. Known names, the most alike first: {nearest_first(str(name), known_names())}."
        )
    return _REGISTRY[name]


def _plain(value: Any) -> Any:
    return value.get_config() if isinstance(value, Quantizer) else value
