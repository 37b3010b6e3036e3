"""Which calls run in float, nested models included, and which values are float there: without a range of their own.

A call that has no integer form, or that the user leaves out, runs in float. So does a call without weights all of whose
operands are float values, if anything that runs in float reads its result: there is nothing to store as int8 in between,
and a token id, a class or a mask on its way would be rounded.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

from keras_lowbit.convert.analysis import functions
from keras_lowbit.convert.analysis.operations import (
    PROBABILITIES,
    Category,
    category_of,
    function_of,
    is_known,
    stock_kind,
)
from keras_lowbit.keras_graph.calls import Call, CallGraph, nested_inputs
from keras_lowbit.keras_graph.depth import true_of_all

# Calls whose float results are whole numbers, or masks, by meaning.
_WHOLE = set(
    "OneHot MultiHot CategoryEncoding Discretization Hashing HashedCrossing IntegerLookup StringLookup "
    "Floor Ceil Round Rint Trunc Sign FloorDivide Bincount Histogram".split()
)
# Calls that make whole numbers of whole numbers.
_KEEPS_WHOLE = set("Absolute Clip Maximum Minimum Negative ReLU Relu".split())
_READS_IDS = ("Embedding",)  # of reals too
# Reasons. A layer whose weights alone are float reads int8 inputs: a recipe of activations puts ranges there.
NO_RULE = "no rule of the recipe gives it a quantizer"
EXACT = "a function of a value that is float: of its 8-bit codes it could be another"
BETWEEN = "stands between operations in float"
_MOVES = (Category.KEEPS_RANGE, Category.SHARES_RANGE)
_STAYS_INT8 = (
    Category.WEIGHTED,
    Category.FUSED_LOOP,
    Category.RANGE_LAYER,
    Category.NESTED_MODEL,
    Category.FLOAT,
    Category.PIXELS,
)


@dataclasses.dataclass(eq=False)
class Level:
    """One model of the nest with what its calls are.

    categories, reasons: as decided call by call; `settle` changes them.   chosen: calls that the user leaves in float.
    chosen_inputs: keys of such inputs.   inner: the levels of nested calls.   outer: the calls of this model, with the
    levels that they stand in; none for the outermost.   known_ranges: minimum and maximum of tensors, by key, that are known
    before any data are seen.
    """

    graph: CallGraph
    categories: dict[Call, Category]
    reasons: dict[Call, str | None]
    chosen: set[Call] = dataclasses.field(default_factory=set)
    chosen_inputs: set[int] = dataclasses.field(default_factory=set)
    inner: dict[Call, "Level"] = dataclasses.field(default_factory=dict)
    outer: list[tuple["Level", Call]] = dataclasses.field(default_factory=list)
    known_ranges: dict[int, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def is_float(self, key: int) -> bool:
        """Whether a tensor is a float value: an input, or made by a call that runs in float, no range behind it."""
        call = self.graph.producers.get(key)
        if call is None:
            return self._input_is_float(key)
        if self.categories[call] is not Category.NESTED_MODEL:
            return self.categories[call] is Category.FLOAT
        level = self.inner[call]
        result = level.graph.outputs[call.outputs.index(key)]
        return result not in level.graph.inputs and level.is_float(result) and level.stays_float(result)

    def _input_is_float(self, key: int) -> bool:
        if not self.outer:
            return True
        sources = (level.source(call, self.graph.inputs.index(key)) for level, call in self.outer)
        return self.read_in_float(key) and any(level.is_float(source) for level, source in sources)

    def source(self, call: Call, place: int) -> tuple["Level", int]:
        """This level, and the tensor of it that a nested call takes as its input of that place."""
        return self, nested_inputs(call)[place]

    def reads_in_float(self, call: Call, key: int, exactly: bool = False) -> bool:
        """Whether a call takes a tensor as a float value, if it is one.

        exactly: only where it may be an index, a mask or another value by meaning there. A sum or product that runs in
        float for its shape reads reals.
        """
        category = self.categories[call]
        if category is Category.NESTED_MODEL:
            level = self.inner[call]
            places = [place for place, given in enumerate(nested_inputs(call)) if given == key]
            return any(level.read_in_float(level.graph.inputs[place], exactly) for place in places)
        if category is not Category.FLOAT:
            return False
        if exactly:
            unknown = not is_known(call.operation) or stock_kind(call.operation) in _READS_IDS
            return call in self.chosen or self.reasons[call] in (BETWEEN, EXACT) or unknown
        maker = self.graph.producers.get(key)
        behind_float = maker is not None and self.categories[maker] is Category.FLOAT
        return behind_float or self.reasons[call] != NO_RULE

    def read_in_float(self, key: int, exactly: bool = False) -> bool:
        """Whether anything that runs in float reads a tensor, behind the model's outputs too."""
        if any(self.reads_in_float(call, key, exactly) for call in self.graph.consumers(key)):
            return True
        if key in self.graph.inputs:
            return False
        places = [place for place, output in enumerate(self.graph.outputs) if output == key]
        return any(level.read_in_float(call.outputs[at], exactly) for level, call in self.outer for at in places)

    def stays_float(self, key: int) -> bool:
        """Whether an output of this model that is a float value leaves it without a range."""
        chosen = self.graph.producers.get(key) in self.chosen or key in self.chosen_inputs
        return chosen or self.read_in_float(key) or self.is_whole(key)

    def is_final(self, key: int) -> bool:
        """Whether a tensor leaves the outermost model and nothing in it reads it."""
        if key not in self.graph.outputs or self.graph.consumers(key):
            return False
        place = self.graph.outputs.index(key)
        return all(level.is_final(call.outputs[place]) for level, call in self.outer)

    def is_mask(self, key: int) -> bool:
        """Whether a tensor holds zeros and ones by meaning."""
        return true_of_all(key, self._mask)

    def _mask(self, key: int) -> bool | tuple[int, ...]:
        """That of one tensor, or the tensors whose values it has."""
        call = self.graph.producers.get(key)
        if call is None:
            return False
        kind, mode = stock_kind(call.operation), getattr(call.operation, "output_mode", None)
        if kind == "Cast":
            return str(call.tensors[0].dtype) == "bool" or call.inputs[:1]
        if kind in ("OneHot", "MultiHot") or mode in ("one_hot", "multi_hot"):
            return True
        return category_of(call) in _MOVES and call.inputs

    def is_whole(self, key: int) -> bool:
        """Whether a tensor holds whole numbers or a mask by meaning, not by chance."""
        return true_of_all(key, self._whole)

    def _whole(self, key: int) -> bool | tuple[int, ...]:
        """That of one tensor, or the tensors whose values it has."""
        if "float" not in str(self.graph.tensors[key].dtype):
            return True
        call = self.graph.producers.get(key)
        if call is None:
            return False
        kind, dtypes = stock_kind(call.operation), [str(tensor.dtype) for tensor in call.tensors]
        if kind == "Cast":
            return call.inputs[:1]
        if kind in _WHOLE:
            return getattr(call.operation, "output_mode", None) != "tf_idf"
        moves = category_of(call) in _MOVES or kind in _KEEPS_WHOLE or (kind == "Where" and "bool" in dtypes)
        return moves and call.inputs


def settle(top: Level) -> None:
    """Have the calls that stand between float values and float readers run in float, in all levels."""
    levels, able, given = list(_levels(top, set())), _Able(), _Able(dequantizes=False)
    changed = True
    while changed:
        changed = False
        for level in levels:
            for call in reversed(level.graph.calls):
                if able.call(level, call) and _wanted(level, call):
                    level.categories[call] = Category.FLOAT
                    level.reasons[call] = BETWEEN
                    changed = True
                elif given.bends(level, call):
                    level.categories[call] = Category.FLOAT
                    level.reasons[call] = EXACT
                    changed = True


def _levels(level: Level, seen: set[int]) -> Iterator[Level]:
    if id(level) not in seen:
        seen.add(id(level))
        yield level
        for inner in level.inner.values():
            yield from _levels(inner, seen)


def _wanted(level: Level, call: Call) -> bool:
    """Whether a call that could run in float should.

    Of those that move or select values, each whose result a call in float reads, or that takes parts of a value which is
    read in float elsewhere: a range belongs behind the part that is stored, not around all of it. Of those that make whole
    numbers, each whose result a call in float reads. Of others, those whose result goes to an operation that may need it
    exactly. And what leaves the model: whole numbers by meaning, and probabilities, which have no range there.
    """
    moves = level.categories[call] in _MOVES
    if any(level.read_in_float(key, exactly=not (moves or level.is_whole(key))) for key in call.outputs):
        return True
    if level.categories[call] is Category.MASK:
        return False
    if any(level.is_final(key) and (level.is_whole(key) or _is_probability(level, call)) for key in call.outputs):
        return True
    return level.categories[call] is Category.KEEPS_RANGE and any(map(level.read_in_float, call.inputs))


def _is_probability(level: Level, call: Call) -> bool:
    """Whether a call makes a softmax or sigmoid of what runs in float."""
    makers = (level.graph.producers.get(key) for key in call.inputs)
    in_float = any(maker is not None and level.categories[maker] is Category.FLOAT for maker in makers)
    return in_float and function_of(call) in PROBABILITIES


Place = tuple[Level, int]  # a tensor, by its key
Decision = tuple[Callable[[Iterable[bool]], bool], list[Place]]  # any or all of some; (all, []) is yes, (any, []) no


class _Able:
    """Which calls could run in float: they have no weights, and nothing stored as int8 comes into them.

    dequantizes: but for functions of one value, which can be had of any value behind a dequantize.
    """

    def __init__(self, dequantizes: bool = True) -> None:
        self.dequantizes = dequantizes
        self._values: dict[Place, bool] = {}

    def call(self, level: Level, call: Call) -> bool:
        """Whether a call that runs in integers so far could run in float."""
        decides, operands = self._operands(level, call)
        return decides(self._value(*place) for place in operands)

    def bends(self, level: Level, call: Call) -> bool:
        """Whether a call is a function of what could be a float value, but for ``a x + b`` and the root of a normalization."""
        if level.categories[call] is not Category.FUNCTION or not self._value(level, call.inputs[0]):
            return False
        if stock_kind(call.operation) == "InverseRoot":
            return False
        return not functions.is_affine(call)

    def _value(self, level: Level, key: int) -> bool:
        """Whether a tensor could be a float value."""
        asked: list[Place] = [] if (level, key) in self._values else [(level, key)]
        while asked:  # each for the sake of the one before it
            self._values.setdefault(asked[-1], False)  # what runs in a circle of shared models is none
            decides, sources = self._sources(*asked[-1])
            found = [self._values[place] for place in itertools.takewhile(self._values.__contains__, sources)]
            if len(found) < len(sources) and decides(found) is decides([]):
                asked.append(sources[len(found)])
            else:
                self._values[asked.pop()] = decides(found)
        return self._values[level, key]

    def _sources(self, level: Level, key: int) -> Decision:
        """Which tensors decide about one."""
        call = level.graph.producers.get(key)
        if call is None:
            at = level.graph.inputs.index(key)
            return (any, [outer.source(maker, at) for outer, maker in level.outer]) if level.outer else (all, [])
        if level.categories[call] is Category.NESTED_MODEL:
            inner = level.inner[call]
            return all, [(inner, inner.graph.outputs[call.outputs.index(key)])]
        return (all, []) if level.categories[call] is Category.FLOAT else self._operands(level, call)

    def _operands(self, level: Level, call: Call) -> Decision:
        """Which tensors decide about a call that runs in integers so far."""
        if level.categories[call] in _STAYS_INT8 or not call.inputs:
            return any, []
        if self.dequantizes and level.categories[call] is Category.FUNCTION:
            return all, []
        return all, [(level, key) for key in call.inputs]
