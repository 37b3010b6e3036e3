"""Restarting an optimizer: slots, step count and learning rate as on its first step."""

import contextlib
from typing import Any

import keras

from keras_lowbit.layers.host import to_numpy


def plain_learning_rate(optimizer: Any) -> float | None:
    """The learning rate of `optimizer` if it is a number, None if it is a schedule or a function."""
    rate = innermost(optimizer).get_config().get("learning_rate")
    return float(rate) if isinstance(rate, (int, float)) else None


def reset_optimizer(model: Any) -> None:
    """Return the slots of the model's optimizer to their initial values and its step count to 0.

    The initial values are those of a new optimizer with the same configuration: zeros for momentum, but 0.1
    for Adagrad's accumulators and 1 for Nadam's product. Of a LossScaleOptimizer the inner one is reset.
    Moving averages of weights are left in place: at step count 0 Keras overwrites them with the weights, and
    until then they may hold the model's own weights (`SwapEMAWeights`). The learning rate is left alone.
    An optimizer that was never used is left alone. Raises ValueError for one that cannot be built again.
    """
    optimizer = innermost(model.optimizer)
    if not optimizer.built:
        return
    strategy = getattr(model, "distribute_strategy", None)
    with contextlib.nullcontext() if strategy is None else strategy.scope():
        fresh = _new_like(optimizer, model.trainable_variables)
    averages = "_average" if optimizer.use_ema else None
    for old, new in zip(optimizer.variables, fresh.variables, strict=True):
        if averages is None or not old.name.endswith(averages):
            old.assign(to_numpy(new))


def _new_like(optimizer: Any, variables: list[Any]) -> Any:
    config = optimizer.get_config()
    if plain_learning_rate(optimizer) is None:
        # Any schedule will do, and this one needs no registration to be built from a configuration.
        config["learning_rate"] = keras.optimizers.schedules.ExponentialDecay(1.0, 1, 1.0)
    kind = type(optimizer).__name__
    try:
        fresh = type(optimizer).from_config(config)
        fresh.build(variables)
    except Exception as error:
        raise ValueError(
            f"The {kind} could not be built again from its get_config(), which the reset at the start of a "
            "stage needs. Give it a complete get_config(), or use reset_optimizer=False in the callback."
        ) from error
    if [tuple(slot.shape) for slot in fresh.variables] != [tuple(slot.shape) for slot in optimizer.variables]:
        raise ValueError(
            f"The {kind} holds {len(optimizer.variables)} variables, a new one for this model would hold "
            f"{len(fresh.variables)}: `trainable` was changed after compile(). Call compile() again before "
            "fit()."
        )
    return fresh


def innermost(optimizer: Any) -> Any:
    """The optimizer inside a LossScaleOptimizer, or the optimizer itself; a ValueError for a MultiOptimizer."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return innermost(optimizer.inner_optimizer)
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        raise ValueError(
            "A MultiOptimizer cannot be restarted: Keras gives it no learning rate of its own. "
            "Compile the model with one optimizer, or use reset_optimizer=False in the callback."
        )
    return optimizer
