"""Clustered weights once more, in NumPy float64 with plain loops, from the description of the two algorithms."""

import itertools

import numpy as np


def clusters(shape, size, groups="kernels"):
    """Index of every cluster of a kernel [taps..., inputs, filters], filter by filter; selects [taps..., n] or [n]."""
    *taps, inputs, filters = shape
    for output in range(filters):
        for start in range(0, inputs, size):
            along = slice(start, start + size)
            if groups == "kernels":
                yield (*(slice(None) for _ in taps), along, output)
            else:
                for place in np.ndindex(*taps):
                    yield (*place, along, output)


def slice_errors(values):
    """Algorithm 2: root mean square and squared error for every number k of weights kept."""
    largest = sorted(np.abs(values), reverse=True)
    found = []
    for k in range(1, len(largest) + 1):
        rms = np.sqrt(np.sum(np.square(largest[:k])) / k)
        kept = np.array([rms if index < k else 0.0 for index in range(len(largest))])
        found.append((rms, float(np.sum((largest - kept) ** 2))))
    return found


def slice_rms(values):
    """The root mean square at the k of least error."""
    return min(slice_errors(values), key=lambda pair: pair[1])[0]


def rms(cluster, threshold):
    """Algorithm 1 of one cluster [taps..., n]: scale and codes."""
    cluster = np.asarray(cluster, np.float64)
    values = sorted((slice_rms(cluster[..., index].ravel()) for index in range(cluster.shape[-1])), reverse=True)
    best = None
    for t in range(1, len(values) + 1):
        scale = np.sqrt(np.sum(np.square(values[:t])) / t)
        codes = np.sign(cluster) * (np.abs(cluster) > threshold * scale)
        error = np.sum((cluster - scale * codes) ** 2)
        if best is None or error < best[0]:
            best = (error, scale, codes)
    return best[1], best[2]


def optimal(cluster):
    """Least squares over every number of largest weights kept: scale and codes."""
    cluster = np.asarray(cluster, np.float64)
    order = np.argsort(-np.abs(cluster).ravel(), kind="stable")
    best = (float(np.sum(cluster**2)), 0.0, np.zeros_like(cluster))
    for k in range(1, order.size + 1):
        kept = np.zeros(cluster.size, bool)
        kept[order[:k]] = True
        scale = np.abs(cluster).ravel()[kept].mean()
        codes = np.sign(cluster) * kept.reshape(cluster.shape)
        error = float(np.sum((cluster - scale * codes) ** 2))
        if error < best[0]:
            best = (error, scale, codes)
    return best[1], best[2]


def ternary(kernel, size, mode, groups="kernels"):
    """Codes in the kernel's layout and real scales in the order of `clusters`."""
    codes, scales = np.zeros(kernel.shape), []
    for where in clusters(kernel.shape, size, groups):
        found = optimal(kernel[where]) if mode == "mse" else rms(kernel[where], 1.0 if "literal" in mode else 0.5)
        scales.append(found[0])
        codes[where] = found[1]
    return codes, np.array(scales)


def rounded(scales, bits=8):
    """Whole scales and the exponent of a group of real scales: unsigned, bits - 1 magnitude bits."""
    if not np.max(scales):
        return np.zeros(len(scales), int), 0
    exponent = int(np.floor(np.log2(np.max(scales)))) - (bits - 2)
    return np.clip(np.round(scales / 2.0**exponent), 0, 2 ** (bits - 1) - 1).astype(int), exponent


def best_pattern_error(cluster):
    """Least ``|w - a t|^2`` over all 3^n patterns and every scale."""
    flat = np.asarray(cluster, np.float64).ravel()
    best = float(np.sum(flat**2))
    for pattern in itertools.product((-1, 0, 1), repeat=flat.size):
        pattern = np.array(pattern)
        if pattern.any():
            scale = max(flat @ pattern / (pattern @ pattern), 0.0)
            best = min(best, float(np.sum((flat - scale * pattern) ** 2)))
    return best


def best_int8_error(kernel, size, limit):
    """Least squared error of ``code * I * 2^E`` with ``|code| <= limit`` and ``|code * I| <= 127``, by trying everything.

    E is one number a filter, tried over six octaves; I any of 1 .. 127 for each cluster.
    """
    total = 0.0
    for output in range(kernel.shape[-1]):
        filters = kernel[..., output : output + 1].astype(np.float64)
        top = np.ceil(np.log2(np.abs(filters).max() / 127))
        options = []
        for exponent in np.arange(top - 3, top + 3):
            error = 0.0
            for where in clusters(filters.shape, size):
                steps = np.abs(filters[where]).ravel() / 2.0**exponent
                tries = [np.minimum(np.round(steps / i), min(limit, 127 // i)) * i for i in range(1, 128)]
                error += min(float(np.sum((steps - on_grid) ** 2)) for on_grid in tries)
            options.append(error * 4.0**exponent)
        total += min(options)
    return total
