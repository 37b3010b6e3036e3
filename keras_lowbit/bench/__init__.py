"""Measurements: latency of .tflite files beside their peers, and of packed weights against int8 on this machine."""

from keras_lowbit.bench.latency import Latency, LatencyReport, latency
from keras_lowbit.bench.peers import write_peers

__all__ = ["Latency", "LatencyReport", "latency", "write_peers"]
