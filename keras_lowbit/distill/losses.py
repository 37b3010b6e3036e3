"""Distances between the logits of a teacher and of a student; every one is 0 where they are equal."""

from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

Tensor = Any
Loss = Callable[[Tensor, Tensor], Tensor]

# Below the root, so that its slope at 0 is finite; its own root, 2^-20, is exact and taken off again.
_ROOT_EPSILON = 2.0**-40
# Of the published code.
_SMOOTH_EPSILON = 1e-5


def rmse(teacher: Tensor, student: Tensor) -> Tensor:
    """``sqrt(sum_i |t_i - s_i|^2 / N)`` over N logit vectors; lower by at most 2^-20, with a finite slope at 0.

    teacher, student: logits [batch, ..., classes]; N counts the vectors, for an image classifier the batch.
    Goncharenko et al. 2018, arXiv:1812.07872: the loss H of threshold training.
    """
    squares = ops.sum(ops.square(student - teacher), axis=-1)
    return ops.sqrt(ops.mean(squares) + _ROOT_EPSILON) - _ROOT_EPSILON**0.5


def smooth_l1(teacher: Tensor, student: Tensor) -> Tensor:
    """``mean_i sum_c (sqrt((t - s)^2 + 1e-5) - sqrt(1e-5))``: the loss of FAT's published code, 0 where they are equal.

    The code leaves the constant in; gradients are the same.
    """
    distance = ops.sqrt(ops.square(student - teacher) + _SMOOTH_EPSILON) - _SMOOTH_EPSILON**0.5
    return ops.mean(ops.sum(distance, axis=-1))


def kl(temperature: float) -> Loss:
    """``T^2 mean_i KL(softmax(t / T) || softmax(s / T))``; T^2 keeps gradients comparable between temperatures.

    Hinton et al. 2015, arXiv:1503.02531, section 2.
    """

    def divergence(teacher: Tensor, student: Tensor) -> Tensor:
        log_t = ops.log_softmax(_classes(teacher) * (1.0 / temperature), axis=-1)
        log_s = ops.log_softmax(_classes(student) * (1.0 / temperature), axis=-1)
        return temperature**2 * ops.mean(ops.sum(ops.exp(log_t) * (log_t - log_s), axis=-1))

    return divergence


def get(loss: str | Loss, temperature: float) -> Loss:
    """The function of a name, or the function itself: ``loss(teacher_logits, student_logits)`` -> scalar."""
    if callable(loss):
        return loss
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r} must be above 0; usual are 1 to 5.")
    known: dict[str, Loss] = {"rmse": rmse, "smooth_l1": smooth_l1, "kl": kl(temperature)}
    if loss not in known:
        raise ValueError(f"Unknown loss {loss!r}. Choose one of {', '.join(map(repr, known))}, or give a function.")
    return known[loss]


def check_label_weight(label_weight: float) -> float:
    """The weight as a float; a ValueError below 0."""
    if not label_weight >= 0:
        raise ValueError(f"label_weight={label_weight!r} must be 0 or more.")
    return float(label_weight)


def cross_entropy(labels: Tensor, logits: Tensor) -> Tensor:
    """Mean cross-entropy of integer classes [batch, ...] or probabilities [batch, ..., classes] with logits.

    One unit is the logit of class 1 of two: labels 0 and 1, or its probability.
    """
    if logits.shape[-1] == 1:
        labels = ops.cast(ops.reshape(labels, ops.shape(logits)), "float32")
        return ops.mean(ops.binary_crossentropy(labels, logits, from_logits=True))
    if len(labels.shape) == len(logits.shape) and labels.shape[-1] == logits.shape[-1]:
        return ops.mean(ops.categorical_crossentropy(labels, logits, from_logits=True))
    if len(labels.shape) == len(logits.shape):  # [batch, 1]
        labels = ops.squeeze(labels, -1)
    return ops.mean(ops.sparse_categorical_crossentropy(labels, logits, from_logits=True))


def agreement(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """For each sample the share of logit vectors whose largest entry is at the same place, mean over the outputs: [batch].

    Of one unit: whether it is above 0, a probability above one half.
    """
    same = [
        ops.cast(ops.equal(ops.argmax(_classes(t), -1), ops.argmax(_classes(s), -1)), "float32")
        for t, s in zip(teacher, student, strict=True)
    ]
    shares = [ops.mean(ops.reshape(part, (ops.shape(part)[0], -1)), axis=-1) for part in same]
    return ops.mean(ops.stack(shares), axis=0)


def _classes(logits: Tensor) -> Tensor:
    """A logit of one unit as those of two classes, 0 and x: their softmax is its sigmoid; others as they are."""
    return ops.concatenate([ops.zeros_like(logits), logits], axis=-1) if logits.shape[-1] == 1 else logits
