"""The register of lowering handlers: class name of a Keras layer or op -> what makes integer operations of its calls."""

from collections.abc import Callable
from typing import TypeVar

from keras_lowbit.deploy.lowering.state import Lowering
from keras_lowbit.keras_graph.calls import Call

# Sets `state.values` of the call's outputs. False: this call runs in float after all.
Handler = Callable[[Lowering, Call], bool]
HANDLERS: dict[str, Handler] = {}
H = TypeVar("H", bound=Handler)


def lowers(*kinds: str) -> Callable[[H], H]:
    """Decorator: the function lowers calls of these stock classes ("Conv2D" stands for QuantConv2D too)."""

    def register(handler: H) -> H:
        HANDLERS.update(dict.fromkeys(kinds, handler))
        return handler

    return register
