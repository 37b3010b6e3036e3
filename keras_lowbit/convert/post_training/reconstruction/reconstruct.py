"""reconstruct: rounding learnt block by block, so that each block's output, not each weight, comes out nearest."""

import dataclasses
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_lowbit.arguments import check_flag, check_whole
from keras_lowbit.convert.expansion.expand import expand
from keras_lowbit.convert.post_training.layer_steps import guarded_steps
from keras_lowbit.convert.post_training.reconstruction.blocks import UNITS, Block, find_blocks
from keras_lowbit.convert.post_training.reconstruction.checkpoint import Checkpoint
from keras_lowbit.convert.post_training.reconstruction.importance import channel_weights
from keras_lowbit.convert.post_training.reconstruction.neighbours import Neighbours, assign_exactly
from keras_lowbit.convert.post_training.reconstruction.ranges import RangeFactor, range_factors
from keras_lowbit.convert.post_training.reconstruction.replay import Replay
from keras_lowbit.convert.post_training.reconstruction.trainer import BlockTrainer, Learnt, Settings, train
from keras_lowbit.convert.post_training.reconstruction.twins import Twins
from keras_lowbit.convert.reports.conversion import ConversionReport, LayerReport, Refused, left_if
from keras_lowbit.data import Batches
from keras_lowbit.data.batching import Progress
from keras_lowbit.files import FilePath
from keras_lowbit.guard import Samples, Verdict, noise
from keras_lowbit.keras_graph.calls import calls_of, inputs_in_order
from keras_lowbit.keras_graph.variables import to_numpy

_WEIGHED = 64  # samples that the weights of channels are taken over
_IN_MEMORY = 2**30  # bytes of one tensor of all samples; a larger one lies in a file


def reconstruct(
    quantized: keras.Model,
    reference: keras.Model,
    data: Any,
    *,
    unit: str = "block",
    iterations: int = 1000,
    batch_size: int = 32,
    steps: int | None = None,
    learning_rate: float = 0.05,
    drop_probability: float = 0.5,
    regularization: float = 30.0,
    gradient_weights: bool = False,
    seed: int = 0,
    validation_data: Any = None,
    check: bool = True,
    checkpoint: FilePath | None = None,
    verbose: int | bool = 1,
) -> ConversionReport:
    """Learn whether each weight of a calibrated model is rounded up or down, and its biases, block by block; no labels needed.

    Every weight w lies between two neighbours of its grid; ``w' = low + h(v) (high - low)`` with a trained v, at first w
    itself, and ``h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)``. Biases ``b' = b + u d``: b that of the float model, whatever
    `correct_biases` put there for nearest rounding, d trained from 0, u for each channel the rms error of its sums under
    nearest rounding. Of each block, its inputs those of the quantized network, its target t the output in the float one, Adam
    minimises ``C E|y - t|^2 / E|t|^2 + lambda sum(1 - |2 h(v) - 1|^beta)``, C the channels of t. The second term is 0 in the
    first fifth of the iterations, then beta falls from 20 to 2 and h goes to 0 or 1. In the last fifth the block runs with h
    rounded, gradients passing straight through. In the last tenth biases alone learn, from where the choices shift the mean of
    no channel's sums (Nagel et al. 2019, arXiv:1906.04721): they make up for what was chosen. The rate falls along a line in
    the second half, and anew from its start in the last tenth. The kernel gets the values chosen, on its grid: scales stay.
    Trained factors of activations below 8 bits (LearnedStep, AdjustableThreshold) learn along up to the last tenth, in blocks
    with weights that learn. It is for 4 bits and below.

    Every block is judged on samples that it was not trained by: one whose error does not fall there keeps its kernels and
    biases. If the outputs of the whole model have moved away from the float model's, all blocks stay as they were, with a
    warning.

    quantized: what `quantize_model` made of `reference`, calibrated; changed in place, kernels and biases. Do not calibrate it
    again: that may look for scales anew.   reference: the float model that was quantized (folded, the equalized one where it
    was equalized).
    data, steps, verbose: as for `calibrate`; a few hundred images, whose tensors between blocks are kept in half precision, in
    memory or, above 1 GiB, in a nameless file.
    unit: "block" (residual blocks and inverted residuals, as a whole) or "layer".
    iterations: of each block; 0 leaves every weight at its nearest value, with the float biases.
    batch_size: samples of an iteration.   learning_rate: of v and d.   regularization: lambda.
    gradient_weights: squares of the error are weighted by channel, by the squared gradient of the float logits with random
    signs, 64 samples (BRECQ's Fisher weights, which are by value and of the task's loss).
    drop_probability: of an activation to stay float in an iteration, value by value (QDrop); in [0, 1).
    seed: of the samples drawn and the activations left float.
    validation_data: samples that judge; by default every fourth of `data`, 256 at most.   check=False: nothing is judged.
    checkpoint: file written after every block; a run that finds it goes on behind its last block, to the same bits.
    Returns a report: "reconstructed" with the block's error before and after and the share of weights that are not at their
    nearest value, or "left" and why; its `verdict` is on the outputs of the model.
    Layers of more than 128 values (8 bits) are left, with the float bias; a model of such alone is left as it is.
    Works on the grids of Uniform, AdjustableThreshold, LearnedStep, PowerOfTwo, Ternary and Clustered, where the quantizer
    finds the values chosen again; the others are named in the report.
    Raises ValueError if no layer of the two models matches, and for arguments out of range.
    Nagel et al. 2020, arXiv:2004.10568 (AdaRound); Li et al. 2021, arXiv:2102.05426 (BRECQ); Wei et al. 2022, arXiv:2203.05740
    (QDrop). Differs: biases learn too, which 4-bit depthwise filters need; the last fifth runs with hard choices; the error is
    relative to the target, so that lambda fits networks of any scale, and lambda and the rate are larger, for tenths of the
    iterations.

    >>> four_bits, report = klb.quantize_model(folded, "fat-w4")
    >>> ranges = klb.calibrate(four_bits, images, verbose=0)
    >>> report = klb.reconstruct(four_bits, folded, images, iterations=5, verbose=0)
    """
    settings = Settings(iterations, learning_rate, drop_probability, regularization, batch_size, seed, gradient_weights)
    _check(unit, settings)
    samples = Samples(Batches(data, batch_size, steps, verbose), validation_data, check)
    twins = Twins(calls_of(quantized, inline=True), calls_of(expand(reference).model, inline=True))
    if not twins.layers and twins.fine:
        return ConversionReport(quantized.name, "reconstruct", tuple(twins.left.values()), Verdict())
    if not twins.layers and twins.left:
        reasons = sorted({row.detail for row in twins.left.values()})
        raise ValueError(f"No quantized layer of {quantized.name!r} can learn its rounding: {'; '.join(reasons)}.")
    if not twins.layers:
        raise ValueError(
            f"No quantized layer of {quantized.name!r} has a float one of the same path in {reference.name!r}. Give the model "
            "that was quantized, its batch norms folded."
        )
    if twins.others:
        warnings.warn(
            f"reconstruct: {reference.name!r} is not the model that {quantized.name!r} was made of: the kernels of "
            f"{len(twins.others)} layers differ, the first is {twins.others[0]!r}. Their biases stay, so the rounding learns "
            "to undo what correct_biases put there. Give the model that quantize_model got, such as the equalized one.",
            stacklevel=2,
        )
    blocks = _blocks(twins, unit)
    rows: list[LayerReport] = []
    ranges = range_factors(twins.graph, twins.graph.calls)
    done = Checkpoint(checkpoint, twins.layers, ranges, {"unit": unit, **dataclasses.asdict(settings)})

    def all_blocks() -> None:
        rows.extend(_Run(quantized, reference, twins, samples, settings, done).blocks(blocks, verbose))

    verdict = guarded_steps("reconstruct", quantized, reference, samples, all_blocks)
    return ConversionReport(
        quantized.name, "reconstruct", (*left_if(not verdict.kept, rows), *twins.left.values()), verdict
    )


def _blocks(twins: Twins, unit: str) -> list[Block]:
    """Blocks with a layer that trains; those that are left since their grid is fine part blocks as the others do."""
    weighted = {*twins.layers, *twins.fine}
    found = find_blocks(twins.float_graph, lambda call: call.path in weighted, unit)
    own = [dataclasses.replace(b, layers=tuple(path for path in b.layers if path in twins.layers)) for b in found]
    return [block for block in own if block.layers]


def _check(unit: Any, settings: Settings) -> None:
    check_whole("reconstruct", "iterations", settings.iterations, low=0)
    check_whole("reconstruct", "seed", settings.seed, low=0)
    check_flag("reconstruct", "gradient_weights", settings.gradient_weights)
    rate, drops, regularization = settings.learning_rate, settings.drop_probability, settings.regularization
    if unit not in UNITS:
        raise ValueError(f"reconstruct got unit={unit!r}; give 'block' or 'layer'.")
    if not rate > 0:
        raise ValueError(f"reconstruct needs a learning_rate above 0, got {rate!r}; usual is 0.05.")
    if not 0 <= drops < 1:
        raise ValueError(f"reconstruct needs a drop_probability in [0, 1), got {drops!r}; usual is 0.5.")
    if not regularization >= 0:
        raise ValueError(f"reconstruct needs a regularization of 0 or more, got {regularization!r}; usual is 30.")


class _Run:
    """One run over all blocks: the networks' tensors as far as they have come."""

    def __init__(
        self,
        quantized: keras.Model,
        reference: keras.Model,
        twins: Twins,
        samples: Samples,
        settings: Settings,
        done: Checkpoint,
    ) -> None:
        self.twins, self.settings, self.done = twins, settings, done
        batches = list(samples)
        self.fitted = sum(len(inputs_in_order(quantized, batch)[0]) for batch in batches)
        everything = [inputs_in_order(quantized, batch) for batch in (*batches, *samples.held_back)]
        self.codes = Replay(twins.graph, everything, _IN_MEMORY)
        self.reals = Replay(twins.float_graph, everything, _IN_MEMORY)
        self.judges = bool(samples.held_back)
        self.channel_weights: dict[int, np.ndarray] = {}  # of the error, by the key of a block's output

    def blocks(self, blocks: list[Block], verbose: int | bool) -> list[LayerReport]:
        """Every block in its order; a row for each of its layers."""
        rows: list[LayerReport] = []
        for path in self.twins.fine:
            self.twins.take_float_bias(path)
        if self.settings.gradient_weights:
            graph, first = self.twins.float_graph, slice(min(_WEIGHED, self.fitted))
            samples, keys = [self.reals[key][first] for key in graph.inputs], [block.output for block in blocks]
            self.channel_weights = channel_weights(graph, keys, samples, self.settings.seed)
        bar = Progress(len(blocks), "block", verbose)
        pairs = [self.twins.quantized_block(block) for block in blocks]
        for place, (block, pair) in enumerate(zip(blocks, pairs, strict=True)):
            if isinstance(pair, Refused):
                rows += [self.twins.row(path, "left", pair.reason) for path in block.layers]
            else:
                rows += self._block(block, pair)
            self.reals.keep_only(_read_later(block, blocks[place + 1 :]))
            self.codes.keep_only(_read_later(pair, pairs[place + 1 :]))
            bar.advance()
        return rows

    def _block(self, block: Block, pair: Block) -> list[LayerReport]:
        target, before = self.reals[block.output], self.codes[pair.output]
        neighbours = {path: self.twins.neighbours[path] for path in block.layers}
        layers = [self.twins.layers[path] for path in block.layers]
        ranges = range_factors(self.twins.graph, pair.calls)
        weights = [weight for layer in layers for weight in (layer.kernel, layer.bias) if weight is not None]
        weights += [factor.variable for factor in ranges]
        first = {id(weight): to_numpy(weight).copy() for weight in weights}
        for path in block.layers:
            self.twins.take_float_bias(path)
        if not self.done.has(block.layers):
            self.done.add(*self._trained(block, pair, neighbours, ranges))
        learnt = self.done.layers
        for factor in ranges:
            factor.variable.assign(self.done.factors[factor.key])
        left = [path for path in block.layers if not self._take(path, neighbours[path], learnt[path], first)]
        after = self.codes.again(pair.output, pair.inputs)
        errors = [self._error(target, found) for found in (before, after)]
        if self.judges and not errors[1] < errors[0]:
            for weight in weights:
                weight.assign(first[id(weight)])
            self.codes.again(pair.output, pair.inputs)
        return [
            self._row(block, path, neighbours[path], learnt[path].up, errors, path in left) for path in block.layers
        ]

    def _trained(
        self, block: Block, pair: Block, neighbours: Mapping[str, Neighbours], ranges: Sequence[RangeFactor]
    ) -> tuple[dict[str, Learnt], dict[str, np.ndarray]]:
        inputs = [self.codes[key] for key in pair.inputs] + [self.reals[key] for key in block.inputs]
        number = zlib.crc32(block.name.encode())
        trainer = BlockTrainer(pair, self.twins.layers, neighbours, self.settings, ranges)
        if block.output in self.channel_weights:
            trainer.channel_weights.assign(self.channel_weights[block.output])
        rng = np.random.default_rng((self.settings.seed, number))
        train(trainer, [array[: self.fitted] for array in inputs], self.reals[block.output][: self.fitted], rng)
        return dict(zip(neighbours, trainer.learnt(), strict=True)), trainer.learnt_factors()

    def _take(self, path: str, found: Neighbours, learnt: Learnt, first: Mapping[int, np.ndarray]) -> bool:
        """Give a layer what was learnt; if its quantizer does not keep the kernel, what it had at `first`."""
        layer = self.twins.layers[path]
        kept = assign_exactly(layer, found.chosen(learnt.up))
        if learnt.bias is not None:
            layer.bias.assign(learnt.bias if kept else first[id(layer.bias)])
        return kept

    def _error(self, target: np.ndarray, found: np.ndarray) -> float:
        """Relative squared error on the samples that judge, or on all where none do."""
        rows = slice(self.fitted, None) if self.judges else slice(None)
        return noise([target[rows]], [found[rows]])

    def _row(
        self, block: Block, path: str, found: Neighbours, up: np.ndarray, errors: list[float], again: bool
    ) -> LayerReport:
        if again:
            return self.twins.row(path, "left", "its quantizer does not find the values chosen again")
        change = f"error {errors[0]:.3g} -> {errors[1]:.3g} at the output of {block.name!r}"
        if self.judges and not errors[1] < errors[0]:
            return self.twins.row(path, "left", f"on held-back samples the {change}")
        moved = float(np.mean(up != found.nearest_is_high))
        return self.twins.row(path, "reconstructed", f"{change}; {moved:.1%} of the weights not at the nearest value")


def _read_later(block: Block | Refused, later: Sequence[Block | Refused]) -> list[int]:
    """Keys of the tensors that later blocks begin with, and of the one that this one ends with."""
    found = [key for other in later if isinstance(other, Block) for key in other.inputs]
    return found if isinstance(block, Refused) else [*found, block.output]
