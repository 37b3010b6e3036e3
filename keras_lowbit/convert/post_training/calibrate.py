"""calibrate: activation ranges from data, without training."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_lowbit.arguments import check_real
from keras_lowbit.convert.post_training.input_checks import (
    FeatureSpans,
    input_hosts,
    lost_features,
    warn_of_other_scale,
)
from keras_lowbit.convert.post_training.narrow_means import widened_means
from keras_lowbit.convert.post_training.observers import make_observer
from keras_lowbit.data import Batches
from keras_lowbit.keras_graph.calls import as_taken, find_layers, layers_of
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import KeepFloat
from keras_lowbit.layers.find import hosts
from keras_lowbit.layers.host import QuantizerHost
from keras_lowbit.layers.kernels import quantized_layers
from keras_lowbit.quantizers.base import require_choice
from keras_lowbit.quantizers.former import former_arguments


@former_arguments(method="calibration={}")
def calibrate(
    model: keras.Model,
    data: Any,
    *,
    batch_size: int = 32,
    steps: int | None = None,
    calibration: str = "max",
    percentile: float = 99.99,
    verbose: int | bool = 1,
) -> dict[str, tuple[float, float]]:
    """Set every activation range from data: weights quantized, activations float while it looks.

    Ranges known before are replaced, frozen ones included; `fit` goes on from the new ones. Trained thresholds
    (`quantizers.AdjustableThreshold`) start afresh, those of weights too. Runs in inference mode. If it fails nothing changes.

    model: quantized, or built from the drop-in layers; its ranges are changed in place.
    data: array [n, ...], list or dict of arrays, tf.data.Dataset, PyDataset or generator; labels are dropped.
    batch_size: for arrays.   steps: batches to look at, all by default (an endless generator needs it).
    calibration: "max" (extremes), "percentile" (cuts ``100 - percentile`` percent off each end), "mse" (least squared error).
    verbose: 1 shows a progress bar on a terminal or in a notebook, 0 nothing.
    percentile: in (0, 100], for calibration="percentile".
    Returns path of the range -> (minimum, maximum), in the units of the tensor.
    Warns of data that lie far outside what the first layers expect, by their batch norm, Normalization or Rescaling, and of
    features that vary by less than a step or two of their input's range.
    Raises ValueError for a model without ranges, an unknown calibration, empty data, or NaN activations (naming the range).

    >>> ranges = klb.calibrate(quantized, images, verbose=0)
    """
    require_choice("calibrate", "calibration", calibration, ("max", "percentile", "mse"))
    check_real(
        "calibrate", "percentile", percentile, "in (50, 100], usual is 99.99", lambda value: 50.0 < value <= 100.0
    )
    ranges = activation_hosts(model)
    if not ranges and not find_layers(model, KeepFloat):
        raise ValueError(
            f"{model.name!r} has no activation ranges to calibrate. Quantize it with a recipe whose activations are not "
            "None, or put keras_lowbit.layers.QuantActivation where ranges belong."
        )
    observers = {
        path: make_observer(calibration, int(host.quantizer.bits), percentile) for path, host in ranges.items()
    }
    inputs = {path: (name, FeatureSpans()) for path, name in _input_ranges(model, ranges)}
    with _tuning_started(model):  # first: the activations are those of weights with thresholds at their start
        spans = {path: spans for path, (_, spans) in inputs.items()}
        count = watch_batches(model, Batches(data, batch_size, steps, verbose), ranges, observers, spans)
        found = {path: observers[path].range() for path in ranges}
        for path, (low, high) in found.items():
            if low > high:
                raise ValueError(
                    f"The range {path!r} saw no values: nothing in the model calls its layer. Remove the layer."
                )
    found = widened_means(model, found)
    for path, host in ranges.items():
        for variable, value in _range_values(host, *found[path], count):
            variable.assign(value)
    for path, (name, seen) in inputs.items():
        if said := lost_features(name, seen, *found[path], bits=int(ranges[path].quantizer.bits)):
            warnings.warn(said, stacklevel=3)
    return found


def _input_ranges(model: keras.Model, ranges: dict[str, QuantizerHost]) -> Iterator[tuple[str, str]]:
    """Path of the range behind each input that has one, and the input's name."""
    names = input_hosts(model)
    return ((path, names[id(host)]) for path, host in ranges.items() if id(host) in names)


@contextlib.contextmanager
def _tuning_started(model: keras.Model) -> Iterator[None]:
    """Trained thresholds of weights, and of ranges that the arguments fix, start afresh, but for a failure inside."""
    starts = list(_tuning_starts(model))
    before = [to_numpy(variable) for variable, _ in starts]
    try:
        for variable, value in starts:
            variable.assign(value)
        yield
    except BaseException:
        for (variable, _), value in zip(starts, before, strict=True):
            variable.assign(value)
        raise


def _tuning_starts(model: keras.Model) -> Iterator[tuple[Any, Any]]:
    for layer in quantized_layers(model).values():
        for host, weights in ((layer.kernel_host, layer.kernel), (layer.bias_host, layer.bias)):
            if host is not None and weights is not None:
                values = host.quantizer.tuning_start(weights, host.filter_axes)
                yield from ((host.state[name], value) for name, value in values.items())
    for _, host in hosts(model):
        if host.activation_range is not None and host.activation_range.has_static_range:
            yield from _range_values(host, 0.0, 0.0, 0)


def _range_values(host: QuantizerHost, minimum: float, maximum: float, count: int) -> Iterator[tuple[Any, Any]]:
    """Variables of a range, and their values once `count` batches lay in [minimum, maximum]."""
    if host.activation_range is not None:
        values = host.activation_range.state_from_min_max(minimum, maximum, count)
        yield from ((host.state[name], value) for name, value in values.items())


def activation_hosts(model: keras.Model) -> dict[str, QuantizerHost]:
    """Path ("backbone/conv1_range/output_quantizer") -> state layer of every activation range that data decide."""
    return {
        path: host
        for path, host in layers_of(model)
        if isinstance(host, QuantizerHost) and host.activation_range and not host.activation_range.has_static_range
    }


def watch_batches(
    model: keras.Model,
    batches: Batches,
    ranges: dict[str, QuantizerHost],
    observers: dict[str, Any],
    spans: dict[str, FeatureSpans],
) -> int:
    """Show the activations at every range to its observer (what has `see`); how many batches there were."""
    count = 0
    try:
        for batch in batches.with_progress():
            if count == 0:
                warn_of_other_scale(model, batch, list(ranges.values()))
                for path, host in ranges.items():
                    host.watch = _watcher(path, observers[path], spans.get(path))
            model(as_taken(model, batch), training=False)
            count += 1
    finally:
        for host in ranges.values():
            host.watch = None
    return count


def _watcher(path: str, observer: Any, spans: FeatureSpans | None) -> Callable[[Any], None]:
    def watch(real: Any) -> None:
        values = keras.ops.convert_to_numpy(keras.ops.cast(real, "float32"))
        if not np.isfinite(values).all():
            raise ValueError(
                f"The activations at range {path!r} hold NaN or infinite values. Check the weights of the layers before "
                "it and the scale of the inputs."
            )
        observer.see(values)
        if spans is not None:
            spans.see(values)

    return watch
