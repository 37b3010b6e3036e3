"""distill: train a few declared variables of a student until its logits are the teacher's."""

import dataclasses
import os
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_lowbit.arguments import check_flag, check_whole
from keras_lowbit.callbacks.cosine import CosineRestarts
from keras_lowbit.callbacks.optimizer import reset_optimizer
from keras_lowbit.data.batching import Progress
from keras_lowbit.distill.config import DistillConfig
from keras_lowbit.distill.distiller import Distiller
from keras_lowbit.distill.source import Source, check_rereadable
from keras_lowbit.distill.state import Snapshot, fingerprint, load, mark_written, save
from keras_lowbit.files import FilePath, check_writable, make_folder_of, name_of
from keras_lowbit.quantizers.former import former_arguments

# A cycle of the learning rate where the number of steps is not known: that of FAT's published code.
_UNKNOWN_PERIOD = 400
_MAX_RESTORES = 3


@former_arguments(
    **{field.name: f"config=klb.DistillConfig({field.name}={{}})" for field in dataclasses.fields(DistillConfig)}
)
def distill(
    student: keras.Model,
    teacher: keras.Model,
    data: Any,
    config: DistillConfig | None = None,
    *,
    epochs: int = 6,
    batch_size: int = 32,
    steps: int | None = None,
    labels: Any = None,
    validation_data: Any = None,
    check: bool = True,
    jit_compile: bool | str = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    checkpoint: FilePath | None = None,
    seed: int = 0,
    verbose: int | bool = 1,
) -> keras.callbacks.History:
    """Train the thresholds (or other declared variables) of a calibrated student against a teacher; no labels needed.

    Minimises the distance between the logits (before a final softmax or sigmoid, which is found and left out on both
    sides) with Adam; both models in inference mode, unless the config says ``training=True``. Only the declared variables
    change (and then the student's batch norms, ranges and random state), the teacher does not; "pointwise" factors are
    multiplied into the weights at the end.

    student: calibrated, from `quantize_model`; changed in place.   teacher: the float model; it is not changed.
    data: arrays, dicts, tf.data and so on as for `calibrate`; arrays are shuffled, an epoch is a function of (seed, epoch).
    config: loss, variables, learning rate and so on, see `DistillConfig`; its defaults are FAT's.
    steps: batches in an epoch, all by default.
    labels: integer classes or probabilities beside arrays; adds the config's label_weight (1) times the cross-entropy.
    validation_data: held-back inputs, in the forms of `data`; with `labels` a pair (inputs, labels). Their loss is measured
    before the first and after every epoch (``val_loss``, ``val_agreement`` in the History), and the state of its least
    value stays: the start, with a warning, if nothing was better. Thresholds fitted to some images can lose on others. By
    default every fourth sample of arrays is held back for that, 256 at most; data that can be read again are judged by
    their first batch, which trains too; an iterator that can be read once is not judged.
    check=False: without `validation_data` nothing is judged, all data train, and the last epoch stays.
    jit_compile: True (XLA), "auto" or False, as for Keras' `compile`, of the training steps and the teacher. False starts at
    once, True takes seconds to minutes to compile. Try True where the process ends without a Python error: on some
    networks of separable and depthwise layers TensorFlow's own kernels do that, in `fit` of the float network too.
    checkpoint: file written after every epoch, its folder made if need be; a run that finds it goes on behind its last epoch,
    to the same bits. A place that cannot be written is an OSError before the first epoch; a damaged file, or one of another
    model, a ValueError that leaves the student as it is.
    callbacks: Keras callbacks, of the `Distiller`; the run ends with the epoch in which one sets `stop_training`.
    verbose: 1 shows the steps that are done, with the means of their epoch, on a terminal or in a notebook, 0 nothing.
    epochs: passes over the data.   batch_size: for arrays.   seed: of the order of arrays.
    Returns the History: loss, agreement (share of samples with the teacher's top-1) and learning_rate of each epoch.

    After a loss or variable that is not finite the best state so far returns and Adam starts anew, with a RuntimeWarning;
    a FloatingPointError, with the best state in place, if that happens more than three times.
    Raises ValueError and TypeError for models that do not fit each other or the data, before anything is trained.
    Raises NotImplementedError on Keras' NumPy backend, which has no gradients.
    Goncharenko et al. 2018, arXiv:1812.07872.

    >>> student, report = klb.quantize_model(folded, "fat")
    >>> ranges = klb.calibrate(student, images, verbose=0)
    >>> history = klb.distill(student, model, images, epochs=1, verbose=0)
    >>> sorted(history.history)
    ['agreement', 'learning_rate', 'loss', 'val_agreement', 'val_loss']
    """
    config, epochs = _checked_config(config), _checked_epochs(epochs)
    check_whole("distill", "seed", seed, low=0)
    check_flag("distill", "check", check)
    if keras.backend.backend() == "numpy":
        raise NotImplementedError(
            "Keras' NumPy backend has no gradients, so distill cannot train on it. Set KERAS_BACKEND=tensorflow (or jax) "
            "before Keras is imported; a quantized model saved here loads there."
        )
    check_rereadable("data", data, steps, epochs)
    check_rereadable("validation_data", validation_data, None, epochs + 1)
    source = Source(student, data, batch_size, steps, labels, seed)
    held_back = _held_back(student, validation_data, batch_size, labels, seed)
    if held_back is None and check:
        source, held_back = source.split()
    distiller = _distiller(student, teacher, config, labels is not None, jit_compile)
    period = _default_period(source.count, epochs) if config.period is None else config.period
    rates = CosineRestarts(config.learning_rate, period)
    training = _Training(distiller, source, held_back, rates, epochs, checkpoint)
    training.resume()
    if training.first < epochs:
        source.cache(distiller, epochs - training.first, config.cache_teacher)
        if held_back is not None:
            held_back.cache(distiller, epochs + 1 - training.first, None)
    history = training.run(callbacks, verbose)
    training.write_back()
    return history


def _distiller(
    student: keras.Model, teacher: keras.Model, config: DistillConfig, labelled: bool, jit_compile: bool | str
) -> Distiller:
    if jit_compile not in (True, False, "auto"):
        raise ValueError(f"distill got jit_compile={jit_compile!r}; give True (XLA), False or 'auto'.")
    distiller = Distiller(
        student,
        teacher,
        loss=config.loss,
        temperature=config.temperature,
        label_weight=config.weight_of_labels(labelled),
        variables=config.variables,
        training=config.training,
        name="distiller",
    )
    distiller.compile(keras.optimizers.Adam(config.learning_rate), jit_compile=jit_compile)
    # Before the first step: TensorFlow traces a function twice that makes variables on its way.
    distiller.optimizer.build(distiller.trainable_variables)
    return distiller


def _default_period(steps: int | None, epochs: int) -> int:
    """Half of all steps. steps: in an epoch, None if unknown."""
    return _UNKNOWN_PERIOD if steps is None else max(1, -(-steps * epochs // 2))


def _held_back(student: keras.Model, data: Any, batch_size: int, labels: Any, seed: int) -> Source | None:
    if data is None:
        return None
    if labels is None:
        return Source(student, data, batch_size, None, None, seed)
    if not isinstance(data, tuple) or len(data) != 2:
        raise ValueError(
            f"labels= was given, so validation_data must be a pair (inputs, labels), got {type(data).__name__}. The loss on "
            "held-back data has the same terms."
        )
    return Source(student, data[0], batch_size, None, data[1], seed)


def _checked_config(config: Any) -> DistillConfig:
    if config is not None and not isinstance(config, DistillConfig):
        raise TypeError(
            f"distill takes a klb.DistillConfig as config, got {type(config).__name__}. The length of the run has names: "
            "epochs=6, batch_size=32."
        )
    return config or DistillConfig()


def _checked_epochs(epochs: Any) -> int:
    if isinstance(epochs, bool) or not isinstance(epochs, int | np.integer) or epochs < 1:
        raise ValueError(f"distill needs epochs of 1 or more, got {epochs!r}.")
    return int(epochs)


class _Means:
    """Means of the logs over the samples of an epoch; `train_on_batch` gives those of one batch."""

    def __init__(self) -> None:
        self.samples, self.sums = 0, dict[str, float]()

    def update(self, logs: dict[str, Any], samples: int) -> dict[str, float]:
        """The means with one more batch."""
        self.samples += samples
        self.sums = {name: self.sums.get(name, 0.0) + float(value) * samples for name, value in logs.items()}
        return {name: total / self.samples for name, total in self.sums.items()}


class _Training:
    """The loop of `distill`, for what `keras.Model.fit` cannot do; steps and callbacks are Keras'.

    `fit` does not measure the held-back loss before the first epoch, has no order of samples that depends on (seed, epoch)
    alone, counts a step whose loss is not finite into the means of its epoch, and cannot restore variables and optimizer
    inside one. A checkpoint here holds history, best state and the step of the learning rate too, so that a resumed run
    ends with the same bits.
    """

    def __init__(
        self,
        distiller: Distiller,
        source: Source,
        held_back: Source | None,
        rates: CosineRestarts,
        epochs: int,
        checkpoint: FilePath | None,
    ) -> None:
        self.distiller, self.source, self.held_back, self.rates = distiller, source, held_back, rates
        self.epochs, self.checkpoint = epochs, checkpoint
        self.first, self.restores, self.written = 0, 0, False
        self.history: dict[str, list[float]] = {}
        self.best = Snapshot.of(distiller.changing_variables, np.inf)
        rates.set_model(distiller)

    def resume(self) -> None:
        """Take up the state of the checkpoint, if its file exists."""
        if self.checkpoint is None:
            return
        make_folder_of(self.checkpoint)
        check_writable(self.checkpoint)
        if not os.path.exists(self.checkpoint):
            return
        found = load(self.checkpoint, self.distiller)
        self.first, self.rates.step, self.history, self.best = found.epoch, found.step, found.history, found.best
        self.written = found.written is not None and found.written == fingerprint(self.distiller.scaled)
        if self.written and self.first < self.epochs:
            raise ValueError(
                f"The student has the factors of the {self.first} epochs in {name_of(self.checkpoint)!r} multiplied in, so no "
                "further epoch can begin there. Give the student as it was before, or another checkpoint."
            )

    def write_back(self) -> None:
        """Multiply pointwise factors in, once: the student may be the one that a finished run left."""
        if self.written:
            return
        self.distiller.write_back()
        if self.checkpoint is not None and self.distiller.scaled:
            mark_written(self.checkpoint, self.distiller.scaled)

    def run(self, callbacks: Sequence[keras.callbacks.Callback], verbose: int | bool) -> keras.callbacks.History:
        """All epochs that are left."""
        history = keras.callbacks.History()
        observers = keras.callbacks.CallbackList(
            [*callbacks, self.rates, history],
            model=self.distiller,
            verbose=int(verbose),
            epochs=self.epochs,
            steps=self.source.count,
        )
        count = self.source.count
        bar = Progress(None if count is None else count * (self.epochs - self.first), "step", verbose)
        observers.on_train_begin()
        for name, values in self.history.items():
            history.history[name] = list(values)
        history.epoch.extend(range(self.first))
        logs: dict[str, Any] = {}
        if self.first == 0 and self.held_back is not None:
            self.best = Snapshot.of(self.distiller.changing_variables, self._validate()["val_loss"])
        self.distiller.stop_training = False
        for epoch in range(self.first, self.epochs):
            logs = self._epoch(epoch, observers, bar)
            self.history = history.history
            self._keep(epoch, float(logs.get("loss" if self.held_back is None else "val_loss", np.inf)))
            if self.distiller.stop_training:
                break
        bar.close()
        if self.held_back is not None:
            self.best.restore(self.distiller.changing_variables)
            self._say_if_nothing_helped()
        observers.on_train_end(logs)
        return history

    def _say_if_nothing_helped(self) -> None:
        losses = self.history.get("val_loss", [])
        if losses and not any(loss <= self.best.loss for loss in losses):
            warnings.warn(
                f"distill left {self.distiller.student.name!r} as it was: no epoch was better on the samples that judge it "
                f"(val_loss {self.best.loss:.4g} -> {np.nanmin(losses):.4g}). Give more data, a lower learning_rate or more "
                "epochs; check=False keeps the last epoch unchecked.",
                stacklevel=4,
            )

    def _validate(self) -> dict[str, float]:
        """``val_loss`` and ``val_agreement`` on the held-back samples, in the same batches every time."""
        if self.held_back is None:
            return {}
        means, found = _Means(), dict[str, float]()
        for inputs, targets in self.held_back.epoch(0):
            batch = self.distiller.test_on_batch(inputs, targets, return_dict=True)
            found = means.update(batch, len(tree.flatten(inputs)[0]))
        return {f"val_{name}": value for name, value in found.items()}

    def _epoch(self, epoch: int, observers: keras.callbacks.CallbackList, bar: Progress) -> dict[str, Any]:
        observers.on_epoch_begin(epoch)
        means = _Means()
        logs: dict[str, Any] = {}
        for step, (inputs, targets) in enumerate(self.source.epoch(epoch)):
            observers.on_train_batch_begin(step)
            batch = self.distiller.train_on_batch(inputs, targets, return_dict=True)
            if np.isfinite(float(batch["loss"])):
                logs = means.update(batch, len(tree.flatten(inputs)[0]))
            else:
                self._restore(f"epoch {epoch + 1}, step {step + 1}")
            observers.on_train_batch_end(step, logs)
            bar.advance(logs)
        if not all(np.isfinite(value).all() for value in Snapshot.of(self.distiller.changing_variables, 0.0).values):
            self._restore(f"epoch {epoch + 1}")
        logs = {**logs, **self._validate()}
        observers.on_epoch_end(epoch, logs)
        return logs

    def _restore(self, where: str) -> None:
        self.best.restore(self.distiller.changing_variables)
        reset_optimizer(self.distiller)
        self.restores += 1
        message = f"Distillation: the loss or a variable was not finite in {where}"
        if self.restores > _MAX_RESTORES:
            raise FloatingPointError(
                f"{message}, for the {self.restores}th time. The best state is in place. Lower learning_rate, or look for "
                "samples with values far outside the calibrated ranges."
            )
        warnings.warn(f"{message}; the best state so far was restored.", RuntimeWarning, stacklevel=4)

    def _keep(self, epoch: int, loss: float) -> None:
        if loss < self.best.loss:
            self.best = Snapshot.of(self.distiller.changing_variables, loss)
        if self.checkpoint is not None:
            save(self.checkpoint, self.distiller, epoch + 1, self.rates.step, self.history, self.best)
