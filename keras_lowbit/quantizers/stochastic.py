"""SQ, stochastic quantization: each step quantizes an error-aware random part of the units."""

import dataclasses
from typing import Any, ClassVar

import keras
from keras import ops

from keras_lowbit.numerics import selection, thresholds
from keras_lowbit.numerics.grids import Quantized
from keras_lowbit.quantizers.base import (
    SEED,
    Axes,
    Quantizer,
    State,
    StateSpec,
    Tensor,
    add_base_prefix,
    as_float32,
    base_state,
    get,
    register,
    require_choice,
)


@register
@dataclasses.dataclass(frozen=True)
class Stochastic(Quantizer):
    """SQ over any base: ``w~ = q`` on ``N_q = ceil(ratio * m)`` drawn units, ``w~ = w`` on the others.

    Every training step draws N_q of the m units without replacement, by weight ``p(f)`` with
    ``f = 1 / (e + 1e-7)`` and ``e = ||w - q||_1 / ||w||_1``, so that well-approximated units go first.
    Gradient: that of the base on the drawn units, identity on the others.
    base: a quantizer of weights, such as `Ternary()` or `Binary()`, or its short name.
    granularity: the unit is a "channel" (the paper) or an "element" (an ablation there, and worse).
    probability: "constant", "linear" (the paper's choice), "softmax" or "sigmoid" of f.
    selection: "quantize_inv_error" draws the quantized units by 1/e (paper); "keep_error" draws the units
    that stay float by e (official code; a unit of error 0 stays float only when no other is left).
    hybrid_evaluation: draw at inference too, as the official code; by default inference is fully quantized.
    seed: start of the random sequence; None takes one from `keras.utils.set_random_seed`'s generator.
    Raises ValueError for another base or choice.
    State: ratio in [0, 1], 1 at first, set by `callbacks.RatioSchedule`; the generator; the base's own.
    Ratio 0 gives the bits of w, ratio 1 the bits of the base, whatever was drawn.
    Dong et al. 2017, arXiv:1708.01001, sections 3.1 to 3.4 and Algorithm 1.

    >>> sq = klb.quantizers.Stochastic(klb.quantizers.Binary(), probability="softmax")
    >>> sq.base
    Binary(granularity='channel')
    """

    name: ClassVar[str] = "stochastic"
    base: Any = "ternary"
    granularity: str = "channel"
    probability: str = "linear"
    selection: str = "quantize_inv_error"
    hybrid_evaluation: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        base = get(self.base)
        if base is None or isinstance(base, Stochastic):
            raise ValueError(f"Stochastic needs a base quantizer such as Ternary() or Binary(), got {self.base!r}.")
        object.__setattr__(self, "base", base)
        require_choice("Stochastic", "granularity", self.granularity, ("channel", "element"))
        require_choice("Stochastic", "probability", self.probability, ("constant", "linear", "softmax", "sigmoid"))
        require_choice("Stochastic", "selection", self.selection, ("quantize_inv_error", "keep_error"))

    @property
    def bits(self) -> float:
        """The bits of the base: what is left once the ratio is 1."""
        return self.base.bits

    def state_specs(self, shape: tuple[int, ...], filter_axes: Axes = ()) -> dict[str, StateSpec]:
        """The ratio, the random generator, and the base's variables under the prefix ``base_``."""
        base = self.base.state_specs(shape, filter_axes)
        own = {"ratio": StateSpec(initial=1.0, setting=True), SEED: StateSpec(initial=self.seed, seed=True)}
        return own | add_base_prefix(base)

    def observe(self, real: Tensor, state: State) -> dict[str, Tensor]:
        """Whatever the base observes."""
        return add_base_prefix(self.base.observe(real, base_state(state)))

    def tuning_start(self, real: Tensor, filter_axes: Axes = ()) -> dict[str, Tensor]:
        """That of the base."""
        return add_base_prefix(self.base.tuning_start(real, filter_axes))

    def is_slow(self, training: bool) -> bool:
        """Whether the base is, where the base is all there is: not in training, nor with `hybrid_evaluation`."""
        return not (training or self.hybrid_evaluation) and self.base.is_slow(training)

    def on_grid(self, real: Tensor, quantized: Quantized) -> Tensor:
        """That of the base, whose codes they are."""
        return self.base.on_grid(real, quantized)

    def encode(self, real: Tensor, state: State, filter_axes: Axes = ()) -> Quantized:
        """The base's codes for every unit: a ratio below 1 is a state of training, not of deployment."""
        return self.base.encode(real, base_state(state), filter_axes)

    def __call__(
        self, real: Tensor, state: State | None = None, filter_axes: Axes = (), training: bool = False
    ) -> Tensor:
        """The hybrid of base and float units while training, the base everywhere at inference."""
        real, state = as_float32(real), state or {}
        on_grid = self.base(real, base_state(state), filter_axes, training)
        if not (training or self.hybrid_evaluation):
            return on_grid
        drawn = self.draw(ops.stop_gradient(real), ops.stop_gradient(on_grid), state, filter_axes)
        return ops.where(drawn, on_grid, real)

    def draw(self, real: Tensor, on_grid: Tensor, state: State, filter_axes: Axes = ()) -> Tensor:
        """Which units are quantized in this step: booleans that broadcast against `real`.

        Draws from the generator in `state` at every call, whatever the ratio, and chooses by rank, so that one
        compiled graph serves every ratio.
        """
        rank = len(real.shape)
        axes = thresholds.reduced_axes(rank, filter_axes) if self.granularity == "channel" else ()
        error = selection.relative_error(real, on_grid, axes)
        keep = self.selection == "keep_error"
        units = ops.reshape(error, (-1,))
        score = units if keep else 1.0 / (units + selection.EPSILON)
        uniform = keras.random.uniform(units.shape, seed=state[SEED])
        ranks = ops.cast(selection.draw_ranks(selection.log_weights(score, self.probability), uniform), "float32")
        count = selection.quantized_count(state["ratio"], units.shape[0])
        drawn = ranks >= units.shape[0] - count if keep else ranks < count
        return ops.reshape(drawn, error.shape)
