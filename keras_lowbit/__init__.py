"""keras_lowbit: low-bit neural networks for phones, in Keras 3."""

from importlib.metadata import PackageNotFoundError, version

from keras_lowbit import bench, callbacks, data, deploy, layers, ops, plot, quantizers, recipes, schedules
from keras_lowbit.convert import (
    activation_ranges,
    calibrate,
    correct_biases,
    dequantize,
    equalize,
    fold_batch_norms,
    quantize_model,
    quantized_weights,
    reconstruct,
    reestimate_batch_norms,
    rescale_depthwise,
    round_weights,
    weight_errors,
    weight_histograms,
)
from keras_lowbit.deploy import export_litert, pack, storage, summary, verify
from keras_lowbit.distill import DistillConfig, Distiller, distill
from keras_lowbit.layers.find import freeze_ranges
from keras_lowbit.report import Report, report
from keras_lowbit.sensitivity import assign_bits, bit_choices, sensitivity

try:
    __version__ = version("keras_lowbit")
except PackageNotFoundError:  # run from a checkout that was not installed
    __version__ = "0.0.0+unknown"

__all__ = [
    "DistillConfig",
    "Distiller",
    "Report",
    "activation_ranges",
    "assign_bits",
    "bench",
    "bit_choices",
    "calibrate",
    "callbacks",
    "correct_biases",
    "data",
    "deploy",
    "dequantize",
    "distill",
    "equalize",
    "export_litert",
    "fold_batch_norms",
    "freeze_ranges",
    "layers",
    "ops",
    "pack",
    "plot",
    "quantize_model",
    "quantized_weights",
    "quantizers",
    "recipes",
    "reconstruct",
    "reestimate_batch_norms",
    "report",
    "rescale_depthwise",
    "round_weights",
    "schedules",
    "sensitivity",
    "storage",
    "summary",
    "verify",
    "weight_errors",
    "weight_histograms",
]
