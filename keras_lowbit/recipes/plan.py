"""Recipe: an ordered plan "which layer gets which quantizer", with activations and schedule; plain data."""

import dataclasses
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from keras_lowbit import quantizers
from keras_lowbit.arguments import check_whole, shown
from keras_lowbit.quantizers import Quantizer
from keras_lowbit.quantizers.former import upgrade

FORMAT_VERSION = 2
KINDS = ("conv1d", "conv2d", "depthwise", "transpose", "separable", "dense")
POSITIONS = ("any", "first", "last")
#: Functions that a conversion without labels may call, beside `fold_batch_norms` before and `quantize_model` between them.
STEPS = ("equalize", "calibrate", "correct_biases", "reconstruct", "distill")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a plan: layers that match all conditions get `kernel`; None leaves them float.

    kernel: a quantizer, short name or dict, or None.
    layers: regular expression that must match the whole name or the whole path.   kinds: any of `KINDS`, empty
    for all.   position: "first" or "last" weighted layer of the model, or "any".
    Raises ValueError for unknown kinds or positions, and for `layers` that are no regular expression.

    >>> rule = klb.recipes.Rule(klb.quantizers.Uniform(8), layers=r"block_1_.*", kinds=("depthwise",))
    >>> rule.matches("depthwise", "block_1_depthwise", "depthwise", ())
    True
    """

    kernel: Quantizer | None
    layers: str = ".*"
    kinds: tuple[str, ...] = ()
    position: str = "any"

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel", quantizers.get(self.kernel))
        object.__setattr__(self, "kinds", tuple(self.kinds))
        try:
            re.compile(self.layers)
        except re.error as error:
            raise ValueError(f"Rule got layers={self.layers!r}, which is not a regular expression: {error}.") from error
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise ValueError(f"Rule got unknown kinds {unknown}; choose from {KINDS}.")
        if self.position not in POSITIONS:
            raise ValueError(f"Rule got position={self.position!r}; choose one of {POSITIONS}.")

    def matches(self, name: str, path: str, kind: str, positions: tuple[str, ...]) -> bool:
        """Whether the rule speaks of that layer. positions: "first", "last", both or none."""
        if (self.kinds and kind not in self.kinds) or self.position not in ("any", *positions):
            return False
        return bool(re.fullmatch(self.layers, name) or re.fullmatch(self.layers, path))

    def get_config(self) -> dict[str, Any]:
        """A plain JSON dict."""
        kernel = quantizers.serialize(self.kernel)
        return {"layers": self.layers, "kinds": list(self.kinds), "position": self.position, "kernel": kernel}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Rule":
        """The rule of a dict as `get_config` writes it."""
        _check_fields(cls, "A rule", config)
        return cls(**config)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A method as data: printable, comparable, JSON both ways.

    name: of the recipe, in reports and files.
    plan: rules, the first that matches a layer decides.
    activations: quantizer of activation ranges, or their bits: 8, or 16 for LiteRT's 16x8 mode; None for float activations
    (the papers' SQ).
    schedule: what `callbacks` builds, ``{"ratio": "exponential"}`` (SQ), ``{"portions": 5}`` (INQ) or {}.
    training: defaults of the source, for people.   source: paper and section.
    steps: names of the functions that a conversion without labels calls, of `STEPS`, in their order; empty: what the plan
    asks for.
    Raises TypeError for a name that is no text, ValueError for unknown keys of the schedule.

    >>> first = klb.recipes.Rule(klb.quantizers.Uniform(8), position="first")
    >>> recipe = klb.recipes.get("twn").replace(name="twn-but-first", plan=[first, klb.recipes.Rule(klb.quantizers.Ternary())])
    >>> klb.recipes.Recipe.from_json(recipe.to_json()) == recipe
    True
    """

    name: str
    plan: tuple[Rule, ...]
    activations: Any = None
    schedule: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: str = ""
    steps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"Recipe got name={shown(self.name)}; give a text.")
        rules = tuple(_as_rule(self.name, rule) for rule in _as_plan(self.name, self.plan))
        object.__setattr__(self, "plan", rules)
        for field in ("schedule", "training"):
            object.__setattr__(self, field, _plain_json(self.name, field, getattr(self, field)))
        bits = isinstance(self.activations, int) and not isinstance(self.activations, bool)
        ranges = quantizers.ActivationRange(self.activations) if bits else quantizers.get(self.activations)
        object.__setattr__(self, "activations", ranges)
        object.__setattr__(self, "steps", _as_steps(self.name, self.steps))
        unknown = sorted(set(self.schedule) - {"ratio", "portions"})
        if unknown:
            raise ValueError(f"Recipe {self.name!r} has unknown schedule keys {unknown}; known: ['portions', 'ratio'].")

    def kernel_quantizer(self, name: str, path: str, kind: str, positions: tuple[str, ...] = ()) -> Quantizer | None:
        """The quantizer of one layer's kernel: that of the first matching rule, None if there is none.

        A rule's seed becomes one of the layer's own, from seed and path: with one for all, layers would draw alike.
        """
        found: Any = next((rule.kernel for rule in self.plan if rule.matches(name, path, kind, positions)), None)
        if getattr(found, "seed", None) is None:
            return found
        return dataclasses.replace(found, seed=zlib.crc32(f"{found.seed} {path}".encode()) >> 1)

    def replace(self, **changes: Any) -> "Recipe":
        """A recipe with some fields changed: ``recipe.replace(activations=None)``."""
        return dataclasses.replace(self, **changes)

    def callbacks(self, epochs: int, **arguments: Any) -> list[keras.callbacks.Callback]:
        """The callbacks `model.fit` needs for this recipe over `epochs` epochs; may be empty.

        arguments go to the schedule's callback (`callbacks.RatioSchedule`, `callbacks.PartitionSchedule`). TypeError for
        those of a recipe without a schedule.
        """
        from keras_lowbit import callbacks

        check_whole("callbacks", "epochs", epochs)
        made: list[keras.callbacks.Callback] = []
        if "ratio" in self.schedule:
            made.append(callbacks.RatioSchedule(self.schedule["ratio"], epochs=epochs, **arguments))
        if "portions" in self.schedule:
            made.append(callbacks.PartitionSchedule(self.schedule["portions"], epochs=epochs, **arguments))
        if arguments and not made:
            raise TypeError(
                f"Recipe {self.name!r} has no schedule, so there is no callback to take {sorted(arguments)}. Write "
                "recipe.callbacks(epochs), and give a learning rate to the optimizer."
            )
        return made

    def get_config(self) -> dict[str, Any]:
        """A plain JSON dict with its format version."""
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "plan": [rule.get_config() for rule in self.plan],
            "activations": quantizers.serialize(self.activations),
            "schedule": dict(self.schedule),
            "training": dict(self.training),
            "source": self.source,
            "steps": list(self.steps),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Recipe":
        """The recipe of a dict as `get_config` writes it."""
        arguments = dict(config)
        if "format_version" not in arguments:
            raise ValueError(
                f"A dict with the keys {sorted(map(str, arguments))} is no recipe: it has no format_version. Give what "
                "Recipe.get_config() writes, or make one: Recipe('mine', plan=[Rule(Uniform(bits=4))])."
            )
        version = arguments.pop("format_version")
        if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
            raise ValueError(
                f"A recipe of format version {version!r} cannot be read; this keras_lowbit reads 1 to "
                f"{FORMAT_VERSION}. Use the release that wrote it, or a newer one."
            )
        _check_fields(cls, "A recipe", arguments)
        return cls(
            **arguments | {key: upgrade(arguments[key], version) for key in ("plan", "activations") if key in arguments}
        )

    def to_json(self) -> str:
        """Indented JSON; `from_json` makes an equal recipe of it."""
        return json.dumps(self.get_config(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """The recipe of a JSON text."""
        if not isinstance(text, str | bytes):
            raise TypeError(f"from_json takes the text that Recipe.to_json writes, got {shown(text)}.")
        try:
            config = json.loads(text)
        except (ValueError, RecursionError) as error:  # RecursionError: nested thousands of levels deep
            raise ValueError(f"Not a recipe: {error}. Expected the JSON that Recipe.to_json writes.") from error
        if not isinstance(config, dict):
            raise ValueError(f"Not a recipe: {text[:40]!r}. Expected the JSON object that Recipe.to_json writes.")
        return cls.from_config(config)

    def __str__(self) -> str:
        lines = [f"Recipe {self.name!r} ({self.source})"]
        for rule in self.plan:
            where = f"layers {rule.layers!r}" + (f" of kind {', '.join(rule.kinds)}" if rule.kinds else "")
            where += "" if rule.position == "any" else f", {rule.position} one"
            lines.append(f"  {where}: {rule.kernel or 'float'}")
        lines.append(f"  activations: {self.activations or 'float'}")
        lines.append(f"  schedule: {dict(self.schedule) or 'none'}")
        lines += [f"  steps: {' -> '.join(self.steps)}"] if self.steps else []
        return "\n".join(lines)


def _as_plan(name: str, plan: Any) -> Iterable[Any]:
    if isinstance(plan, Rule | Mapping | str) or not isinstance(plan, Iterable):
        raise TypeError(f"Recipe {name!r} got plan={shown(plan)}; give a list of rules: plan=[Rule('ternary')].")
    return plan


def _as_steps(name: str, steps: Any) -> tuple[str, ...]:
    found = () if isinstance(steps, str) else tuple(steps)
    if isinstance(steps, str) or not set(found) <= set(STEPS) or "equalize" in found[1:]:
        raise ValueError(
            f"Recipe {name!r} got steps={shown(steps)}; give some of {STEPS}, equalize at most as the first."
        )
    return found


def _as_rule(name: str, rule: Any) -> Rule:
    if isinstance(rule, Rule):
        return rule
    if not isinstance(rule, Mapping):
        raise TypeError(f"Recipe {name!r} got {shown(rule)} in its plan; give rules: plan=[Rule('ternary')].")
    return Rule.from_config(rule)


def _check_fields(cls: type[Any], what: str, config: Mapping[str, Any]) -> None:
    """Raise a ValueError that lists the fields if one is unknown or a needed one is missing."""
    fields = dataclasses.fields(cls)
    known = sorted(field.name for field in fields)
    if unknown := sorted(set(config) - set(known)):
        raise ValueError(f"{what} has no field {unknown}; it has {known}.")
    nothing = dataclasses.MISSING
    needed = {field.name for field in fields if field.default is nothing and field.default_factory is nothing}
    if missing := sorted(needed - set(config)):
        raise ValueError(f"{what} needs the field {missing}; given were {sorted(config)}.")


def _plain_json(name: str, field: str, value: Any) -> dict[str, Any]:
    """A copy of `value` as JSON gives it back: no tuples, nothing shared with another recipe."""
    try:
        return json.loads(json.dumps(dict(value)))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Recipe {name!r} needs a plain dict as {field}: names, numbers and lists, got {value!r} ({error})."
        ) from error
