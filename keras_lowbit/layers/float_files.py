"""Weight files of stock layers, read into the same network written with drop-in layers.

Keras addresses the layers of a model by class and number, "layers/conv2d_1", whatever their names. A QuantConv2D is
"layers/quant_conv2d": in the file of the stock network its entry has another address, and so have those of stock layers
behind it. The numbers of the file are those that all layers would have if each were of its stock class.
"""

import re
import weakref
from collections.abc import Callable, Mapping
from typing import Any

_FLOAT: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def is_float_file(store: Any) -> bool:
    """Whether what Keras hands to `load_own_variables` is a file in which no layer has quantizer state."""
    if isinstance(store, Mapping) or not hasattr(store, "h5_file"):
        return False
    if store not in _FLOAT:
        _FLOAT[store] = not any(re.search("(kernel|bias|output)_host(/|$)", path) for path in _paths(store))
    return _FLOAT[store]


def _paths(store: Any) -> list[str]:
    if hasattr(store, "sharding_config"):
        return list(store.sharding_config["weight_map"])
    found: list[str] = []
    store.h5_file.visit(found.append)
    return found


def turn_to_stock_entry(store: Any, layer: Any) -> None:
    """Let the store of a float file, which is empty at the address of a drop-in layer, stand at that of its stock class.

    Every later address that Keras asks this store for is translated too.
    """
    translator = getattr(store.get, "__self__", None)
    entries = translator if isinstance(translator, StockEntries) else StockEntries(store)
    entries.turn_to(store, layer)


class StockEntries:
    """Translates the addresses of layers of a network with drop-in layers into those of the stock network.

    From the first drop-in layer on it sees them all. How many stock layers of a class came before in a part of the model
    that was begun already is read from its graph.
    """

    def __init__(self, store: Any) -> None:
        self._get = store.get
        self._begun = _address(store)  # of the first drop-in layer: the parts of the model around it are begun
        self._stock: dict[tuple[str, str], int] = {}  # (part, class) -> stock layers of it so far
        self._drop_in: dict[tuple[str, str], int] = {}
        self._moved: dict[str, str] = {}  # address of a layer -> of its entry, which holds its parts too
        store.get = self.get

    def get(self, address: str) -> Any:
        """What the store has for that address, translated if it is that of a stock layer with drop-in layers before it, or
        of a part of a layer that was translated."""
        whole = next((own for own in self._moved if address.startswith(f"{own}/")), None)
        if whole is not None:
            return self._get(self._moved[whole] + address.removeprefix(whole))
        part, kind, number = _parsed(address)
        if self._drop_in.get((part, kind)):
            self._moved[address] = _numbered(part, kind, number + self._drop_in[part, kind])
            address = self._moved[address]
        self._stock[part, kind] = number + 1
        return self._get(address)

    def turn_to(self, store: Any, layer: Any) -> None:
        """Let the store stand at the entry of a drop-in layer, whose own address it was asked for."""
        own = _address(store)
        part, _, _ = _parsed(own)
        kind = snake_case(stock_class(layer).__name__)
        if (part, kind) not in self._stock and f"{self._begun}/".startswith(f"{part}/"):
            self._stock[part, kind] = _stock_before(layer, kind)
        count = self._drop_in.get((part, kind), 0)
        self._moved[own] = _numbered(part, kind, self._stock.get((part, kind), 0) + count)
        self._get(self._moved[own])
        self._drop_in[part, kind] = count + 1


def stock_class(layer: Any) -> type:
    """The class of Keras that a drop-in layer stands in for."""
    return next(cls for cls in type(layer).__mro__ if cls.__module__.startswith("keras."))


def snake_case(name: str) -> str:
    """A class name as Keras writes it into addresses: "DepthwiseConv2D" is "depthwise_conv2d"."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _address(store: Any) -> str:
    # The address that Keras asked for last; no public name has it.
    return store._h5_entry_path or ""


def _parsed(address: str) -> tuple[str, str, int]:
    """Part of the model, class and number of an address: ("layers", "conv2d", 1) of "layers/conv2d_1"."""
    part, _, name = address.rpartition("/")
    kind, _, number = name.rpartition("_")
    return (part, kind, int(number)) if kind and number.isdigit() else (part, name, 0)


def _numbered(part: str, kind: str, number: int) -> str:
    return f"{part}/{kind}" + (f"_{number}" if number else "")


def _stock_before(layer: Any, kind: str) -> int:
    """How many stock layers of a class stand before a layer in its graph; a ValueError if the graph does not say."""
    before, behind = _reached(layer, (_sources,)), _reached(layer, (_readers,))
    beside = [found for key, found in _reached(layer, (_sources, _readers)).items() if key not in before | behind]
    if not layer._inbound_nodes or any(snake_case(type(found).__name__) == kind for found in beside):
        raise ValueError(
            f"The file is one of stock layers, and which of its {stock_class(layer).__name__} layers {layer.name!r} stands "
            "for cannot be told: not all of them stand before or behind it. Load the file into the stock network, then hand "
            "over its weights: keras_lowbit.layers.set_weights(model, stock.get_weights())."
        )
    return sum(snake_case(type(found).__name__) == kind for found in before.values())


def _sources(operation: Any) -> list[Any]:
    return [node.operation for made in operation._inbound_nodes for node in made.parent_nodes]


def _readers(operation: Any) -> list[Any]:
    return [node.operation for node in operation._outbound_nodes]


def _reached(layer: Any, steps: tuple[Callable[[Any], list[Any]], ...]) -> dict[int, Any]:
    """The operations that some steps lead to, again and again, from a layer, by id; without the layer."""
    found: dict[int, Any] = {id(layer): layer}
    waiting = [layer]
    while waiting:
        operation = waiting.pop()
        for near in (near for step in steps for near in step(operation)):
            if id(near) not in found:
                found[id(near)] = near
                waiting.append(near)
    del found[id(layer)]
    return found
