"""assign_bits: a number of bits for each layer, by what it costs and what it saves."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from keras_lowbit.arguments import check_model
from keras_lowbit.convert.post_training.calibrate import activation_hosts, calibrate
from keras_lowbit.convert.quantize_model import quantize_model
from keras_lowbit.data import Batches, samples_in
from keras_lowbit.data.batching import Progress
from keras_lowbit.deploy.summary import costs, summary
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.base import weights_standing_in
from keras_lowbit.layers.kernels import quantized_layers
from keras_lowbit.quantizers import Quantizer, Uniform
from keras_lowbit.recipes import Recipe, Rule, get
from keras_lowbit.sensitivity.choices import BitChoices, Choice, Chosen, LayerChoices, quantizer_of
from keras_lowbit.sensitivity.logits import Logits, Score

CHOICES: tuple[Choice, ...] = (8, 4, 3, 2, "ternary")


def assign_bits(
    model: keras.Model,
    data: Any,
    *,
    budget_kb: float | None = None,
    budget_points: float | None = None,
    choices: Sequence[Choice] = CHOICES,
    labels: Any = None,
    batch_size: int = 32,
    steps: int | None = None,
    verbose: int | bool = 1,
) -> Recipe:
    """A recipe that gives every layer as many bits as it needs, for a size or an accuracy.

    `bit_choices` measures what each layer costs at each choice; layers go down where that adds least noise to the logits for
    each byte saved, until the file is small enough (budget_kb) or too much is lost (budget_points). Noise is taken to add up.

    model: float, its batch norms folded.   data: as for `calibrate`, for ranges and noise; 100 to 500 samples.
    budget_kb: 1,000 bytes, of the file that `export_litert(weights="auto")` writes.   budget_points: percentage points of
    accuracy (with labels) or of agreement with the float model, before any tuning.   choices: of 8 to 2 bits and "ternary".
    labels: class numbers beside data in arrays, for the accuracy.   batch_size, steps, verbose: as for `calibrate`.
    Returns a `Recipe` of one rule for each layer: quantize, calibrate and tune with it as with any other.
    Raises ValueError for both budgets or none, an unknown choice, and a budget that cannot be kept.

    >>> recipe = klb.assign_bits(folded, images, budget_kb=20, verbose=0)
    """
    if (budget_kb is None) == (budget_points is None):
        raise ValueError(f"assign_bits takes one of budget_kb and budget_points, got {budget_kb} and {budget_points}.")
    found = bit_choices(
        model, data, choices=choices, labels=labels, batch_size=batch_size, steps=steps, verbose=verbose
    )
    return found.recipe(budget_kb=budget_kb, budget_points=budget_points)


def bit_choices(
    model: keras.Model,
    data: Any,
    *,
    choices: Sequence[Choice] = CHOICES,
    labels: Any = None,
    batch_size: int = 32,
    steps: int | None = None,
    verbose: int | bool = 1,
) -> BitChoices:
    """What each layer's weights cost at each choice of bits (noise of the logits) and take (bytes in the file).

    Activations are quantized to 8 bits and the other layers' weights to the first of `choices`; the noise of that alone counts
    once, for no layer. Arguments as for `assign_bits`. Time: a run of the model on all data for each layer and choice.
    model, data, choices, labels, batch_size, steps, verbose: as for `assign_bits`.
    Returns `BitChoices`: a table, `recipe(budget_kb=)`, `to_json()`, `plot()`.

    >>> found = klb.bit_choices(folded, images, verbose=0)
    """
    check_model(model, "bit_choices")
    choices = _checked(choices)
    batches, base = list(Batches(data, batch_size, steps)), get("int8")
    quantized, _ = quantize_model(model, base)
    if activation_hosts(quantized):
        calibrate(quantized, lambda: iter(batches), verbose=0)
    logits = Logits(quantized, model, batches, labels)
    layers = quantized_layers(quantized)
    kernels = {path: {choice: _kernel(layer, choice) for choice in choices} for path, layer in layers.items()}

    def measure(chosen: Chosen) -> Score:
        with weights_standing_in({layers[path]: kernels[path][choice] for path, choice in chosen.items()}):
            return logits.score()

    sizes = {choice: _sizes(model, choice, base) for choice in choices}
    start = _noise(measure(dict.fromkeys(layers, choices[0])))
    bar = Progress(len(layers), "layer", verbose)
    rows = []
    for path in layers:
        noise = {choices[0]: 0.0} | {
            choice: max(_noise(measure(dict.fromkeys(layers, choices[0]) | {path: choice})) - start, 0.0)
            for choice in choices[1:]
        }
        rows.append(LayerChoices(path, noise, {choice: sizes[choice][0][path] for choice in choices}))
        bar.advance()
    return BitChoices(
        model.name,
        tuple(rows),
        overhead=sizes[choices[0]][1],
        float_size=4 * costs(model).parameters,
        activations=base.activations,
        samples=sum(samples_in(batch) for batch in batches),
        measure=measure,
        file_size=lambda recipe: _file_size(model, recipe),
        reference=Score(float("inf"), 1.0, logits.float_accuracy()),
    )


def _checked(choices: Iterable[Any]) -> tuple[Choice, ...]:
    found = tuple(dict.fromkeys(choices))
    known = (*range(8, 1, -1), "ternary")
    if unknown := [choice for choice in found if choice not in known or isinstance(choice, bool)]:
        raise ValueError(f"choices={list(found)!r} has {unknown}; choose from {list(known)}.")
    if len(found) < 2:
        raise ValueError(f"choices={list(found)!r} leaves nothing to choose. Give two or more of {list(known)}.")
    return found


def _kernel(layer: Any, choice: Choice) -> np.ndarray:
    """The layer's kernel at a choice, as reals."""
    quantizer: Quantizer = quantizer_of(choice)
    if isinstance(choice, int) and choice < 8:
        quantizer = Uniform(choice, calibration="mse")  # where the threshold of the recipe's quantizer starts
    found = quantizer.encode(keras.ops.convert_to_tensor(to_numpy(layer.kernel)), {}, layer.filter_axes)
    return keras.ops.convert_to_numpy(found.real)


def _noise(score: Score) -> float:
    return 0.0 if score.snr_db == float("inf") else float(10 ** (-score.snr_db / 10))


def _sizes(model: keras.Model, choice: Choice, base: Recipe) -> tuple[dict[str, int], int]:
    """Bytes of each layer in a file with all weights at a choice, and of the rest."""
    quantized, _ = quantize_model(model, base.replace(plan=(Rule(quantizer_of(choice)),)))
    found = summary(quantized, weights="auto")
    if found.file_bytes is None:
        raise ValueError(f"bit_choices needs a model that exports: {found.no_file_because}")
    return {layer.path: layer.file_bytes or 0 for layer in found.layers}, found.overhead_bytes or 0


def _file_size(model: keras.Model, recipe: Recipe) -> int:
    quantized, _ = quantize_model(model, recipe)
    return summary(quantized, weights="auto").file_bytes or 0
