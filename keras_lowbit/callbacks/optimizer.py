"""Restarting an optimizer: slots, step count and learning rate as on its first step."""

import contextlib
import sys
from numbers import Real
from typing import Any

import keras

from keras_lowbit.keras_graph.variables import to_numpy


def plain_learning_rate(optimizer: Any) -> float | None:
    """The learning rate of `optimizer` if it is a number, None if it is a schedule or a function.

    optimizer: of Keras, or of tf_keras.
    Returns a float, or None.

    >>> round(klb.callbacks.plain_learning_rate(keras.optimizers.SGD(0.1)), 6)
    0.1
    """
    rate = innermost(optimizer).get_config().get("learning_rate")
    return float(rate) if isinstance(rate, Real) else None


def reset_optimizer(model: Any) -> None:
    """Return the slots of the model's optimizer to their initial values and its step count to 0.

    The initial values are those of a new optimizer with the same configuration: zeros for momentum, but 0.1
    for Adagrad's accumulators and 1 for Nadam's product. Of a LossScaleOptimizer the inner one is reset.
    Moving averages of weights are left in place: at step count 0 Keras overwrites them with the weights, and
    until then they may hold the model's own weights (`SwapEMAWeights`). The learning rate is left alone.
    An optimizer that was never used is left alone. Raises ValueError for one that cannot be built again.
    Optimizers of tf_keras are taken as they are, for `keras_lowbit.tfmot`.
    model: compiled.

    >>> klb.callbacks.reset_optimizer(model)
    >>> int(model.optimizer.iterations)
    0
    """
    optimizer = innermost(model.optimizer)
    if not (optimizer.built if hasattr(optimizer, "built") else int(optimizer.iterations)):  # tf_keras has no `built`
        return
    strategy = getattr(model, "distribute_strategy", None)
    with contextlib.nullcontext() if strategy is None else strategy.scope():
        fresh = _new_like(optimizer, model.trainable_variables)
    for old, new in zip(_variables(optimizer), _variables(fresh), strict=True):
        if not _is_average(optimizer, old):
            old.assign(to_numpy(new))


def _variables(optimizer: Any) -> list[Any]:
    found = optimizer.variables
    return list(found() if callable(found) else found)  # a method in tf_keras


def _is_average(optimizer: Any, slot: Any) -> bool:
    """Whether a slot is a moving average of a weight: "conv_kernel_average", in tf_keras "SGD/average/conv/kernel:0"."""
    if not getattr(optimizer, "use_ema", False):
        return False
    return slot.name.endswith("_average") or "average" in slot.name.split("/")[:2]


def _keras_of(optimizer: Any) -> Any:
    """The Keras that an optimizer belongs to; tf_keras is imported where there is one of its optimizers."""
    packages = {cls.__module__.partition(".")[0] for cls in type(optimizer).__mro__}
    return sys.modules["tf_keras"] if "tf_keras" in packages else keras


def _new_like(optimizer: Any, variables: list[Any]) -> Any:
    config = optimizer.get_config()
    if plain_learning_rate(optimizer) is None:
        # Any schedule will do, and this one needs no registration to be built from a configuration.
        config["learning_rate"] = _keras_of(optimizer).optimizers.schedules.ExponentialDecay(1.0, 1, 1.0)
    kind = type(optimizer).__name__
    try:
        fresh = type(optimizer).from_config(config)
        build = (
            fresh.build if hasattr(fresh, "build") else fresh._create_all_weights
        )  # the latter: tf_keras' legacy ones
        build(variables)
    except Exception as error:
        raise ValueError(
            f"The {kind} could not be built again from its get_config(), which the reset at the start of a "
            "stage needs. Give it a complete get_config(), or use reset_optimizer=False in the callback."
        ) from error
    if [tuple(slot.shape) for slot in _variables(fresh)] != [tuple(slot.shape) for slot in _variables(optimizer)]:
        raise ValueError(
            f"The {kind} holds {len(_variables(optimizer))} variables, a new one for this model would hold "
            f"{len(_variables(fresh))}: `trainable` was changed after compile(). "
            "Call compile() again before fit()."
        )
    return fresh


def innermost(optimizer: Any) -> Any:
    """The optimizer inside a LossScaleOptimizer, or the optimizer itself; a ValueError for a MultiOptimizer."""
    if hasattr(optimizer, "inner_optimizer"):
        return innermost(optimizer.inner_optimizer)
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        raise ValueError(
            "A MultiOptimizer cannot be restarted: Keras gives it no learning rate of its own. "
            "Compile the model with one optimizer, or use reset_optimizer=False in the callback."
        )
    return optimizer
