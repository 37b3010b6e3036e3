"""Distillation: a student's declared variables (FAT's thresholds) learn the logits of a teacher, without labels."""

from keras_lowbit.distill.config import DistillConfig
from keras_lowbit.distill.distiller import Distiller, biases, thresholds
from keras_lowbit.distill.logits import logits_model
from keras_lowbit.distill.train import distill

__all__ = ["DistillConfig", "Distiller", "biases", "distill", "logits_model", "thresholds"]
