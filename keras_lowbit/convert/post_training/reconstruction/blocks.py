"""Blocks of a network: the pieces between points where one tensor carries everything."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from keras_lowbit.convert.analysis.operations import function_of, stock_kind
from keras_lowbit.keras_graph.calls import Call, CallGraph

UNITS = ("block", "layer")


@dataclasses.dataclass(frozen=True)
class Block:
    """Calls that run in this order, the tensors they read from outside, and the one that leaves them.

    inputs, output: keys of the graph.   layers: paths of the calls whose weights are looked for.
    """

    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    output: int
    layers: tuple[str, ...]

    @property
    def name(self) -> str:
        """The first and the last layer."""
        return self.layers[0] if len(self.layers) == 1 else f"{self.layers[0]} .. {self.layers[-1]}"


def find_blocks(graph: CallGraph, trains: Callable[[Call], bool], unit: str = "block") -> list[Block]:
    """The blocks of a graph, in running order; every call with weights that train stands in one.

    "block": residual blocks and inverted residuals, a depthwise convolution with its neighbours, and what is left layer by
    layer, so too what lies behind the last point that carries everything in a network of several outputs.
    "layer": each such call alone, with what reads its output alone.   A softmax or sigmoid at the end is left out.
    trains: whether the weights of a call train.
    """
    if unit == "layer":
        return [_layer_block(graph, call) for call in graph.calls if trains(call)]
    pieces = [piece for piece in _pieces(graph) if piece]
    pieces = _with_followers(pieces, trains)
    pieces = _with_depthwise(pieces, trains)
    found: list[Block] = []
    for piece in pieces:
        outside = [key for call in piece for key in call.outputs if key in graph.outputs]
        parted = len(outside) > 1 or (bool(outside) and outside[0] != piece[-1].outputs[0])
        found += [_layer_block(graph, call) for call in piece if trains(call)] if parted else [_block(piece, trains)]
    return [block for block in found if block.layers]


def ancestors(graph: CallGraph, output: int, inputs: Sequence[int]) -> tuple[Call, ...]:
    """The calls that make `output` of `inputs`, in running order."""
    needed, waiting = set[int](), [output]
    while waiting:
        key = waiting.pop()
        call = graph.producers.get(key)
        if key in inputs or call is None or id(call) in needed:
            continue
        needed.add(id(call))
        waiting.extend(call.inputs)
    return tuple(call for call in graph.calls if id(call) in needed)


def _pieces(graph: CallGraph) -> Iterator[list[Call]]:
    """The calls between points where one tensor is all that is read later."""
    last = {key: place for place, call in enumerate(graph.calls) for key in call.inputs}
    last |= dict.fromkeys(graph.outputs, len(graph.calls))
    live, piece = set(graph.inputs), list[Call]()
    for place, call in enumerate(graph.calls):
        piece.append(call)
        live = {key for key in live.union(call.outputs) if last.get(key, -1) > place}
        if len(live) == 1 and live <= set(call.outputs):
            yield piece
            piece = []
    yield piece


def _with_followers(pieces: list[list[Call]], trains: Callable[[Call], bool]) -> list[list[Call]]:
    """Pieces without weights go to the one before: an activation, a pool, a reshape."""
    found: list[list[Call]] = []
    for piece in pieces:
        if found and not any(trains(call) for call in piece):
            found[-1].extend(piece)
        else:
            found.append(list(piece))
    if len(found) > 1 and not any(trains(call) for call in found[0]):
        found[:2] = [found[0] + found[1]]
    return found


def _with_depthwise(pieces: list[list[Call]], trains: Callable[[Call], bool]) -> list[list[Call]]:
    """A piece that ends in a depthwise convolution goes with its gate (squeeze and excite) and the 1x1 convolution behind it.

    One that begins with a depthwise convolution goes with the 1x1 convolution alone before it, unless that belongs to another.
    """
    found: list[list[Call]] = []
    open_end = False
    for piece, after in zip(pieces, [*pieces[1:], []], strict=True):
        if open_end:
            found[-1].extend(piece)
        else:
            found.append(list(piece))
        kinds, next_kinds = ([_kind(call) for call in each if trains(call)] for each in (piece, after))
        expands = kinds == ["pointwise"] and not open_end and next_kinds[:1] == ["DepthwiseConv2D"]
        ends = _last(found[-1]) == "DepthwiseConv2D" or (_last(piece) == "Multiply" and open_end)
        open_end = expands or (ends and (next_kinds == ["pointwise"] or _last(after) == "Multiply"))
    return found


def _last(piece: Sequence[Call]) -> str:
    """The kind of the last call of a piece with weights or several inputs."""
    found = (_kind(call) for call in reversed(piece) if len(call.inputs) > 1 or hasattr(call.operation, "kernel"))
    return next(found, "")


def _kind(call: Call) -> str:
    kind = stock_kind(call.operation)
    return "pointwise" if kind == "Conv2D" and tuple(call.operation.kernel_size) == (1, 1) else kind


def _block(piece: Sequence[Call], trains: Callable[[Call], bool]) -> Block:
    while len(piece) > 1 and is_probability(piece[-1]):
        piece = piece[:-1]
    made = {key for call in piece for key in call.outputs}
    inputs = tuple(dict.fromkeys(key for call in piece for key in call.inputs if key not in made))
    return Block(tuple(piece), inputs, piece[-1].outputs[0], tuple(call.path for call in piece if trains(call)))


def _layer_block(graph: CallGraph, call: Call) -> Block:
    calls = [call]
    while (reader := graph.only_consumer(calls[-1].outputs[0])) is not None and _follows(reader):
        if is_probability(reader):
            break
        calls.append(reader)
    return Block(tuple(calls), call.inputs, calls[-1].outputs[0], (call.path,))


def is_probability(call: Call) -> bool:
    """Whether a call is a softmax or sigmoid of its own."""
    names = ("softmax", "sigmoid", "log_softmax")
    return not hasattr(call.operation, "kernel") and function_of(call) in names


def _follows(call: Call) -> bool:
    """Whether a call has one input and nothing of its own to train: an activation, the range behind it."""
    return len(call.inputs) == 1 and len(call.outputs) == 1 and not hasattr(call.operation, "kernel")
