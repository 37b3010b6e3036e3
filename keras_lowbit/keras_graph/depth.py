"""Networks of any depth: Keras models built and read without Python's limit of recursion, and walks that need none.

Keras follows the calls of a Functional model by recursion, one frame of Python for each call of the longest way through it, and
a quantized network has more calls than its float one: of a network that Keras just takes, it would refuse the quantized copy.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from typing import Any, TypeVar

import keras
from keras import KerasTensor, tree

READABLE = 10_000  # calls, one behind the other, of a model from a file
T = TypeVar("T", bound=Hashable)


def build_model(inputs: Any, outputs: Any, **options: Any) -> keras.Model:
    """`keras.Model(inputs, outputs, ...)`, however many calls stand between them."""
    with recursion_for(len(nodes_behind(outputs))):
        return keras.Model(inputs, outputs, **options)


def read_model(path: Any, **options: Any) -> Any:
    """`keras.saving.load_model(path, ...)` of a model that `READABLE` calls may stand behind one another in."""
    with recursion_for(READABLE):
        return keras.saving.load_model(path, **options)


def node_of(tensor: KerasTensor) -> Any:
    """Keras' node, a call of an operation, that makes a symbolic tensor."""
    return tensor._keras_history.operation._inbound_nodes[tensor._keras_history.node_index]


def nodes_behind(outputs: Any, known: Iterable[KerasTensor] = ()) -> list[Any]:
    """Keras' nodes that make symbolic tensors, those of the inputs among them, each once, the last one first.

    known: tensors behind which nothing is looked for.
    """
    seen = {id(tensor) for tensor in known}
    waiting = [tensor for tensor in tree.flatten(outputs) if isinstance(tensor, KerasTensor)]
    found: dict[int, Any] = {}
    while waiting:
        tensor = waiting.pop()
        if id(tensor) not in seen:
            seen.add(id(tensor))
            node = node_of(tensor)
            found[id(node)] = node
            waiting += node.arguments.keras_tensors
    return list(found.values())


def true_of_all(start: T, step: Callable[[T], bool | Collection[T]]) -> bool:
    """Whether a thing, and all that it leads to, is true.

    step: says of a thing that it is (True), that it is not (False, or an empty collection), or which others decide.
    """
    waiting, seen = [start], set[T]()
    while waiting:
        thing = waiting.pop()
        if thing in seen:
            continue
        seen.add(thing)
        found = step(thing)
        if not found:
            return False
        if not isinstance(found, bool):
            waiting.extend(found)
    return True


@contextlib.contextmanager
def recursion_for(calls: int) -> Iterator[None]:
    """Inside, Python allows that many frames more than before; for recursion in Python alone, which needs no room in C.

    The limit is one for all threads. So it is the sum of what all that are inside asked for, on top of what it was before the
    first of them: none that leaves takes another's frames away. A limit that someone else sets meanwhile takes its place.
    """
    _LIMIT.change(calls)
    try:
        yield
    finally:
        _LIMIT.change(-calls)


class _Limit:
    """Python's limit of recursion. base: as others set it.   added: frames on top of it.   made: their sum, as set here."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._base = self._added = self._made = 0

    def change(self, frames: int) -> None:
        """Add frames, or take added ones away."""
        with self._lock:
            now = sys.getrecursionlimit()
            self._added += frames
            if now != self._made:  # nothing was added yet, or someone else has set another
                self._base = now
            self._made = self._base + self._added
            sys.setrecursionlimit(self._made)


_LIMIT = _Limit()
