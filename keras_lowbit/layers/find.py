"""Finding the quantizers of a model, and the settings that all of them share."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_lowbit.keras_graph.calls import find_layers, fresh_name, layers_of
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.host import QuantizerHost


def hosts(model: Any) -> list[tuple[str, QuantizerHost]]:
    """Every quantizer state layer inside `model`, each once, with its path.

    The path names layer and role, for example ``"block_1/conv/kernel_quantizer"``. A view of a model of another Keras (see
    `keras_lowbit.tfmot`) lists its own, in `quantizer_hosts()`.
    model: a Keras model or layer.
    Returns a list of (path, `QuantizerHost`).

    >>> [path for path, host in klb.layers.hosts(ternary) if path.startswith("first")]
    ['first/kernel_quantizer']
    """
    if hasattr(model, "quantizer_hosts"):
        return model.quantizer_hosts()
    try:
        paths = {id(layer): path for path, layer in layers_of(model)} if isinstance(model, keras.Model) else {}
    except ValueError:  # a Sequential model without an input shape
        paths = {}
    found: dict[str, QuantizerHost] = {}
    for host in find_layers(model, QuantizerHost):
        found[fresh_name(paths.get(id(host), host.path or host.name), found)] = host
    return list(found.items())


@contextlib.contextmanager
def unquantized(*layers: Any) -> Iterator[None]:
    """Inside of it the quantizers of `layers` let everything through."""
    found = [host for layer in layers for host in find_layers(layer, QuantizerHost)]
    before = [host.watch for host in found]
    try:
        for host in found:
            host.watch = lambda real: None
        yield
    finally:
        for host, watch in zip(found, before, strict=True):
            host.watch = watch


def ratio_hosts(model: Any) -> list[QuantizerHost]:
    """The built state layers of the stochastic quantizers of `model`; a ValueError if there are none."""
    found = [host for _, host in hosts(model) if "ratio" in host.quantizer.state_specs((1,), ())]
    if not found:
        raise ValueError(
            f"Model {model.name!r} has no stochastic quantizer, so there is no ratio to set. "
            'Quantize it with an SQ recipe such as "sq-twn", or give its layers kernel_quantizer=Stochastic(Ternary()).'
        )
    if not all(host.built for host in found):
        raise ValueError(
            f"Model {model.name!r} has no variables yet. "
            "Build it first: begin with keras.Input(shape), or call it on a batch."
        )
    return found


def set_ratio(model: Any, ratio: float) -> None:
    """Let every stochastic quantizer of `model` quantize `ratio` (0 to 1) of its units in each training step.

    model: from `quantize_model` with an SQ recipe, or of layers with such quantizers.   ratio: 0 (all float) to 1 (all
    quantized).
    Raises ValueError for a ratio outside [0, 1] and for a model without stochastic quantizers.

    >>> klb.layers.set_ratio(ternary, 0.5)  # in training half of the filters of each layer are ternary
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"A ratio is a fraction of the units in [0, 1], got {ratio!r}. For 50 % write 0.5.")
    for host in ratio_hosts(model):
        host.state["ratio"].assign(float(ratio))


def freeze_ranges(model: Any, frozen: bool = True) -> int:
    """Stop `fit` from changing the activation ranges of `model`, or with ``frozen=False`` let it again.

    model: quantized.   frozen: False lets the ranges follow the data again.
    Returns how many ranges there are; static ones (given as arguments) have nothing to freeze. Raises
    ValueError, and changes nothing, if a range to freeze has seen no data: it would stay open for good.

    >>> klb.freeze_ranges(quantized)
    6
    """
    ranges = [(path, host) for path, host in hosts(model) if "frozen" in host.state]
    unseen = [path for path, host in ranges if float(to_numpy(host.state["count"])) <= 0]
    if frozen and unseen:
        raise ValueError(
            f"{len(unseen)} of {len(ranges)} activation ranges have seen no data, the first is {unseen[0]!r}. "
            "Calibrate the model or train it for some steps before freezing its ranges."
        )
    for _, host in ranges:
        host.state["frozen"].assign(float(frozen))
    return len(ranges)
