"""Distiller: a student learns the logits of a teacher; for `compile` and `fit`, and inside `distill`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops, tree

from keras_lowbit.arguments import check_flag, check_model
from keras_lowbit.distill import losses
from keras_lowbit.distill.logits import logits_model
from keras_lowbit.keras_graph.calls import find_layers
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import QuantizedLayer
from keras_lowbit.layers.find import hosts

TEACHER = "teacher_logits"
POINTWISE_LIMITS = (0.75, 1.25)


class Distiller(keras.Model):
    """Trains declared variables of `student` so that its logits come close to those of `teacher`; no labels needed.

    ``loss = distance(teacher logits, student logits) + label_weight * cross-entropy(labels, student logits)``, summed over
    the outputs. Both models run in inference mode: batch norms use their moving statistics, dropout is off, activation
    ranges stay as calibrated, SQ quantizes everything; ``training=True`` changes that for the student. A final softmax or
    sigmoid is left out on both sides (see `logits_model`). Logs ``loss`` and ``agreement``, the share of samples whose top-1
    is the teacher's; an output of one unit says class 1 where it is above 0.

        distiller = klb.Distiller(quantized, model)
        distiller.compile(keras.optimizers.Adam(1e-3))
        distiller.fit(images, epochs=6, callbacks=[klb.callbacks.CosineRestarts(1e-3)])
        distiller.write_back()

    student, teacher: models with the same inputs and the same logits; the teacher may be stock and never changes.
    loss: "rmse" (FAT's), "smooth_l1" (FAT's published code), "kl" with `temperature`, or ``loss(teacher, student)``.
    label_weight: above 0 `fit` needs labels: integer classes or probabilities; a list for several outputs.
    variables: what learns. None or "thresholds": the trainable state of the student's quantizers (FAT's factors),
    in frozen layers too.
    "thresholds+biases": these and the biases of its layers, betas of batch norms included: a threshold that moves rounds the
    weights of its channel anew, which shifts the channel's mean, and only a bias can take that shift back.
    "activations+biases": ranges of activations and the biases, no threshold of weights: for weights whose rounding was learnt
    (`reconstruct`), which it would round anew. "pointwise": one factor in [0.75, 1.25] for every weight and bias of its
    quantized layers, thresholds fixed; `write_back` multiplies them in. Or a list of the student's Keras variables. Everything
    else stays as it is, whatever its `trainable` says.
    training: True: the student runs as in its own `fit`: batch norms take the batch's statistics and keep their averages,
    dropout is on, ranges observe, SQ draws. For training whole networks: ``variables=quantized.trainable_variables``.
    y in `fit`: nothing, labels, or ``{"teacher_logits": [...], "labels": ...}`` to save the teacher's runs.
    Raises TypeError and ValueError for models that do not fit each other, are not calibrated or have nothing to train.
    Goncharenko et al. 2018, arXiv:1812.07872.

    >>> distiller = klb.Distiller(student, model)
    >>> distiller.compile(keras.optimizers.Adam(1e-3))
    >>> history = distiller.fit(images, epochs=1, verbose=0)
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model,
        *,
        loss: Any = "rmse",
        temperature: float = 1.0,
        label_weight: float = 0.0,
        variables: Any = None,
        training: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_flag("Distiller", "training", training)
        self.trains_as_in_fit = training
        _check_models(student, teacher)
        self.student, self.teacher = student, teacher
        self.student_logits, self.teacher_logits = logits_model(student), logits_model(teacher)
        _check_logits(self.student_logits, self.teacher_logits)
        self.distance = losses.get(loss, temperature)
        self.label_weight = losses.check_label_weight(label_weight)
        self.agreement = keras.metrics.Mean(name="agreement")
        self.factors: list[Any] = []  # beside `scaled`, the weights they multiply
        self.scaled: list[Any] = []
        if variables == "pointwise":
            if training:
                raise ValueError("Distiller got training=True with variables='pointwise': those weights stand still.")
            self._add_factors()
        chosen = self.factors if self.factors else _declared(student, variables)
        self._declared = tuple(chosen)  # a tuple: Keras tracks lists
        self.built = True

    def _add_factors(self) -> None:
        layers = find_layers(self.student, QuantizedLayer)
        self.scaled = [weight for layer in layers for weight in (layer.kernel, layer.bias) if weight is not None]
        if not self.scaled:
            raise ValueError(f"{self.student.name!r} has no quantized layer whose weights could get factors.")
        self.factors = [
            self.add_weight(
                shape=w.shape, initializer="ones", constraint=_Between(), name=f"factor_{i}", dtype="float32"
            )
            for i, w in enumerate(self.scaled)
        ]

    @property
    def trainable_variables(self) -> list[Any]:
        """The declared variables and nothing else."""
        return list(self._declared)

    @property
    def trainable_weights(self) -> list[Any]:
        """The declared variables and nothing else."""
        return list(self._declared)

    @property
    def non_trainable_variables(self) -> list[Any]:
        """All other variables of student and teacher."""
        declared = {id(variable) for variable in self._declared}
        return [variable for variable in self.variables if id(variable) not in declared]

    @property
    def non_trainable_weights(self) -> list[Any]:
        """All other variables of student and teacher, random generators left out."""
        declared = {id(variable) for variable in self._declared}
        return [variable for variable in self.weights if id(variable) not in declared]

    @property
    def changing_variables(self) -> list[Any]:
        """The declared variables, and the state that the student's own layers change where it runs as in `fit`."""
        state = self.student.non_trainable_variables if self.trains_as_in_fit else []
        declared = {id(variable) for variable in self._declared}
        return [*self._declared, *(variable for variable in state if id(variable) not in declared)]

    def call(self, inputs: Any, training: bool = False) -> list[Any]:
        """The student's logits, a list; in inference mode unless both this `training` and the constructor's are True."""
        training = bool(training) and self.trains_as_in_fit
        if not self.factors:
            return _flat(self.student_logits(inputs, training=training))
        low, high = POINTWISE_LIMITS
        scaled = [
            (weight, ops.convert_to_tensor(weight) * ops.clip(ops.convert_to_tensor(factor), low, high))
            for weight, factor in zip(self.scaled, self.factors, strict=True)
        ]
        with keras.StatelessScope(state_mapping=scaled):  # the layers read these in place of their own weights
            return _flat(self.student_logits(inputs, training=False))

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Distance to the teacher's logits and, with `label_weight`, to the labels."""
        if sample_weight is not None:
            raise ValueError("Distiller takes no sample weights; leave them out of the data.")
        given = y if isinstance(y, Mapping) and TEACHER in y else {"labels": y}
        teacher = given.get(TEACHER)
        if teacher is None:
            teacher = _flat(self.teacher_logits(x, training=False))
        wanted = [ops.stop_gradient(ops.cast(logits, "float32")) for logits in _flat(teacher)]
        found = [ops.cast(logits, "float32") for logits in y_pred]
        self.agreement.update_state(losses.agreement(wanted, found))
        loss = sum((self.distance(t, s) for t, s in zip(wanted, found, strict=True)), start=0.0)
        return loss + self._label_loss(given.get("labels"), found) if self.label_weight else loss

    def _label_loss(self, labels: Any, logits: list[Any]) -> Any:
        labels = [] if labels is None else _flat(labels)
        if len(labels) != len(logits):
            raise ValueError(
                f"label_weight={self.label_weight} needs labels for {len(logits)} outputs, got {len(labels)}. "
                "Give labels, or label_weight=0."
            )
        parts = (losses.cross_entropy(y, s) for y, s in zip(labels, logits, strict=True))
        return self.label_weight * sum(parts, start=0.0)

    def write_back(self) -> int:
        """Multiply pointwise factors into the student's weights and return to factors of 1; how many weights have one."""
        for weight, factor in zip(self.scaled, self.factors, strict=True):
            weight.assign(to_numpy(weight) * to_numpy(factor).clip(*POINTWISE_LIMITS))
            factor.assign(ops.ones_like(factor))
        return sum(math.prod(weight.shape) for weight in self.scaled)


class _Between(keras.constraints.Constraint):
    """Keeps factors inside `POINTWISE_LIMITS`, so that none gets stuck where its gradient is 0."""

    def __call__(self, values: Any) -> Any:
        return ops.clip(values, *POINTWISE_LIMITS)


def thresholds(student: Any) -> list[Any]:
    """The state of a model's quantizers that learns, in frozen layers too: FAT's factors.

    student: a quantized model.
    Returns Keras variables.

    >>> from keras_lowbit.distill import thresholds
    >>> sorted({variable.name for variable in thresholds(student)})
    ['factor', 'left', 'width']
    """
    return [variable for _, host in hosts(student) for variable in host.learned]


def biases(student: Any) -> list[Any]:
    """What layers of a model add to each channel: biases of its quantized layers, betas of its batch norms.

    student: a quantized model.
    Returns Keras variables.

    >>> from keras_lowbit.distill import biases
    >>> len(biases(student))
    4
    """
    found = [layer.bias for layer in find_layers(student, QuantizedLayer)]
    found += [layer.beta for layer in find_layers(student, keras.layers.BatchNormalization)]
    return [variable for variable in found if variable is not None]


def _declared(student: Any, variables: str | Sequence[Any] | None) -> list[Any]:
    if variables is None or variables == "thresholds":
        return _thresholds(student)
    if variables == "thresholds+biases":
        return _thresholds(student) + biases(student)
    if variables == "activations+biases":
        ranges = [
            variable for _, host in hosts(student) if host.activation_range is not None for variable in host.learned
        ]
        return ranges + biases(student)
    if isinstance(variables, str):
        raise ValueError(
            f"variables={variables!r}; give 'thresholds' (the default), 'thresholds+biases', 'activations+biases', "
            "'pointwise' or a list of variables."
        )
    own = {id(variable) for variable in student.variables}
    found = list(variables)
    if not found or any(id(variable) not in own for variable in found):
        raise ValueError(
            f"variables= needs variables of the student {student.name!r}, at least one; got {len(found)}, of which "
            f"{sum(id(variable) in own for variable in found)} are its own."
        )
    return found


def _thresholds(student: Any) -> list[Any]:
    if not (found := thresholds(student)):
        raise ValueError(
            f"No quantizer of {student.name!r} has thresholds that learn. Quantize with the recipe 'fat', or say "
            "what learns: variables=[...]."
        )
    return found


def _check_models(student: Any, teacher: Any) -> None:
    for role, model in (("student", student), ("teacher", teacher)):
        check_model(model, f"distill as {role}")
        if not model.built:
            raise ValueError(f"The {role} {model.name!r} has no variables yet. Call it on a batch first.")
    if student is teacher:
        raise ValueError("Student and teacher are the same model. Give the float model as the teacher.")
    shared = {id(v) for v in student.variables} & {id(v) for v in teacher.variables}
    if shared:
        raise ValueError(
            f"Student and teacher share {len(shared)} variables: the teacher would change with the student. Quantize a "
            "copy: klb.quantize_model makes one."
        )
    unseen = [path for path, host in hosts(student) if "count" in host.state and not to_numpy(host.state["count"]) > 0]
    if unseen:
        raise ValueError(
            f"{len(unseen)} activation ranges of the student have seen no data, the first is {unseen[0]!r}. Call "
            "klb.calibrate(student, images) before distilling."
        )


def _check_logits(student: Any, teacher: Any) -> None:
    shapes = [[tuple(t.shape[1:]) for t in _flat(m.outputs)] if m.outputs else None for m in (student, teacher)]
    if None not in shapes and shapes[0] != shapes[1]:
        raise ValueError(
            f"Student and teacher give logits of different shapes (without batch): {shapes[0]} and {shapes[1]}. They must "
            "be the same network, or have the same head."
        )


def _flat(outputs: Any) -> list[Any]:
    return tree.flatten(outputs)
