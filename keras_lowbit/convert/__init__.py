"""Functions that take a whole Keras model: quantizing it, and preparing, calibrating and measuring it."""

from keras_lowbit.callbacks.batch_norms import reestimate_batch_norms
from keras_lowbit.convert.post_training.calibrate import calibrate
from keras_lowbit.convert.post_training.correct_biases import correct_biases
from keras_lowbit.convert.post_training.equalize import equalize
from keras_lowbit.convert.post_training.fold_batch_norms import fold_batch_norms, fold_report
from keras_lowbit.convert.post_training.range_use import ActivationRanges, RangeUse, activation_ranges
from keras_lowbit.convert.post_training.reconstruction.reconstruct import reconstruct
from keras_lowbit.convert.post_training.rescale_depthwise import rescale_depthwise
from keras_lowbit.convert.post_training.round_weights import round_weights
from keras_lowbit.convert.quantize_model import quantize_model
from keras_lowbit.convert.reports.conversion import ConversionReport, LayerReport
from keras_lowbit.convert.reports.weight_errors import LayerError, WeightErrors, weight_errors
from keras_lowbit.convert.reports.weight_histograms import WeightHistogram, WeightHistograms, weight_histograms
from keras_lowbit.convert.weights import dequantize, quantized_weights

__all__ = [
    "ActivationRanges",
    "ConversionReport",
    "LayerError",
    "LayerReport",
    "RangeUse",
    "WeightErrors",
    "WeightHistogram",
    "WeightHistograms",
    "activation_ranges",
    "calibrate",
    "correct_biases",
    "dequantize",
    "equalize",
    "fold_batch_norms",
    "fold_report",
    "quantize_model",
    "quantized_weights",
    "reconstruct",
    "reestimate_batch_norms",
    "rescale_depthwise",
    "round_weights",
    "weight_errors",
    "weight_histograms",
]
