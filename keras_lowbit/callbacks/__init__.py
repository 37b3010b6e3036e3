"""Callbacks: they apply a schedule at epoch boundaries, through variables the quantizers declared.

A schedule here derives what it does from the epoch and from saved variables, in `on_epoch_begin`. So it works
before or after `keras.callbacks.BackupAndRestore` in the list, and a killed training resumes where it was. Conditions of that
callback: a backup an epoch, its default (with `save_freq` in batches Keras resumes inside an epoch, with other batches), and
`double_checkpoint=True`, which keeps the backup before. A kill while Keras writes its first backup, or between weights and
epoch, may still leave one that does not resume; `keras-lowbit train` writes one whole file for each epoch.
"""

from keras_lowbit.callbacks.batch_norms import ReestimateBatchNorms, reestimate_batch_norms
from keras_lowbit.callbacks.codes import flip_rate, weight_codes
from keras_lowbit.callbacks.cosine import CosineRestarts
from keras_lowbit.callbacks.optimizer import plain_learning_rate, reset_optimizer
from keras_lowbit.callbacks.oscillations import DampenOscillations, FreezeOscillations
from keras_lowbit.callbacks.partition import PartitionSchedule, freeze_portion
from keras_lowbit.callbacks.ranges import FreezeRanges
from keras_lowbit.callbacks.ratio import RatioSchedule
from keras_lowbit.callbacks.stages import StageCallback
from keras_lowbit.callbacks.summaries import QuantizationSummaries

__all__ = [
    "CosineRestarts",
    "DampenOscillations",
    "FreezeOscillations",
    "FreezeRanges",
    "PartitionSchedule",
    "QuantizationSummaries",
    "RatioSchedule",
    "ReestimateBatchNorms",
    "StageCallback",
    "flip_rate",
    "freeze_portion",
    "plain_learning_rate",
    "reestimate_batch_norms",
    "reset_optimizer",
    "weight_codes",
]
