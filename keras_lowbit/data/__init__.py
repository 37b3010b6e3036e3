"""Data in, model-ready batches out: what users hand over as data."""

from keras_lowbit.data.batching import Batches, batch_count, batches, labelled_batches, samples_in, take

__all__ = ["Batches", "batch_count", "batches", "labelled_batches", "samples_in", "take"]
