"""The quantizers once more, in NumPy float64 and straight from the papers. Shares no code with the package."""

import itertools

import numpy as np


def rows(weights, filter_axes):
    """[filters, elements]: the elements of each filter, in float64."""
    weights = np.asarray(weights, np.float64)
    kept = [axis % weights.ndim for axis in filter_axes]
    return np.moveaxis(weights, kept, range(len(kept))).reshape(
        int(np.prod([weights.shape[axis] for axis in kept])), -1
    )


def binary(filters):
    """BWN of [filters, elements]: signs and the mean magnitude of each row."""
    return np.where(filters >= 0, 1, -1), np.array([np.abs(row).sum() / row.size for row in filters])


def ternary(filters, factor=0.7, granularity="channel", scale_granularity="channel", centered=False):
    """TWN of [filters, elements]: codes, one alpha per row, one threshold per row."""
    codes, deltas = np.zeros(filters.shape, int), []
    for index, row in enumerate(filters):
        group = row if granularity == "channel" else filters.ravel()
        center = group.mean() if centered else 0.0
        delta = factor * np.mean([abs(value - center) for value in group])
        deltas.append(delta)
        for position, value in enumerate(row):
            if abs(value) > delta:
                codes[index, position] = 1 if value > 0 else -1
    alphas = []
    for index in range(len(filters)):
        where = codes[index] != 0 if scale_granularity == "channel" else codes != 0
        values = filters[index] if scale_granularity == "channel" else filters
        alphas.append(np.abs(values[where]).mean() if where.any() else 0.0)
    return codes, np.array(alphas), np.array(deltas)


def best_ternary_error(row):
    """Least ``||w - alpha t||^2`` over all 3^d patterns t and every alpha."""
    best = float(np.sum(row**2))
    for pattern in itertools.product((-1, 0, 1), repeat=row.size):
        pattern = np.array(pattern)
        if pattern.any():
            alpha = row @ pattern / (pattern @ pattern)
            best = min(best, float(np.sum((row - alpha * pattern) ** 2)))
    return best


def symmetric(filters, scale, bits):
    """Codes of [filters, elements] on the narrow symmetric grid with one scale per row."""
    limit = 2 ** (bits - 1) - 1
    return np.clip(np.round(filters / scale[:, None]), -limit, limit).astype(int)


def symmetric_error(row, scale, bits):
    """Sum of squared errors of one row."""
    limit = 2 ** (bits - 1) - 1
    return float(np.sum((row - scale * np.clip(np.round(row / scale), -limit, limit)) ** 2))


def affine(minimum, maximum, bits):
    """Scale and zero point of the grid over [minimum, maximum], widened to hold 0."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    minimum, maximum = min(minimum, 0.0), max(maximum, 0.0)
    scale = (maximum - minimum) / (high - low)
    return scale, int(np.clip(np.round(low - minimum / scale), low, high))


def probabilities(errors, probability, selection):
    """Probability of each unit to be drawn first: paper (to be quantized) or code (to stay float)."""
    errors = np.asarray(errors, np.float64)
    score = errors if selection == "keep_error" else 1.0 / (errors + 1e-7)
    weight = {
        "constant": lambda f: np.ones_like(f),
        "linear": lambda f: f,
        "softmax": lambda f: np.exp(f - f.max()),
        "sigmoid": lambda f: 1.0 / (1.0 + np.exp(-f)),
    }[probability](score)
    return weight / weight.sum()


def inclusion(weights, count):
    """Probability of each unit to be among `count` draws without replacement, by listing every sequence."""
    included = np.zeros(len(weights))
    for sequence in itertools.permutations(range(len(weights)), count):
        chance, left = 1.0, 1.0
        for unit in sequence:
            chance *= weights[unit] / left
            left -= weights[unit]
        included[list(sequence)] += chance
    return included


def relative_error(filters, quantized):
    """``||w - q||_1 / ||w||_1`` of each row, 0 where the row is 0."""
    norms = np.abs(filters).sum(1)
    return np.where(norms > 0, np.abs(filters - quantized).sum(1) / np.where(norms > 0, norms, 1.0), 0.0)
