"""`BitChoices`: what each layer costs at each number of bits, and the recipes that follow."""

import bisect
import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from keras_lowbit.figures.canvas import save
from keras_lowbit.figures.sensitivity import draw_front
from keras_lowbit.quantizers import AdjustableThreshold, Quantizer, Ternary, Uniform
from keras_lowbit.recipes import Recipe, Rule
from keras_lowbit.sensitivity.logits import Score
from keras_lowbit.tables import plain, table

Choice = int | str
Chosen = Mapping[str, Choice]


def quantizer_of(choice: Choice) -> Quantizer:
    """The quantizer of a choice; below 8 bits with a threshold that `calibrate` fixes and `distill` may train."""
    if choice == "ternary":
        return Ternary()
    return Uniform(8) if choice == 8 else AdjustableThreshold(Uniform(int(choice)), calibration="mse")


@dataclasses.dataclass(frozen=True)
class LayerChoices:
    """One layer. noise: what its weights at a choice add to the logits' noise over signal.   size: bytes in the file."""

    path: str
    noise: Mapping[Choice, float]
    size: Mapping[Choice, int]

    def lower(self) -> list[tuple[float, Choice, Choice]]:
        """Steps down along the lower convex hull: noise for each byte saved, from, to; in falling size."""
        steps, now = list[tuple[float, Choice, Choice]](), self.best
        while smaller := [c for c in self.size if self.size[c] < self.size[now]]:
            slope = {c: (self.noise[c] - self.noise[now]) / (self.size[now] - self.size[c]) for c in smaller}
            after = min(smaller, key=lambda c: (slope[c], self.size[c]))
            steps.append((slope[after], now, after))
            now = after
        return steps

    @property
    def best(self) -> Choice:
        """The choice of least noise, the smallest of equals."""
        return min(self.noise, key=lambda c: (self.noise[c], self.size[c]))


@dataclasses.dataclass(frozen=True)
class BitChoices:
    """Noise and bytes of every layer at every choice, and what the file has besides; from `bit_choices`.

    layers: in running order.   overhead: bytes that no choice changes.   float_size: bytes of the float32 weights.
    activations: the recipe's quantizer of activations.   samples: that it was measured on.
    measure: scores an assignment, all layers at once.   file_size: bytes of the file that a recipe gives.
    """

    model: str
    layers: tuple[LayerChoices, ...]
    overhead: int
    float_size: int
    activations: Quantizer | None
    samples: int
    measure: Callable[[Chosen], Score] = dataclasses.field(repr=False, compare=False)
    file_size: Callable[[Recipe], int] = dataclasses.field(repr=False, compare=False)
    reference: Score = dataclasses.field(default=Score(float("inf"), 1.0))

    @cached_property
    def path(self) -> tuple[Chosen, ...]:
        """Assignments of falling size: at each step the layer that adds least noise for each byte saved goes one down."""
        now: dict[str, Choice] = {layer.path: layer.best for layer in self.layers}
        steps = sorted(
            (slope, place, layer.path, after)
            for layer in self.layers
            for place, (slope, _, after) in enumerate(_rising(layer.lower()))
        )
        found = [dict(now)]
        for _, _, path, after in steps:
            now[path] = after
            found.append(dict(now))
        return tuple(found)

    def size_of(self, chosen: Chosen) -> int:
        """Bytes of the file, as the sum of its parts."""
        return self.overhead + sum(layer.size[chosen[layer.path]] for layer in self.layers)

    def noise_of(self, chosen: Chosen) -> float:
        """Noise over signal of the logits, as if each layer's added up."""
        return sum(layer.noise[chosen[layer.path]] for layer in self.layers)

    def recipe(self, *, budget_kb: float | None = None, budget_points: float | None = None) -> Recipe:
        """The recipe of the largest assignment within `budget_kb` (1,000 bytes), or the smallest within `budget_points`.

        budget_kb: of the file that `export_litert(weights="auto")` writes, which is made and measured.
        budget_points: percentage points of accuracy, or without labels of agreement with the float model, that may be lost.
        ValueError unless one of the two is given, and where no assignment keeps it; the text says what is possible.
        """
        if (budget_kb is None) == (budget_points is None):
            raise ValueError(
                f"Give one of budget_kb (size) and budget_points (accuracy), got {budget_kb} and {budget_points}."
            )
        return self._within_size(budget_kb) if budget_kb is not None else self._within_points(budget_points or 0.0)

    def _within_size(self, budget_kb: float) -> Recipe:
        sizes = [-self.size_of(chosen) for chosen in self.path]  # rising
        size = 0
        for chosen in self.path[bisect.bisect_left(sizes, -1000 * budget_kb) :]:
            found = self.as_recipe(chosen, f"{budget_kb:g} kB")
            if (size := self.file_size(found)) <= 1000 * budget_kb:
                return found
        size = size or self.file_size(self.as_recipe(self.path[-1], "the smallest"))
        raise ValueError(
            f"No choice of bits gives {self.model!r} a file of {budget_kb:g} kB: the smallest has {size / 1000:.1f} kB. Allow "
            "fewer bits in choices=, or a larger budget."
        )

    def _within_points(self, budget_points: float) -> Recipe:
        lost = [self.points_lost(self.path[0])]
        if lost[0] > budget_points:
            raise ValueError(
                f"Even the least noisy choice of bits loses {lost[0]:.2f} points on {self.samples} samples, more than "
                f"budget_points={budget_points:g}. Tune it (`distill`, `reconstruct`), or give more samples."
            )
        low, high = 0, len(self.path)  # path[low] keeps the budget
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.points_lost(self.path[middle]) <= budget_points else (low, middle)
        return self.as_recipe(self.path[low], f"{budget_points:g} points")

    def points_lost(self, chosen: Chosen) -> float:
        """Percentage points of accuracy (without labels, of agreement) below the float model."""
        score = self.measure(chosen)
        if score.accuracy is not None and self.reference.accuracy is not None:
            return 100 * (self.reference.accuracy - score.accuracy)
        return 100 * (1 - score.agreement)

    def as_recipe(self, chosen: Chosen, budget: str) -> Recipe:
        """The plan of an assignment: a rule for each layer."""
        longest_first = sorted(chosen, key=lambda path: -len(path))  # a path may end in another layer's name
        rules = tuple(Rule(quantizer_of(chosen[path]), layers=re.escape(path)) for path in longest_first)
        source = f"assign_bits of keras_lowbit: {self.model}, {budget}, {self.samples} samples"
        return Recipe(f"assigned-{self.model}", rules, self.activations, source=source)

    def front(self, points: int = 8) -> list[tuple[int, Score]]:
        """Bytes and measured score of assignments spread evenly along `path`, the largest first."""
        places = sorted({round(i * (len(self.path) - 1) / max(points - 1, 1)) for i in range(points)})
        return [(self.size_of(self.path[i]), self.measure(self.path[i])) for i in places]

    def __str__(self) -> str:
        choices = list(self.layers[0].noise)
        heads = ("layer", *(f"{c}: dB" for c in choices), *(f"{c}: bytes" for c in choices))
        rows = [
            (layer.path, *(_decibels(layer.noise[c]) for c in choices), *(layer.size[c] for c in choices))
            for layer in self.layers
        ]
        return f"{self.model} on {self.samples} samples, one layer at a time\n{table(heads, rows)}"

    def to_json(self) -> str:
        """Every layer's noise and bytes; the assignments of `path` with their sizes."""
        layers = [
            {
                "path": x.path,
                "noise": {str(c): v for c, v in x.noise.items()},
                "bytes": {str(c): v for c, v in x.size.items()},
            }
            for x in self.layers
        ]
        path = [{"bytes": self.size_of(c), "noise": self.noise_of(c), "bits": dict(c)} for c in self.path]
        about = {
            "format": "keras_lowbit.bit_choices",
            "format_version": 1,
            "model": self.model,
            "samples": self.samples,
        }
        return json.dumps(about | plain({"layers": layers, "path": path}), indent=2, allow_nan=False)

    def plot(self, path: Any = None, chosen: Chosen | None = None) -> Any:
        """Size against agreement along `self.path`, the float model at its true place; a matplotlib figure.

        path: also written there, whole or not at all; a ValueError for an ending that matplotlib does not draw.
        chosen: an assignment to mark.
        """
        front = [(size / 1000, 100 * score.agreement) for size, score in self.front()]
        mark = None if chosen is None else (self.size_of(chosen) / 1000, 100 * self.measure(chosen).agreement)
        found = draw_front(front, mark, (self.float_size / 1000, 100.0))
        if path is not None:
            save(found, path)
        return found


def _rising(steps: Sequence[tuple[float, Choice, Choice]]) -> list[tuple[float, Choice, Choice]]:
    """The same steps with slopes that never fall, so that sorting by slope keeps a layer's order."""
    found, most = [], float("-inf")
    for slope, before, after in steps:
        most = max(most, slope)
        found.append((most, before, after))
    return found


def _decibels(noise: float) -> float:
    return math.inf if noise <= 0 else -10 * math.log10(noise)
