"""The logits of a quantized model, some of it in float, against those of the float model."""

import dataclasses
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import keras
import numpy as np

from keras_lowbit.deploy.verification.noise import Noise
from keras_lowbit.distill.logits import logits_model
from keras_lowbit.guard import outputs_of
from keras_lowbit.keras_graph.calls import calls_of
from keras_lowbit.layers.host import only_quantizing


@dataclasses.dataclass(frozen=True)
class Score:
    """snr_db: signal-to-noise ratio of all logits, in dB.   agreement: share of samples with the float model's top-1.

    accuracy: share with the label's class; None without labels.
    """

    snr_db: float
    agreement: float
    accuracy: float | None = None


class Logits:
    """Runs a quantized model on data that stay in memory, and scores its first output against the float model's logits.

    labels: class numbers, one for each sample, or None.   ValueError where the two models' outputs differ in shape.
    """

    def __init__(self, quantized: keras.Model, reference: keras.Model, batches: list[Any], labels: Any) -> None:
        self.batches = batches
        self.model = logits_model(quantized)
        self.graph = calls_of(self.model, inline=True)
        self.wanted = outputs_of(logits_model(reference), batches)
        self.labels = None if labels is None else np.asarray(labels).reshape(-1)
        if self.labels is not None and len(self.labels) != len(self.wanted[0]):
            raise ValueError(f"{len(self.labels)} labels for {len(self.wanted[0])} samples. Give one for each.")
        found = [array.shape for array in outputs_of(self.model, batches[:1], self.graph)]
        wanted = [(found[0][0], *array.shape[1:]) for array in self.wanted]
        if found != wanted:
            raise ValueError(
                f"The quantized model gives outputs of shapes {found}, the reference {wanted}. Give the float model "
                "that it was made of."
            )

    def score(self, hosts: Iterable[Any] | None = None) -> Score:
        """With these quantizers alone at work; None: all of them."""
        with nullcontext() if hosts is None else only_quantizing(hosts):
            found = outputs_of(self.model, self.batches, self.graph)
        noise = Noise()
        for wanted, got in zip(self.wanted, found, strict=True):
            noise.add(wanted, got)
        top, wanted_top = (_top1(arrays[0]) for arrays in (found, self.wanted))
        accuracy = None if self.labels is None else float(np.mean(top == self.labels))
        return Score(noise.snr_db, float(np.mean(top == wanted_top)), accuracy)

    def float_accuracy(self) -> float | None:
        """Accuracy of the float model; None without labels."""
        return None if self.labels is None else float(np.mean(_top1(self.wanted[0]) == self.labels))


def _top1(logits: np.ndarray) -> np.ndarray:
    """The class of each sample; of one logit its sign."""
    flat = logits.reshape(len(logits), -1)
    return flat.argmax(axis=1) if flat.shape[1] > 1 else (flat[:, 0] > 0).astype(np.int64)
