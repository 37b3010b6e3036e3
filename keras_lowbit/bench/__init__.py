"""Measurements: latency of .tflite files, and of packed weights against int8 on this machine."""

from keras_lowbit.bench.latency import Latency, LatencyReport, latency

__all__ = ["Latency", "LatencyReport", "latency"]
