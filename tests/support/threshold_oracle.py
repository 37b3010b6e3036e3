"""FAT, LSQ and TQT once more, in NumPy float64 and straight from the papers. Shares no code with the package.

Gradients are those of a smooth surrogate: the residuals of both roundings are frozen, and so is which values are clipped
(on the rounded value, an edge code counts as inside); then the function is differentiated.
"""

import numpy as np


def symmetric(x, threshold, bits, signed=True, lowest=None):
    """On-grid values with ``q`` levels a side; lowest: of the codes, -q by default."""
    q = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    low = (-q if signed else 0) if lowest is None else lowest
    scale = threshold / q
    return np.clip(np.round(x / scale), low, q) * scale


def symmetric_surrogate(x, threshold, bits, signed=True):
    """A smooth function of (x, threshold) that has the value of the grid at the point."""
    q = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    low, codes = -q if signed else 0, np.round(x * q / threshold)
    residual = codes - x * q / threshold

    def smooth(x, threshold):
        free = x * q / threshold + residual
        return np.where(codes < low, low, np.where(codes > q, q, free)) * threshold / q

    return smooth


def ends(t_left, t_right, a_left, a_width, left_limits=(-0.2, 0.4), limits=(0.5, 1.0)):
    """L and W of the asymmetric form, with the clamp L <= 0 <= L + W."""
    t_left, t_right = min(t_left, 0.0), max(t_right, 0.0)
    size = t_right - t_left
    left = min(t_left + np.clip(a_left, left_limits[0] if t_left < 0 else 0.0, left_limits[1]) * size, 0.0)
    width = np.clip(a_width, *limits) * size
    return left, max(width, -left)


def asymmetric(x, left, width, bits):
    """On-grid values, scale and z of the published code (its 1e-7 left out)."""
    k = 2**bits - 1
    scale = width / k
    z = np.round(left / scale)
    return (np.clip(np.round(x / scale) - z, 0, k) + z) * scale, scale, z


def asymmetric_surrogate(x, left, width, bits):
    """As `symmetric_surrogate`, a function of (x, left, width)."""
    k = 2**bits - 1
    codes = np.round(x * k / width) - np.round(left * k / width)
    residual_x = np.round(x * k / width) - x * k / width
    residual_z = np.round(left * k / width) - left * k / width

    def smooth(x, left, width):
        z = left * k / width + residual_z
        free = x * k / width + residual_x - z
        return (np.where(codes < 0, 0, np.where(codes > k, k, free)) + z) * width / k

    return smooth


def derivative(function, arguments, index, step=1e-7):
    """Central difference of a function, value by value, with respect to one argument."""
    up, down = list(arguments), list(arguments)
    up[index], down[index] = arguments[index] + step, arguments[index] - step
    return (function(*up) - function(*down)) / (2 * step)


def lsq(x, step, bits, signed=True, narrow=True):
    """Esser et al. eq. 1 to 3: values, d value / d step."""
    high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    low = (-high if narrow else -high - 1) if signed else 0
    v = x / step
    inside = (np.round(v) >= low) & (np.round(v) <= high)
    slope = np.where(inside, np.round(v) - v, np.where(v < 0, low, high))
    return np.clip(np.round(v), low, high) * step, slope


def tqt_step(threshold, bits, signed=True):
    """``2^ceil(log2 T) / 2^(bits-1)``, or ``/ 2^bits`` unsigned."""
    return 2.0 ** np.ceil(np.log2(threshold)) / 2.0 ** (bits - 1 if signed else bits)
