"""Callbacks against weights that flip between two codes while they train."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lowbit.callbacks.logs import add_before_all
from keras_lowbit.callbacks.oscillation_file import OscillationFile
from keras_lowbit.files import FilePath
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.base import kernel_layers
from keras_lowbit.numerics.oscillation import Oscillation, damped
from keras_lowbit.quantizers import AdjustableThreshold, LearnedPowerOfTwo, LearnedStep

_OFTEN = 0.005  # turns a step, from which the paper counts a weight as one that oscillates


class _EveryStep(keras.callbacks.Callback):
    """Acts on kernels of learnt grids after every step, by a number that goes from one value to another along a cosine."""

    def __init__(self, name: str, values: float | Sequence[float]) -> None:
        super().__init__()
        self.values = _ends(type(self).__name__, name, values)
        self.layers: list[Any] = []
        self._epoch = 0

    def set_model(self, model: Any) -> None:
        """Find the layers; a ValueError that names one whose step is not learnt."""
        super().set_model(model)
        self.layers = _learnt_layers(type(self).__name__, model)

    def on_train_begin(self, logs: Any = None) -> None:
        """Be first to add to the logs; refuse executions of several steps, between which nothing would be seen."""
        if (steps := getattr(self.model, "steps_per_execution", 1)) != 1:
            raise ValueError(
                f"{type(self).__name__} looks at every step, but the model was compiled with steps_per_execution={steps}. "
                "Compile it with steps_per_execution=1."
            )
        for layer in self.layers:
            if isinstance(layer.kernel_quantizer, AdjustableThreshold) and not np.any(_threshold(layer)):
                raise ValueError(
                    f"{type(self).__name__}: {layer.name!r} takes its threshold from the weights as they are. Call "
                    "klb.calibrate first: then it stays."
                )
        add_before_all(self.add_logs)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """The schedule follows the epoch, so that a resumed training goes on in it."""
        self._epoch = epoch

    def add_logs(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """What the epoch has come to."""
        raise NotImplementedError

    def value(self, batch: int) -> float:
        """The scheduled number after that step of the epoch."""
        steps = self.params.get("steps") or batch + 1
        progress = (self._epoch + (batch + 1) / steps) / max(self.params.get("epochs") or 1, 1)
        first, last = self.values
        return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))

    def sync(self) -> None:
        """Let the model's variables hold what the step has made: JAX keeps it elsewhere while it trains."""
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()


class FreezeOscillations(_EveryStep):
    """Freezes weights that flip between two codes, each at the code where it mostly was.

    After each step of `fit`, for every weight: ``o = 1`` where its code changes against the direction of its last change,
    ``f = m o + (1 - m) f``; where f rises above the threshold the weight stands at ``round(moving average of its codes)``
    times its step size for good. Steps of learnt grids go on learning. Batch norms follow the weights; so end with
    `ReestimateBatchNorms`.

    threshold: of f, or (first, last), along a cosine over the epochs of `fit`.   momentum: m, of both averages.
    checkpoint: file that keeps f, the averages and what is frozen, written at the end of each epoch. A fit that goes on from
    the kernels it was written with, as with `BackupAndRestore`, goes on with them; without a file it begins anew.
    Logs ``oscillating``, the share of weights with f above 0.005 that are not frozen, and ``frozen``.
    Raises ValueError for a model with a kernel whose step is not learnt, such as Ternary, Incremental or plain Uniform; for
    steps_per_execution above 1; and for a checkpoint of other kernels.
    Nagel et al. 2022, arXiv:2203.11086, sections 3 and 4.3.

    >>> student.compile("sgd", "sparse_categorical_crossentropy")
    >>> freeze = klb.callbacks.FreezeOscillations((0.04, 0.01))
    >>> history = student.fit(images[:16], labels[:16], callbacks=[freeze], verbose=0)
    >>> history.history["frozen"]
    [0.0]
    """

    def __init__(
        self,
        threshold: float | Sequence[float] = (0.04, 0.01),
        momentum: float = 0.01,
        checkpoint: FilePath | None = None,
    ) -> None:
        super().__init__("threshold", threshold)
        if isinstance(momentum, bool) or not 0 < momentum <= 1:
            raise ValueError(
                f"FreezeOscillations needs a momentum above 0 and at most 1, got {momentum!r}; usual is 0.01."
            )
        self.momentum = float(momentum)
        self.file = None if checkpoint is None else OscillationFile(checkpoint)
        self.state: list[Oscillation] = []

    def set_model(self, model: Any) -> None:
        """Another model begins anew."""
        if model is not self.model:
            self.state = []
        super().set_model(model)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """In the first epoch of a run: the state of the file, or a new one."""
        super().on_epoch_begin(epoch, logs)
        if not self.state and self.file is not None:
            self.state = self.file.read(self.layers) or []
        if not self.state:
            self.state = [Oscillation.start(layer.kernel_host.encode(layer.kernel).codes) for layer in self.layers]
            self._write()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Follow the codes, freeze, and bring frozen weights back."""
        self.sync()
        threshold = self.value(batch)
        for place, layer in enumerate(self.layers):
            found = layer.kernel_host.encode(layer.kernel)
            state = self.state[place].after(found.codes, self.momentum).freezing(threshold)
            stands = found.scale * (state.average - found.zero_point)
            layer.kernel.assign(ops.where(state.frozen > 0, ops.cast(stands, layer.kernel.dtype), layer.kernel))
            self.state[place] = state._replace(codes=ops.where(state.frozen > 0, state.average, state.codes))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keep the state."""
        self._write()

    def add_logs(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """The two shares."""
        if logs is not None and self.state:
            frozen = np.concatenate([to_numpy(state.frozen).ravel() for state in self.state]) > 0
            turns = np.concatenate([to_numpy(state.frequency).ravel() for state in self.state])
            logs |= {"oscillating": float(np.mean((turns > _OFTEN) & ~frozen)), "frozen": float(np.mean(frozen))}

    def _write(self) -> None:
        if self.file is not None:
            self.file.write(self.layers, self.state)


class DampenOscillations(_EveryStep):
    """Draws weights towards the middle of their codes, away from the edges where they flip.

    The penalty ``strength * sum((q(w) - w)^2)`` over the weights inside the grid, q(w) held fixed, by its own step of gradient
    descent after each step of `fit`: ``w += 2 strength learning_rate (q(w) - w)``. It has no state to keep.

    strength: or (first, last), along a cosine over the epochs of `fit`; the paper's begins at 0.
    Logs ``off_grid``, the root mean square of ``(w - q(w))`` in steps; 0.29 where weights lie evenly between codes.
    Raises ValueError for a model with a kernel whose step is not learnt, for steps_per_execution above 1, and where
    2 strength learning_rate is above 1: weights would be thrown beyond their codes.
    Nagel et al. 2022, arXiv:2203.11086, section 4.2, eq. 5; differs: apart from the optimizer's moments, as AdamW's decay is.

    >>> student.compile("sgd", "sparse_categorical_crossentropy")
    >>> dampen = klb.callbacks.DampenOscillations((0.0, 0.1))
    >>> history = student.fit(images[:16], labels[:16], callbacks=[dampen], verbose=0)
    >>> 0 < history.history["off_grid"][0] < 0.5
    True
    """

    def __init__(self, strength: float | Sequence[float] = (0.0, 0.1)) -> None:
        super().__init__("strength", strength)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """One step of the penalty."""
        self.sync()
        share = 2.0 * self.value(batch) * float(to_numpy(self.model.optimizer.learning_rate))
        if share > 1:
            raise ValueError(
                f"DampenOscillations would move weights by {share:.3g} of the way to their codes: "
                f"strength {self.value(batch):.3g} is too large for this learning rate. Give less."
            )
        for layer in self.layers:
            found = layer.kernel_host.encode(layer.kernel)
            kernel = damped(ops.cast(layer.kernel, "float32"), found.real, found.scale, share)
            layer.kernel.assign(ops.cast(kernel, layer.kernel.dtype))

    def add_logs(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """The distance of the weights from their codes."""
        if logs is not None:
            squares = [_squared_steps(layer) for layer in self.layers]
            logs["off_grid"] = float(np.sqrt(np.mean(np.concatenate(squares))))


def _ends(owner: str, name: str, values: Any) -> tuple[float, float]:
    """A number, or two, as (first, last)."""
    found = [values, values] if isinstance(values, int | float) else list(values)
    if len(found) != 2 or not all(0 <= value < math.inf for value in found):
        raise ValueError(f"{owner} needs {name} as a number of at least 0, or two: (first, last); got {values!r}.")
    return float(found[0]), float(found[1])


def _learnt_layers(owner: str, model: Any) -> list[Any]:
    found = kernel_layers(model)
    if not found:
        raise ValueError(f"Model {model.name!r} has no quantized kernel, so nothing oscillates. Leave {owner} out.")
    for layer in found:
        quantizer = layer.kernel_quantizer
        if not isinstance(quantizer, LearnedStep | LearnedPowerOfTwo | AdjustableThreshold):
            raise ValueError(
                f"{owner} works on grids whose step is learnt (LearnedStep, LearnedPowerOfTwo, AdjustableThreshold), but "
                f"{layer.name!r} has {type(quantizer).__name__}. Give its layers LearnedStep, or leave {owner} out."
            )
    return found


def _threshold(layer: Any) -> np.ndarray:
    """T_0 of the weights, 0 where nothing has fixed it."""
    return to_numpy(layer.kernel_host.state["threshold"])


def _squared_steps(layer: Any) -> np.ndarray:
    """``((w - q(w)) / s)^2`` of the weights inside the grid."""
    kernel, found = to_numpy(layer.kernel), layer.kernel_host.encode(layer.kernel)
    steps = np.broadcast_to(to_numpy(found.scale), kernel.shape)
    away = np.abs(kernel - to_numpy(found.real))
    inside = (steps > 0) & (away <= 0.5 * steps)
    return np.square(away[inside] / steps[inside])
