"""How well the outputs of file, Keras model and reference match labels: accuracy, or the mean absolute error."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

ACCURACY, ABSOLUTE_ERROR = "accuracy", "mean absolute error"


@dataclasses.dataclass(frozen=True)
class Score:
    """One output against its labels: how well the file, the quantized Keras model and the reference do (None without one).

    metric: "accuracy" (0 to 1) where the labels are classes, else "mean absolute error" in the units of the labels.
    count: labels compared.
    """

    metric: str
    count: int
    file: float | None
    keras: float
    reference: float | None = None

    def __str__(self) -> str:
        found = {"file": self.file, "Keras": self.keras, "reference": self.reference}
        values = ", ".join(f"{who} {value:.4g}" for who, value in found.items() if value is not None)
        return f"{self.metric} {values} on {self.count:,} labels"


class Scorer:
    """Adds up the score of one output, batch by batch. probabilities: whether its values are shares of 1."""

    def __init__(self, name: str, probabilities: bool) -> None:
        self.name, self.probabilities = name, probabilities
        self.kind = ""
        self.count = 0
        self.sums: dict[str, float] = {}

    def add(self, labels: np.ndarray, outputs: Mapping[str, np.ndarray]) -> None:
        """A batch: its labels, and the outputs of "file", "keras" and, where there is one, "reference".

        Raises ValueError for labels that do not fit the output.
        """
        output = outputs["keras"]
        self.kind = self.kind or self._kind_of(labels, output)
        classes = self._classes(labels, output) if self.kind != ABSOLUTE_ERROR else None
        for who, values in outputs.items():
            if classes is None:
                found = np.abs(values.reshape(labels.shape) - labels)
            else:
                found = self._chosen(values).reshape(classes.shape) == classes
            self.sums[who] = self.sums.get(who, 0.0) + float(found.sum(dtype=np.float64))
        self.count += int(found.size)

    def result(self) -> Score | None:
        """The score; None if no labels came."""
        if not self.count:
            return None
        metric = ABSOLUTE_ERROR if self.kind == ABSOLUTE_ERROR else ACCURACY
        means: dict[str, Any] = {who: total / self.count for who, total in self.sums.items()}
        return Score(metric, self.count, **{"file": None, **means})

    def _kind_of(self, labels: np.ndarray, output: np.ndarray) -> str:
        """What the labels are: "class" numbers, "one-hot" rows, "yes or no" for a probability, or numbers to come close to."""
        if labels.dtype.kind not in "biuf":
            raise self._misfit(labels, output, f"they are {labels.dtype}, no numbers")
        if output.ndim > 1 and output.shape[-1] > 1:
            if labels.shape in (output.shape[:-1], (*output.shape[:-1], 1)):
                return "class"
            if labels.shape == output.shape and _one_hot(labels):
                return "one-hot"
        if labels.size != output.size or len(labels) != len(output):
            raise self._misfit(
                labels, output, "they have neither the shape of the output nor one class for each of its rows"
            )
        if output.dtype.kind in "iu":
            return "equal"
        binary = self.probabilities and np.isin(labels, (0, 1)).all()
        return "yes or no" if binary else ABSOLUTE_ERROR

    def _classes(self, labels: np.ndarray, output: np.ndarray) -> np.ndarray:
        if self.kind == "one-hot":
            return labels.argmax(-1)
        classes = labels.reshape(output.shape[:-1]) if self.kind == "class" else labels
        if self.kind == "class" and classes.size:
            low, high, count = classes.min(), classes.max(), output.shape[-1]
            if low < 0 or high >= count:
                raise self._misfit(
                    labels, output, f"they reach from {low:g} to {high:g}, classes from 0 to {count - 1}"
                )
            if (broken := classes[classes != np.floor(classes)]).size:
                raise self._misfit(labels, output, f"classes are whole numbers, {broken[0]:g} is not")
        return classes

    def _chosen(self, values: np.ndarray) -> np.ndarray:
        if self.kind == "equal":
            return values
        return values >= 0.5 if self.kind == "yes or no" else values.argmax(-1)

    def _misfit(self, labels: np.ndarray, output: np.ndarray, reason: str) -> ValueError:
        return ValueError(
            f"The labels of output {self.name!r}, of shape {labels.shape}, do not fit its {output.shape}: {reason}. Give a "
            "class number or a one-hot row for each row of the output, or numbers of its shape."
        )


def _one_hot(labels: np.ndarray) -> bool:
    """Whether every row is a distribution over the classes (smoothed labels are, too)."""
    return bool((labels >= 0).all() and np.allclose(labels.sum(-1, dtype=np.float64), 1, atol=1e-3))


def labels_by_output(model: keras.Model, labels: Any) -> list[np.ndarray | None]:
    """The labels of each output in order; None for an output that a dict leaves out.

    Raises ValueError if they are not one for each output.
    """
    names, count = list(model.output_names), len(model.outputs)
    if isinstance(labels, Mapping):
        keys = list(model.output) if isinstance(model.output, Mapping) else names
        if not set(labels) <= set(keys):
            raise ValueError(f"The labels are for the outputs {sorted(labels)}; {model.name!r} has {keys}.")
        found = [labels.get(key) for key in keys]
    elif count == 1:
        found = [labels[0] if isinstance(labels, list | tuple) and len(labels) == 1 else labels]
    else:
        found = list(labels) if isinstance(labels, list | tuple) else [labels]
    if len(found) != count:
        raise ValueError(f"The labels are {len(found)} arrays; {model.name!r} has {count} outputs: {names}.")
    return [None if part is None else _as_array(part) for part in found]


def _as_array(part: Any) -> np.ndarray:
    return np.asarray(part.detach().cpu() if hasattr(part, "detach") else part)
