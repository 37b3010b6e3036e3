"""round_weights: codes chosen so that a layer's outputs, not its weights, come out nearest."""

import zlib
from typing import Any

import keras
import numpy as np

from keras_lowbit.arguments import check_whole
from keras_lowbit.convert.analysis.operations import stock_kind
from keras_lowbit.convert.post_training.correct_biases import Wanted, corrected_bias
from keras_lowbit.convert.post_training.layer_steps import (
    Step,
    candidates,
    guarded_steps,
    layer_by_layer,
    relative_errors,
)
from keras_lowbit.convert.reports.conversion import ConversionReport, LayerReport, left_if
from keras_lowbit.data import Batches
from keras_lowbit.guard import Samples
from keras_lowbit.keras_graph.calls import Call, calls_of
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.numerics.kernel_layouts import LAYOUTS

# Input vectors that the second moments of a layer are taken over: 30 for each dimension, within these limits.
_ROWS = (4_000, 20_000)
_SAMPLES = 8  # of each batch that they come from, at least: positions of one image hang together
_DAMPING = 0.01  # of the mean second moment, added to the diagonal


def round_weights(
    quantized: keras.Model,
    reference: keras.Model,
    data: Any,
    *,
    batch_size: int = 16,
    steps: int | None = None,
    seed: int = 0,
    validation_data: Any = None,
    check: bool = True,
    verbose: int | bool = 1,
) -> ConversionReport:
    """Round the weights of a calibrated model anew, layer by layer, for the least error of each layer's output.

    Nearest rounding treats every weight alone. Here the weights of a filter are rounded one after the other, those on the
    strongest inputs first, and the error of each is made up for by the ones still free, as far as the inputs correlate:
    ``min E |x w - x' s q|^2``, x the inputs of the layer in the float model, x' those in the quantized one, greedily (GPTQ),
    then by three sweeps of coordinate descent. So a layer makes up for the errors before it, too. Then the bias is
    corrected as `correct_biases` does. Scales stay; the new kernel encodes to the new codes. It is for 4 bits and
    below; at 8 bits there is little to gain.

    Every layer is judged on samples that it was not rounded by, by the error behind its activation: one whose error does not
    fall there keeps kernel and bias. If the outputs of the whole model have moved away from the float model's, all layers
    stay as they were, with a warning.

    quantized: what `quantize_model` made of `reference`, calibrated; changed in place. Do not calibrate it again: that may
    look for the scales of the new kernels anew.
    reference: the float model, folded, with layers of the same paths.
    data, batch_size, steps, verbose: as for `calibrate`; 100 or more images, all in memory at once, layer by layer.
    seed: of the choice of 4,000 to 20,000 input vectors for each layer.
    validation_data: samples that judge, in the forms of `data`; by default every fourth of `data` is held back for that (256 at
    most; a single sample judges itself).   check=False: all data round and nothing is judged.
    Returns a report: "rounded" with the error before and after (relative to the output), or "left" and why; its `verdict` is on
    the outputs of the model.
    Works for Conv1D, Conv2D, DepthwiseConv2D and Dense kernels on symmetric even grids (Uniform, AdjustableThreshold).
    Raises ValueError if no layer of the two models matches.
    Frantar et al. 2022, arXiv:2210.17323 (GPTQ), with the order of activations; bias as Nagel et al., arXiv:1906.04721.

    >>> four_bits, report = klb.quantize_model(folded, "fat-w4")
    >>> ranges = klb.calibrate(four_bits, images, verbose=0)
    >>> report = klb.round_weights(four_bits, folded, images, verbose=0)
    """
    check_whole("round_weights", "seed", seed, low=0)
    samples = Samples(Batches(data, batch_size, steps, verbose), validation_data, check)
    remembered: dict[str, tuple[Wanted, np.ndarray | None]] = {}  # with the input vectors of the float model
    rows: list[LayerReport] = []

    def vectors(step: Step) -> np.ndarray | None:
        rng = np.random.default_rng((seed, zlib.crc32(step.call.path.encode())))  # the same choice in both models
        return input_vectors(step.call.operation, step.inputs, rng)

    def remember(step: Step) -> None:
        remembered[step.call.path] = Wanted.of(step), vectors(step)

    def change(step: Step) -> None:
        wanted, real = remembered.pop(step.call.path)
        rows.append(_judged_layer(step, wanted, vectors(step), real))

    def all_layers() -> None:
        layer_by_layer(quantized, reference, samples, remember, change, verbose)

    verdict = guarded_steps("round_weights", quantized, reference, samples, all_layers)
    graphs = (calls_of(model, inline=True) for model in (quantized, reference))
    left = {call.path: LayerReport.of(call, "left", why) for call, why in candidates(*graphs) if why}
    found = (*left_if(not verdict.kept, rows), *left.values())
    return ConversionReport(quantized.name, "round_weights", found, verdict)


def _judged_layer(step: Step, wanted: Wanted, seen: np.ndarray | None, real: np.ndarray | None) -> LayerReport:
    """Round a layer and correct its bias, and take both back if the error behind its activation did not fall."""
    layer = step.call.operation
    weights = [(variable, to_numpy(variable)) for variable in (layer.kernel, layer.bias)]

    def error() -> float | None:
        sums = step.judging_sums()
        return float(relative_errors(wanted.judging, step.activated(sums)).mean()) if len(sums) else None

    before = error()
    row = _round_layer(step.call, seen, real)
    corrected_bias(step, wanted)
    after = error()
    if row.outcome == "left" or before is None or after is None or after < before:
        return row
    for variable, value in weights:
        variable.assign(value)
    detail = f"its error on held-back samples would go from {before:.3g} to {after:.3g}"
    return LayerReport.of(step.call, "left", detail)


def _round_layer(call: Call, seen: np.ndarray | None, real: np.ndarray | None) -> LayerReport:
    """Give a layer its new kernel. seen, real: its inputs in the quantized and in the float model, the same samples."""
    layer, old = call.operation, to_numpy(call.operation.kernel)
    if seen is None or real is None:
        kind = call.kind if seen is None else "half of a separable convolution"
        return LayerReport.of(call, "left", f"{kind} is not covered")
    layout, encoded = LAYOUTS[stock_kind(layer)], layer.kernel_host.encode(layer.kernel)
    scale = np.broadcast_to(keras.ops.convert_to_numpy(encoded.scale), old.shape).astype(np.float64)
    weights, scales = (layout.grouped(value) for value in (old.astype(np.float64), scale))
    limit = 2 ** (int(layer.kernel_quantizer.bits) - 1) - 1
    moments, target = least_squares_target(weights, seen, real)
    nearest = np.clip(np.round(weights / np.where(scales > 0, scales, 1.0)), -limit, limit)
    kept = _largest(weights)
    fixed = np.where(kept, nearest, 0)
    greedy = gptq_round(target, scales, moments, limit, fixed)
    codes = coordinate_descent(target, scales, moments, limit, greedy, fixed)
    layer.kernel.assign(layout.ungrouped(np.where(kept, weights, codes * scales), old.shape))
    found = keras.ops.convert_to_numpy(layer.kernel_host.encode(layer.kernel).codes).astype(np.float64)
    if not np.array_equal(layout.grouped(found), codes):
        layer.kernel.assign(old)
        return LayerReport.of(call, "left", f"{layer.kernel_quantizer!r} is no even grid set by max |w|")
    errors = [output_error(target, c * scales, moments) for c in (nearest, codes)]
    return LayerReport.of(call, "rounded", f"relative output error {errors[0]:.3g} -> {errors[1]:.3g}")


def least_squares_target(weights: np.ndarray, seen: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Second moments C of the inputs seen, and the float weights that make of them what `weights` make of the real ones.

    ``C = E[seen seen^T]``, target ``(C + d)^-1 (E[seen real^T] + d) w``, damped by d: with equal inputs, w itself.
    Not centred, though the bias makes up for the mean: on MobileNetV2 that was better.

    weights: [groups, inputs, outputs].   seen, real: [groups, vectors, inputs], of the quantized and the float model.
    Returns moments [groups, inputs, inputs] and target [groups, inputs, outputs], float64.
    """
    moments, mixed = (
        np.matmul(seen.transpose(0, 2, 1), part).astype(np.float64) / seen.shape[1] for part in (seen, real)
    )
    damping = _damping(moments)
    return moments, np.linalg.solve(moments + damping, np.matmul(mixed + damping, weights))


def _damping(moments: np.ndarray) -> np.ndarray:
    """A share of the mean second moment on the diagonal, [groups, inputs, inputs]."""
    mean = np.einsum("gii->gi", moments).mean(1)
    return np.eye(moments.shape[1]) * np.maximum(_DAMPING * mean, 1e-12)[:, None, None]


def gptq_round(
    weights: np.ndarray, scales: np.ndarray, moments: np.ndarray, limit: int, fixed: np.ndarray
) -> np.ndarray:
    """Codes in [-limit, limit] by greedy error compensation, the weights on the strongest inputs first.

    The error of each rounded weight is spread over those not rounded yet, as far as their inputs correlate.

    weights, scales: [groups, inputs, outputs], float64.   moments: [groups, inputs, inputs], ``E[x x^T]``.
    fixed: [groups, inputs, outputs], codes that are given beforehand, 0 where there is none: the largest weight of a
    filter takes the end of the grid whatever the error, since it sets the scale of quantizers that go by max |w|.
    Returns codes [groups, inputs, outputs], float64.
    """
    groups, count, _ = weights.shape
    diagonal = np.einsum("gii->gi", moments)
    order = np.argsort(-diagonal, axis=1, kind="stable")  # [groups, inputs]
    rows = np.arange(groups)[:, None]
    sorted_moments = (moments + _damping(moments))[rows[:, :, None], order[:, :, None], order[:, None, :]]
    upper = np.linalg.cholesky(np.linalg.inv(sorted_moments)).transpose(0, 2, 1)
    left, steps, ends = (value[rows, order].copy() for value in (weights, scales, fixed))
    steps = np.where(steps > 0, steps, 1.0)
    codes = np.empty_like(left)
    for i in range(count):
        nearest = np.clip(np.round(left[:, i] / steps[:, i]), -limit, limit)
        codes[:, i] = np.where(ends[:, i] != 0, ends[:, i], nearest)
        error = (left[:, i] - codes[:, i] * steps[:, i]) / upper[:, i, i, None]  # [groups, outputs]
        left[:, i + 1 :] -= upper[:, i, i + 1 :, None] * error[:, None, :]
    result = np.empty_like(codes)
    result[rows, order] = codes
    return result


def coordinate_descent(
    weights: np.ndarray,
    scales: np.ndarray,
    moments: np.ndarray,
    limit: int,
    codes: np.ndarray,
    fixed: np.ndarray,
    sweeps: int = 3,
) -> np.ndarray:
    """Codes after some sweeps of coordinate descent: each in turn takes its best value while the others stay.

    The error never grows. codes: to start from, [groups, inputs, outputs]; the other arguments and the result as for
    `gptq_round`.
    """
    codes, steps = codes.copy(), np.where(scales > 0, scales, 1.0)
    slopes = np.matmul(moments, weights - codes * scales)  # [groups, inputs, outputs]
    diagonal = np.einsum("gii->gi", moments)
    for _ in range(sweeps):
        for i in np.argsort(-diagonal.mean(axis=0)):
            curvature = np.maximum(diagonal[:, i, None], 1e-12)
            best = np.clip(np.round(codes[:, i] + slopes[:, i] / (curvature * steps[:, i])), -limit, limit)
            best = np.where((fixed[:, i] != 0) | (diagonal[:, i, None] <= 0), codes[:, i], best)
            change = (best - codes[:, i]) * scales[:, i]  # [groups, outputs]
            if change.any():
                codes[:, i] = best
                slopes -= moments[:, :, i, None] * change[:, None, :]
    return codes


def output_error(weights: np.ndarray, on_grid: np.ndarray, moments: np.ndarray) -> float:
    """``sqrt(E |x (w - q)|^2 / E |x w|^2)`` over all filters. weights, on_grid: [groups, inputs, outputs]."""
    energies = [np.einsum("gio,gij,gjo->", part, moments, part, optimize=True) for part in (weights - on_grid, weights)]
    return float(np.sqrt(max(energies[0], 0.0) / max(energies[1], 1e-30)))


def input_vectors(layer: Any, inputs: list[Any], rng: np.random.Generator) -> np.ndarray | None:
    """What the filters of a layer are multiplied with, [groups, vectors, inputs], float32; None for other layers."""
    kind = stock_kind(layer)
    if kind not in ("Dense", "Conv1D", "Conv2D", "DepthwiseConv2D") or getattr(layer, "groups", 1) > 1:
        return None
    dimensions = LAYOUTS[kind].grouped(to_numpy(layer.kernel)).shape[1]
    share = -(-min(max(30 * dimensions, _ROWS[0]), _ROWS[1]) // len(inputs))
    vectors = np.concatenate([_some(_patches(layer, kind, batch, 4 * share), share, rng) for batch in inputs])
    if LAYOUTS[kind].is_depthwise:
        channels = inputs[0].shape[-1]
        return vectors.reshape(len(vectors), -1, channels).transpose(2, 0, 1)
    return vectors[None]


def _patches(layer: Any, kind: str, batch: Any, enough: int) -> np.ndarray:
    """Rows [vectors, window * channels] of the first samples of one batch: of all unless some are `enough`."""
    if kind != "Dense":
        outputs = layer.compute_output_shape(batch.shape)
        batch = batch[: max(_SAMPLES, -(-enough // int(np.prod(outputs[1:-1]))))]
    if kind == "Dense" or all(size == 1 for size in (*layer.kernel_size, *layer.strides)):
        return keras.ops.convert_to_numpy(keras.ops.reshape(batch, (-1, batch.shape[-1])))
    windows: Any = batch
    sizes: tuple[Any, ...] = (layer.kernel_size, layer.strides, layer.dilation_rate)
    if kind == "Conv1D":
        if layer.padding == "causal":
            windows = keras.ops.pad(windows, [[0, 0], [layer.dilation_rate[0] * (layer.kernel_size[0] - 1), 0], [0, 0]])
        windows, sizes = keras.ops.expand_dims(windows, 1), tuple((1, size[0]) for size in sizes)
    padding = "same" if layer.padding == "same" else "valid"
    found = keras.ops.image.extract_patches(
        windows, sizes[0], strides=sizes[1], dilation_rate=sizes[2], padding=padding, data_format="channels_last"
    )
    return keras.ops.convert_to_numpy(keras.ops.reshape(found, (-1, found.shape[-1])))


def _some(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= count else rows[rng.choice(len(rows), count, replace=False)]


def _largest(weights: np.ndarray) -> np.ndarray:
    """True at the first largest |w| of every filter of [groups, inputs, outputs]."""
    return np.arange(weights.shape[1])[None, :, None] == np.abs(weights).argmax(axis=1)[:, None, :]
