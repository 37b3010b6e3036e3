"""DistillConfig: the objective and the optimisation of a distillation."""

import dataclasses
from typing import Any

from keras_lowbit.arguments import check_flag
from keras_lowbit.distill import losses


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """What `distill` minimises, over which variables, and how; `distill` has the data and the length of the run.

    loss: "rmse" (FAT's), "smooth_l1" (FAT's published code), "kl" with `temperature`, or ``loss(teacher, student)``.
    label_weight: of the cross-entropy with labels; None: 1 where `distill` gets labels, 0 where not.
    variables: what learns: None or "thresholds", "thresholds+biases", "activations+biases", "pointwise" or a list, see
    `Distiller`.
    training: True: the student runs as in its own `fit`, see `Distiller`.
    learning_rate: of Adam, where every cosine cycle starts; each restart empties Adam's slots.
    period: steps in a cycle; by default half of all steps, so one restart (400 where their number is unknown).
    cache_teacher: run the teacher once for each sample of arrays and keep its logits; by default where there are several
    epochs and less than 1 GiB of logits. Without augmentation it changes nothing but the time.
    Raises ValueError for an unknown loss, a temperature that is not above 0 and a label_weight below 0.

    >>> config = klb.DistillConfig(loss="kl", temperature=2.0)
    >>> history = klb.distill(student, model, images, config, epochs=1, verbose=0)
    """

    loss: Any = "rmse"
    temperature: float = 1.0
    label_weight: float | None = None
    variables: Any = None
    training: bool = False
    learning_rate: float = 1e-3
    period: int | None = None
    cache_teacher: bool | None = None

    def __post_init__(self) -> None:
        check_flag("DistillConfig", "training", self.training)
        losses.get(self.loss, self.temperature)
        if self.label_weight is not None:
            losses.check_label_weight(self.label_weight)
        if self.variables is not None and not isinstance(self.variables, str):
            object.__setattr__(self, "variables", tuple(self.variables))

    def weight_of_labels(self, given: bool) -> float:
        """`label_weight`, or what stands for None. given: whether there are labels."""
        return float(given) if self.label_weight is None else self.label_weight
