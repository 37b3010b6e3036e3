"""Images of 0 to 255 at the front of a model that prepares them itself: their range is known before any data are seen.

A file whose input has the scale 1 and the zero point 0 (as uint8) takes the bytes of a camera as they are. So an input that the
model divides by 255, or prepares in another of the usual ways, gets the range [0, 255], whatever the calibration data reach.
"""

from collections.abc import Iterator

import numpy as np

from keras_lowbit.convert.analysis.float_flow import Level
from keras_lowbit.convert.analysis.functions import DIVISIONS
from keras_lowbit.convert.analysis.operations import Category, stock_kind
from keras_lowbit.keras_graph.calls import Call, nested_inputs, run_calls
from keras_lowbit.keras_graph.variables import to_numpy

BRIGHTEST = 255.0
_BRINGS_TO_ONE = (255.0, 256.0, 127.5, 128.0)  # what images are divided by, first of all
_MEANS, _DEVIATIONS = (64.0, 192.0), (32.0, 128.0)  # of the pixels of photographs, channel by channel
_AFFINE_LAYERS = ("Rescaling", "Normalization", "ChannelAffine", "BatchNormalization")
_WITH_CONSTANT = ("Add", "Subtract", "Multiply", *DIVISIONS)
_MOVES = (Category.KEEPS_RANGE, Category.ROUNDS_IN_RANGE, Category.PIXELS)


def is_affine(call: Call, category: Category) -> bool:
    """Whether a call is ``a x + b`` for each channel, in integers an operation that takes in another one like it."""
    if category not in (Category.NEEDS_RANGE, Category.BATCH_NORM):
        return False
    kind = stock_kind(call.operation)
    return kind in _AFFINE_LAYERS or (kind in _WITH_CONSTANT and len(call.inputs) == 1)


def know_ranges(top: Level) -> None:
    """Note in the levels of a nest, the outermost given, the ranges of images of 0 to 255 and of what is made of them."""
    for call in top.graph.calls:
        if top.categories[call] is Category.PIXELS:
            top.known_ranges[call.outputs[0]] = 0.0, BRIGHTEST
    for key in top.graph.inputs:
        fronts = list(_fronts(top, key))
        if not any(_prepares_images(chain, *_affine(chain)) for _, _, chain in fronts):
            continue
        top.known_ranges[key] = 0.0, BRIGHTEST
        for level, end, chain in fronts:
            if (made := _range_of(*_affine(chain))) is not None:
                level.known_ranges[end] = made


def _fronts(top: Level, start: int) -> Iterator[tuple[Level, int, list[Call]]]:
    """The chains of affines behind an input, one for each way that it is prepared: level and key of what the last one makes.

    Where several read what an affine makes, it ends a chain, and each goes on with it.
    """
    waiting: list[tuple[Level, int, list[Call]]] = [(top, start, [])]
    while waiting:
        level, key, chain = waiting.pop()
        steps = [step for call in level.graph.consumers(key) if (step := _step(level, call, key, chain)) is not None]
        if chain and not (steps and level.graph.only_consumer(key)):
            yield level, key, chain
        waiting.extend(reversed(steps))


def _step(level: Level, call: Call, key: int, chain: list[Call]) -> tuple[Level, int, list[Call]] | None:
    """Level, key and chain behind a call that reads a tensor; None for one that is no front of the model any more.

    chain: the affines on the way to the tensor.
    """
    category = level.categories[call]
    if category is Category.NESTED_MODEL and not chain:
        inner = level.inner[call]
        place = list(nested_inputs(call)).index(key)
        return (inner, inner.graph.inputs[place], []) if len(inner.outer) == 1 else None
    if is_affine(call, category):
        return level, call.outputs[0], [*chain, call]
    if category in _MOVES and not chain and len(call.outputs) == 1:
        return level, call.outputs[0], chain
    return None


def _affine(chain: list[Call]) -> tuple[np.ndarray, np.ndarray]:
    """Factor and offset of each channel, of a chain of affines."""
    tensor, end = chain[0].tensors[0], chain[-1].outputs[0]
    sizes = (1,) * (len(tensor.shape) - 2) + (tensor.shape[-1] or 1,)
    ends = np.stack([np.zeros(sizes, np.float32), np.full(sizes, BRIGHTEST, np.float32)])
    values = {chain[0].inputs[0]: ends}
    run_calls(chain, [values], keep=(end,))
    dark, bright = to_numpy(values[end]).astype(np.float64).reshape(2, -1, sizes[-1])[:, 0]
    return (bright - dark) / BRIGHTEST, dark


def _prepares_images(chain: list[Call], factor: np.ndarray, offset: np.ndarray) -> bool:
    """Whether affines are one of the usual preparations of pixels: ``x / 255`` and kin, or of photographs' mean and spread."""
    first, _ = _affine(chain[:1])
    if any(np.allclose(first * divisor, 1.0, rtol=1e-3) for divisor in _BRINGS_TO_ONE):
        return True
    shape = chain[0].tensors[0].shape
    if len(shape) != 4 or shape[-1] not in (1, 3) or np.any(factor <= 0):
        return False
    mean, deviation = -offset / factor, 1 / factor
    usual = np.all((deviation >= _DEVIATIONS[0]) & (deviation <= _DEVIATIONS[1])) or np.allclose(factor, 1)
    return bool(usual and np.all((mean >= _MEANS[0]) & (mean <= _MEANS[1])))


def _range_of(factor: np.ndarray, offset: np.ndarray) -> tuple[float, float] | None:
    """Minimum and maximum of a range in which every pixel has a code of its own; None for several factors or offsets.

    255 steps where zero is one of them. Where zero lies halfway between two pixels (``x / 127.5 - 1``), every pixel would lie
    halfway between two codes: 254 steps, of which the middle is zero.
    """
    if np.ptp(factor) or np.ptp(offset) or factor[0] <= 0:
        return None
    low, high = float(offset[0]), float(offset[0] + BRIGHTEST * factor[0])
    pixel_of_zero = -low / float(factor[0])
    if not 0 <= pixel_of_zero <= BRIGHTEST or abs(pixel_of_zero - round(pixel_of_zero)) < 1e-3:
        return low, high
    return low - (high - low) / (BRIGHTEST - 1), high
