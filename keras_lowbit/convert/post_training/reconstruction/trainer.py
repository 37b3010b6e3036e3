"""The training of one block: its kernels between their neighbours and its biases, its output against the float one."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lowbit.callbacks.optimizer import reset_optimizer
from keras_lowbit.convert.post_training.reconstruction.blocks import Block
from keras_lowbit.convert.post_training.reconstruction.neighbours import Neighbours
from keras_lowbit.convert.post_training.reconstruction.ranges import UNIT, RangeFactor
from keras_lowbit.keras_graph.calls import run_calls
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.base import weights_standing_in
from keras_lowbit.layers.host import activations_mixed, only_quantizing, states_standing_in
from keras_lowbit.numerics.gradients import straight_through
from keras_lowbit.numerics.soft_rounding import annealed_beta, softness, up_share

_VALUES = 2**20  # of the largest tensor of an iteration
_MEASURED = 8  # samples that the units of the biases are measured on
_CENTRED = 64  # samples that the means of channels are taken over
WARM_UP = 0.2  # of all iterations, in which nothing pushes the shares to 0 and 1
HARD_FROM = 0.8  # of all iterations, from where the block runs with hard shares
FIXED_FROM = 0.9  # of all iterations, from where biases alone learn


@dataclasses.dataclass(frozen=True)
class Settings:
    """How each block trains; see `reconstruct`."""

    iterations: int
    learning_rate: float
    drop_probability: float
    regularization: float
    batch_size: int
    seed: int
    gradient_weights: bool = False


@dataclasses.dataclass(frozen=True)
class Learnt:
    """What training found for a layer. up: where weights are rounded up.   bias: None if the layer has none that trains."""

    up: np.ndarray
    bias: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class _Fixed:
    """What a trainer reads and Keras does not track: the block, and the neighbours of its layers in their order."""

    block: Block
    layers: tuple[Any, ...]
    neighbours: tuple[Neighbours, ...]
    biases: tuple[np.ndarray | None, ...]  # at the start; None where none trains
    ranges: tuple[RangeFactor, ...]
    factors: tuple[np.ndarray, ...]  # of the ranges, at the start


class BlockTrainer(keras.Model):
    """Kernels ``low + h(v) (high - low)`` and biases ``b + u d``, trained v and d; loss: relative error and softness of h.

    Factors of few-bit ranges train along, ``f + 0.05 m`` with a trained m, until `FIXED_FROM`.
    Called with the values of the block's inputs in the quantized network, then those in the float one; in training they are
    mixed, as is every activation inside, value by value: with `drop_probability` the float one stays. From `HARD_FROM` on
    h is rounded on its way forward, its gradient as before; from `FIXED_FROM` on it has none.
    channel_weights: of the error, 1 at first.
    target_energy: mean over the target's positions of the weighted sum of squares over its channels.
    units: u of every layer with a bias that trains, see `measure_units`.
    """

    def __init__(
        self,
        block: Block,
        layers: Mapping[str, Any],
        neighbours: Mapping[str, Neighbours],
        settings: Settings,
        ranges: Sequence[RangeFactor] = (),
    ) -> None:
        super().__init__(name="block_trainer")
        self.settings = settings
        own = tuple(layers[path] for path in neighbours)
        biases, factors = map(_trained_bias, own), (to_numpy(factor.variable).copy() for factor in ranges)
        self.fixed = _Fixed(block, own, tuple(neighbours.values()), tuple(biases), tuple(ranges), tuple(factors))
        self.logits, self.shifts, self.units = [], [], []
        for number, (found, bias) in enumerate(zip(self.fixed.neighbours, self.fixed.biases, strict=True)):
            weight = self.add_weight(shape=found.low.shape, name=f"logits_{number}")
            weight.assign(found.start)
            self.logits.append(weight)
            size = (0,) if bias is None else bias.shape
            self.shifts.append(
                self.add_weight(shape=size, initializer="zeros", trainable=bias is not None, name=f"shift_{number}")
            )
            self.units.append(self.add_weight(shape=size, initializer="ones", trainable=False, name=f"unit_{number}"))
        self.moves = [
            self.add_weight(shape=factor.shape, initializer="zeros", name=f"move_{number}")
            for number, factor in enumerate(self.fixed.factors)
        ]
        channels = block.calls[-1].results[0].shape[-1]
        self.channel_weights = self.add_weight(shape=(channels,), initializer="ones", trainable=False, name="channels")
        self.target_energy = self.add_weight(shape=(), initializer="ones", trainable=False, name="target_energy")
        self.step = self.add_weight(shape=(), initializer="zeros", trainable=False, name="step")
        self.random = keras.random.SeedGenerator(settings.seed)
        self.built = True

    @property
    def progress(self) -> Any:
        """Share of the iterations that have begun."""
        return self.step / max(self.settings.iterations, 1)

    def measure_units(self, inputs: list[np.ndarray]) -> None:
        """Units of the biases: of each channel the rms of what nearest rounding does to the layer's sums, on these inputs."""
        weights = [found.weights for found in self.fixed.neighbours]

        def measure(place: int, layer: Any, reals: list[Any]) -> None:
            self.units[place].assign(_rounding_noise(layer, reals[0], weights[place]))

        self._run_layers([inputs[: len(self.fixed.block.inputs)]], measure)

    def centre(self, sets: list[list[np.ndarray]]) -> None:
        """Biases at which the choices shift no channel's mean: ``b' = b + mean(sums of the float layer) - mean(sums)``.

        Layer by layer, each behind the ones before it as they then are.   sets: inputs of some samples each.
        """
        half = len(self.fixed.block.inputs)
        reals = [found.weights for found in self.fixed.neighbours]
        with only_quantizing(()):
            wanted = self._means([arrays[half:] for arrays in sets], reals, lambda place, mean: None)
        choices = [found.chosen(learnt.up) for found, learnt in zip(self.fixed.neighbours, self.learnt(), strict=True)]

        def shift(place: int, mean: np.ndarray) -> None:
            unit = ops.convert_to_numpy(self.units[place])
            self.shifts[place].assign((wanted[place] - mean) / np.where(unit > 0, unit, 1.0))
            self.fixed.layers[place].bias.assign(ops.convert_to_numpy(self.biases()[place]))

        try:
            self._means([arrays[:half] for arrays in sets], choices, shift)
        finally:
            for layer, bias in zip(self.fixed.layers, self.fixed.biases, strict=True):
                if bias is not None:
                    layer.bias.assign(bias)

    def _means(
        self, sets: list[list[np.ndarray]], kernels: list[np.ndarray], seen: Callable[[int, np.ndarray], None]
    ) -> dict[int, np.ndarray]:
        """Mean of the sums of each channel, for each layer with a bias that trains. seen: called before that layer runs."""
        found: dict[int, np.ndarray] = {}

        def mean(place: int, layer: Any, reals: list[Any]) -> None:
            found[place] = np.mean([_sums(layer, real).mean(axis=0) for real in reals], axis=0)
            seen(place, found[place])

        with weights_standing_in(dict(zip(self.fixed.layers, kernels, strict=True))), self._ranges_standing_in(False):
            self._run_layers(sets, mean)
        return found

    def _run_layers(self, sets: list[list[np.ndarray]], seen: Callable[[int, Any, list[Any]], None]) -> None:
        """The block on each set of inputs. seen: called with each layer whose bias trains, and its inputs, before it runs."""
        block, places = self.fixed.block, {id(layer): place for place, layer in enumerate(self.fixed.layers)}
        known = [
            {key: ops.convert_to_tensor(array) for key, array in zip(block.inputs, arrays, strict=True)}
            for arrays in sets
        ]

        def before(call: Any) -> None:
            place = places.get(id(call.operation))
            if place is not None and self.fixed.biases[place] is not None:
                seen(place, call.operation, [values[call.inputs[0]] for values in known])

        run_calls(block.calls, known, before=before)

    def shares(self) -> list[Any]:
        """How far up every weight is rounded, of each layer."""
        return [up_share(logits) for logits in self.logits]

    def biases(self) -> list[Any]:
        """Of each layer the bias that trains, or None."""
        return [
            None if start is None else start + unit * shift
            for start, unit, shift in zip(self.fixed.biases, self.units, self.shifts, strict=True)
        ]

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The block's output: with soft kernels, in training from `HARD_FROM` on with hard ones."""
        block, half = self.fixed.block, len(self.fixed.block.inputs)
        values = list(inputs[:half])
        if training:
            self.step.assign(self.step + 1.0)
        drops = training and self.settings.drop_probability > 0
        if drops:
            values = [self._mixed(real, code) for real, code in zip(inputs[half:], values, strict=True)]
        known = dict(zip(block.inputs, values, strict=True))
        with self._standing_in(training), activations_mixed(self._mixed) if drops else nullcontext():
            run_calls(block.calls, [known], keep=[block.output])
        return known[block.output]

    @contextmanager
    def _standing_in(self, training: bool) -> Iterator[None]:
        shares = [self._maybe_hard(share) for share in self.shares()] if training else self.shares()
        layers = self.fixed.layers
        kernels = {
            layer: found.low + share * (found.high - found.low)
            for layer, found, share in zip(layers, self.fixed.neighbours, shares, strict=True)
        }
        biases = {layer: bias for layer, bias in zip(layers, self.biases(), strict=True) if bias is not None}
        with weights_standing_in(kernels, biases), self._ranges_standing_in(training):
            yield

    def _ranges_standing_in(self, training: bool) -> Any:
        states: dict[Any, dict[str, Any]] = {}
        for factor, start, move in zip(self.fixed.ranges, self.fixed.factors, self.moves, strict=True):
            value = start + UNIT * move
            if training:
                value = ops.where(self.progress > FIXED_FROM, ops.stop_gradient(value), value)
            states.setdefault(factor.host, {})[factor.name] = value
        return states_standing_in(states)

    def _maybe_hard(self, share: Any) -> Any:
        hard = ops.cast(share >= 0.5, "float32")
        share = ops.where(self.progress > HARD_FROM, straight_through(share, hard), share)
        return ops.where(self.progress > FIXED_FROM, hard, share)

    def _mixed(self, real: Any, on_grid: Any) -> Any:
        """The places that stay float are the same in every sample: drawing for each would take half of a step's time."""
        places = (1, *ops.shape(real)[1:])
        stays = keras.random.uniform(places, seed=self.random) < self.settings.drop_probability
        return ops.where(stays, real, on_grid)

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, *_: Any, **__: Any) -> Any:
        """``C E|y - t|^2 / E|t|^2 + lambda softness(h)``: C channels, t the float output, squares weighted by channel."""
        y, y_pred = ops.cast(y, "float32"), ops.cast(y_pred, "float32")
        squares = ops.sum(self.channel_weights * ops.square(y_pred - y), axis=-1)
        error = ops.mean(squares) / self.target_energy * float(y.shape[-1])
        beta = annealed_beta(self.progress, WARM_UP)
        undecided = sum(
            (
                softness(ops.where(found.free, share, 1.0), beta)
                for found, share in zip(self.fixed.neighbours, self.shares(), strict=True)
            ),
            start=ops.zeros(()),
        )
        pushes = ops.logical_and(self.progress >= WARM_UP, self.progress <= FIXED_FROM)
        pushing = ops.cast(pushes, "float32") * self.settings.regularization
        return error + pushing * undecided

    def learnt(self) -> list[Learnt]:
        """Where each layer's weights are rounded up, and its bias."""
        return [
            Learnt(
                found.free & (ops.convert_to_numpy(share) >= 0.5), None if bias is None else ops.convert_to_numpy(bias)
            )
            for found, share, bias in zip(self.fixed.neighbours, self.shares(), self.biases(), strict=True)
        ]

    def learnt_factors(self) -> dict[str, np.ndarray]:
        """The factors of the ranges, by key."""
        parts = zip(self.fixed.ranges, self.fixed.factors, self.moves, strict=True)
        return {factor.key: factor.within_limits(start + UNIT * to_numpy(move)) for factor, start, move in parts}


def _trained_bias(layer: Any) -> np.ndarray | None:
    return None if layer.bias is None or layer.bias_host is not None else to_numpy(layer.bias).copy()


def _rounding_noise(layer: Any, inputs: Any, weights: np.ndarray) -> np.ndarray:
    """Root mean square over all positions of the layer's sums with its quantized kernel less those with `weights`."""
    on_grid = _sums(layer, inputs)
    with weights_standing_in({layer: weights}):
        return np.sqrt(np.square(on_grid - _sums(layer, inputs)).mean(axis=0))


def _sums(layer: Any, inputs: Any) -> np.ndarray:
    """What a layer adds its bias to, float32 [samples and positions, channels]."""
    found = ops.convert_to_numpy(layer.linear(ops.cast(inputs, layer.compute_dtype), False)).astype(np.float32)
    if getattr(layer, "data_format", "") == "channels_first":
        found = np.moveaxis(found, 1, -1)
    return found.reshape(-1, found.shape[-1])


def train(trainer: BlockTrainer, inputs: list[np.ndarray], target: np.ndarray, rng: np.random.Generator) -> None:
    """All iterations of a block, each on samples drawn anew.

    inputs: quantized, then float, [samples, ...] each.
    """
    settings, count = trainer.settings, len(target)
    energy = (np.square(target, dtype=np.float32) @ to_numpy(trainer.channel_weights)).mean()
    trainer.target_energy.assign(max(float(energy), 1e-12))
    trainer.measure_units([_as_read(array[:_MEASURED]) for array in inputs])
    compiles = "auto" if keras.backend.backend() == "jax" else False
    trainer.compile(keras.optimizers.Adam(settings.learning_rate), jit_compile=compiles)
    trainer.optimizer.build(trainer.trainable_variables)
    drawn = samples_of_an_iteration(trainer.fixed.block, settings, count)
    for iteration in range(settings.iterations):
        if iteration == math.ceil(FIXED_FROM * settings.iterations):
            parts = _in_parts(min(_CENTRED, count), drawn)
            reset_optimizer(trainer)  # its momentum would go on changing choices
            trainer.centre([[_as_read(array[rows]) for array in inputs] for rows in parts])
        trainer.optimizer.learning_rate = settings.learning_rate * _rate(iteration / settings.iterations)
        rows = np.sort(rng.choice(count, drawn, replace=False))
        batch = [_as_read(array[rows]) for array in inputs]
        trainer.train_on_batch(batch, target[rows].astype(np.float32))


def _in_parts(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _rate(progress: float) -> float:
    """Along a line to 0 in the second half; where biases alone learn, along another one from 1."""
    return min(1.0, 2 - 2 * progress) if progress <= FIXED_FROM else (1 - progress) / (1 - FIXED_FROM)


def samples_of_an_iteration(block: Block, settings: Settings, count: int) -> int:
    """The batch size, or less: `count` samples are there, and a block of many positions sees enough in a few."""
    shapes = (result.shape[1:] for call in block.calls for result in call.results)
    largest = max(math.prod(size or 1 for size in shape) for shape in shapes)
    return min(settings.batch_size, count, max(1, _VALUES // largest))


def _as_read(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.kind == "f" else array
