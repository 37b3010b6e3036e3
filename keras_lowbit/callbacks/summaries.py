"""QuantizationSummaries: what a training does to codes and ranges, as event files for TensorBoard."""

import os
from typing import Any

import keras
import numpy as np

from keras_lowbit.arguments import check_path, check_whole
from keras_lowbit.callbacks.codes import codes_of, flip_rate
from keras_lowbit.files import FilePath, name_of
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.activation_grid import activation_grid
from keras_lowbit.layers.find import hosts
from keras_lowbit.layers.kernels import kernel_codes, quantized_layers

_BUCKETS = 60  # of a histogram of float weights
_SHARED = ("ratio", "portion")  # state of quantizers that a schedule sets, alike in all layers
_CLASSES = {"scalars": 1, "histograms": 2}  # plugin of TensorBoard -> its data class: a number, a tensor


class QuantizationSummaries(keras.callbacks.Callback):
    """Writes to a folder, after every epoch, what quantization does to the model; `tensorboard --logdir FOLDER` shows it.

    Tags, PATH being that of a layer or range:

    * ``ranges/PATH/minimum``, ``/maximum``: the reals of the lowest and highest code of an activation range that has seen data;
    * ``ratio`` (SQ), ``portion`` (INQ): of the quantizers, the mean over the layers;
    * ``flips/PATH`` and ``flips``: share (0 to 1) of the codes that the epoch changed, in a layer and in all;
    * ``sparsity/PATH`` and ``sparsity``: share of the codes that stand for 0;
    * ``codes/PATH``: histogram of the codes, a bucket for each;
    * ``weights/PATH``: histogram of the float weights in steps of their scale, where the grid is the whole numbers;
    * ``epoch_NAME``: the logs of `fit`, such as ``epoch_loss``.

    folder: for the event files; made if need be. A training that goes on writes another file there, which continues the curves.
    every: epochs from one pair of histograms to the next.
    Works on every backend that trains; TensorFlow writes the files, TensorBoard itself is not needed for that.
    Raises OSError for a folder that cannot be made, ValueError for a model without quantized layers.

    >>> written = klb.callbacks.QuantizationSummaries("logs")
    >>> history = ternary.fit(images, labels, callbacks=[written], verbose=0)
    """

    def __init__(self, folder: FilePath, every: int = 1) -> None:
        super().__init__()
        check_path("QuantizationSummaries", folder)
        self.folder, self.every = name_of(folder), check_whole("QuantizationSummaries", "every", every)
        self._writer: Any = None
        self._codes: dict[str, np.ndarray] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Open a file; remember the codes."""
        import tensorflow as tf

        if not (layers := quantized_layers(self.model)):
            raise ValueError(
                f"Model {self.model.name!r} has no quantized layer to write about. Quantize it first: "
                "keras_lowbit.quantize_model(model), or use keras.callbacks.TensorBoard."
            )
        os.makedirs(self.folder, exist_ok=True)
        self._writer = tf.summary.create_file_writer(self.folder)
        self._codes = {path: codes_of(layer) for path, layer in layers.items()}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the tags of an epoch, whole, before the next begins."""
        with self._writer.as_default():
            for tag, value in self._scalars(logs or {}).items():
                _write("scalars", tag, value, epoch)
            if epoch % self.every == 0:
                for path, layer in quantized_layers(self.model).items():
                    codes, steps = _on_grid(layer)
                    _write("histograms", f"codes/{path}", _counted(codes), epoch)
                    _write("histograms", f"weights/{path}", _bucketed(steps), epoch)
        self._writer.flush()

    def on_train_end(self, logs: Any = None) -> None:
        """Close the file."""
        self._writer.close()

    def _scalars(self, logs: dict[str, Any]) -> dict[str, float]:
        """Tag -> number. The codes of this epoch's end are those that the next is compared with."""
        found = {f"epoch_{name}": float(value) for name, value in logs.items() if np.ndim(value) == 0}
        for path, host in hosts(self.model):
            if (grid := activation_grid(host)) is not None:
                found |= {f"ranges/{path}/minimum": grid.minimum, f"ranges/{path}/maximum": grid.maximum}
        for name in _SHARED:
            values = [float(to_numpy(host.state[name])) for _, host in hosts(self.model) if name in host.state]
            found |= {name: float(np.mean(values))} if values else {}
        layers = quantized_layers(self.model)
        before, self._codes = self._codes, {path: codes_of(layer) for path, layer in layers.items()}
        found["flips"] = flip_rate(list(before.values()), list(self._codes.values()))
        found |= {f"flips/{path}": flip_rate([before[path]], [codes]) for path, codes in self._codes.items()}
        zeros = {path: _zeros(layer) for path, layer in layers.items()}
        found["sparsity"] = float(np.mean(np.concatenate(list(zeros.values()))))
        return found | {f"sparsity/{path}": float(np.mean(values)) for path, values in zeros.items()}


def _zeros(layer: Any) -> np.ndarray:
    """[weights], whether the code stands for 0."""
    quantized = kernel_codes(layer)
    return (np.asarray(quantized.codes) == np.asarray(quantized.zero_point)).reshape(-1)


def _on_grid(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Codes of a kernel, and its float weights in steps of their scale, where those are numbers."""
    quantized, kernel = kernel_codes(layer), to_numpy(layer.kernel).astype(np.float64)
    scale = np.asarray(quantized.scale, np.float64)
    steps = np.divide(kernel, scale, out=np.zeros_like(kernel), where=scale > 0) + np.asarray(quantized.zero_point)
    return np.asarray(quantized.codes).reshape(-1), steps[np.isfinite(steps)]


def _counted(codes: np.ndarray) -> np.ndarray:
    """[codes that occur, 3]: left and right edge of each one's bucket, and how many weights have it."""
    found, counts = np.unique(codes, return_counts=True)
    return np.stack([found - 0.5, found + 0.5, counts], axis=1)


def _bucketed(values: np.ndarray) -> np.ndarray:
    """[buckets, 3] of equal width."""
    counts, edges = np.histogram(values, _BUCKETS)
    return np.stack([edges[:-1], edges[1:], counts], axis=1)


def _write(plugin: str, tag: str, value: Any, step: int) -> None:
    """One value for a plugin of TensorBoard, as that package's own functions would write it."""
    import tensorflow as tf

    about = tf.compat.v1.SummaryMetadata(
        plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name=plugin), data_class=_CLASSES[plugin]
    )
    kind = tf.float32 if plugin == "scalars" else tf.float64
    tf.summary.write(tag, tf.constant(value, kind), step, metadata=about)
