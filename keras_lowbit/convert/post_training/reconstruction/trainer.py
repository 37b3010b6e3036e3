"""The training of one block: its kernels between their neighbours, its output against the float one."""

import dataclasses
import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lowbit.convert.post_training.reconstruction.blocks import Block
from keras_lowbit.convert.post_training.reconstruction.neighbours import Neighbours
from keras_lowbit.keras_graph.calls import run_calls
from keras_lowbit.layers.base import kernels_standing_in
from keras_lowbit.layers.host import activations_mixed
from keras_lowbit.numerics.soft_rounding import annealed_beta, softness, up_share

_VALUES = 2**22  # of the largest tensor of an iteration
WARM_UP = 0.2  # of all iterations, in which nothing pushes the shares to 0 and 1


@dataclasses.dataclass(frozen=True)
class Settings:
    """How each block trains; see `reconstruct`."""

    iterations: int
    learning_rate: float
    drop_probability: float
    regularization: float
    batch_size: int
    seed: int


@dataclasses.dataclass(frozen=True)
class _Fixed:
    """What a trainer reads and Keras does not track: the block, and the neighbours of its layers in their order."""

    block: Block
    layers: tuple[Any, ...]
    neighbours: tuple[Neighbours, ...]


class BlockTrainer(keras.Model):
    """Kernels ``low + h(v) (high - low)``, trained logits v; the loss is the output's relative error and the softness of h.

    Called with the values of the block's inputs in the quantized network, then those in the float one; in training they are
    mixed, as is every activation inside, value by value: with `drop_probability` the float one stays.
    target_energy: mean over the target's positions of the sum of squares over its channels.
    """

    def __init__(
        self, block: Block, layers: Mapping[str, Any], neighbours: Mapping[str, Neighbours], settings: Settings
    ) -> None:
        super().__init__(name="block_trainer")
        self.settings = settings
        self.fixed = _Fixed(
            block, tuple(layers[path] for path in neighbours), tuple(neighbours[path] for path in neighbours)
        )
        self.logits = []
        for number, found in enumerate(neighbours.values()):
            weight = self.add_weight(shape=found.low.shape, name=f"logits_{number}")
            weight.assign(found.start)
            self.logits.append(weight)
        self.target_energy = self.add_weight(shape=(), initializer="ones", trainable=False, name="target_energy")
        self.step = self.add_weight(shape=(), initializer="zeros", trainable=False, name="step")
        self.random = keras.random.SeedGenerator(settings.seed)
        self.built = True

    def shares(self) -> list[Any]:
        """How far up every weight is rounded, of each layer."""
        return [up_share(logits) for logits in self.logits]

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The block's output with the soft kernels."""
        block, half = self.fixed.block, len(self.fixed.block.inputs)
        values = list(inputs[:half])
        if training:
            self.step.assign(self.step + 1.0)
        drops = training and self.settings.drop_probability > 0
        if drops:
            values = [self._mixed(real, code) for real, code in zip(inputs[half:], values, strict=True)]
        kernels = {
            layer: found.low + share * (found.high - found.low)
            for layer, found, share in zip(self.fixed.layers, self.fixed.neighbours, self.shares(), strict=True)
        }
        known = dict(zip(block.inputs, values, strict=True))
        with kernels_standing_in(kernels), activations_mixed(self._mixed) if drops else nullcontext():
            run_calls(block.calls, [known], keep=[block.output])
        return known[block.output]

    def _mixed(self, real: Any, on_grid: Any) -> Any:
        """The places that stay float are the same in every sample: drawing for each would take half of a step's time."""
        places = (1, *ops.shape(real)[1:])
        stays = keras.random.uniform(places, seed=self.random) < self.settings.drop_probability
        return ops.where(stays, real, on_grid)

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, *_: Any, **__: Any) -> Any:
        """``C E|y - t|^2 / E|t|^2 + lambda softness(h)``: C output channels, t the float output."""
        y, y_pred = ops.cast(y, "float32"), ops.cast(y_pred, "float32")
        error = ops.mean(ops.sum(ops.square(y_pred - y), axis=-1)) / self.target_energy * float(y.shape[-1])
        progress = self.step / self.settings.iterations
        beta = annealed_beta(progress, WARM_UP)
        undecided = sum(
            (
                softness(ops.where(found.free, share, 1.0), beta)
                for found, share in zip(self.fixed.neighbours, self.shares(), strict=True)
            ),
            start=ops.zeros(()),
        )
        pushing = ops.cast(progress >= WARM_UP, "float32") * self.settings.regularization
        return error + pushing * undecided

    def chosen(self) -> list[np.ndarray]:
        """Where each layer's weights are rounded up."""
        return [
            found.free & (ops.convert_to_numpy(share) >= 0.5)
            for found, share in zip(self.fixed.neighbours, self.shares(), strict=True)
        ]


def train(trainer: BlockTrainer, inputs: list[np.ndarray], target: np.ndarray, rng: np.random.Generator) -> None:
    """All iterations of a block, each on samples drawn anew. inputs: quantized, then float, [samples, ...] each."""
    settings, count = trainer.settings, len(target)
    energy = np.square(target, dtype=np.float32).sum(-1).mean()
    trainer.target_energy.assign(max(float(energy), 1e-12))
    compiles = "auto" if keras.backend.backend() == "jax" else False
    trainer.compile(keras.optimizers.Adam(settings.learning_rate), jit_compile=compiles)
    trainer.optimizer.build(trainer.trainable_variables)
    drawn = min(settings.batch_size, count, _most_samples(trainer.fixed.block))
    for _ in range(settings.iterations):
        rows = np.sort(rng.choice(count, drawn, replace=False))
        batch = [_as_read(array[rows]) for array in inputs]
        trainer.train_on_batch(batch, target[rows].astype(np.float32))


def _most_samples(block: Block) -> int:
    """How many samples an iteration may take: with its largest tensor a block of many positions sees enough in a few."""
    shapes = (result.shape[1:] for call in block.calls for result in call.results)
    largest = max(math.prod(size or 1 for size in shape) for shape in shapes)
    return max(1, _VALUES // largest)


def _as_read(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.kind == "f" else array
