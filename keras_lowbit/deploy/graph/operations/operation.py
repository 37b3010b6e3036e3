"""`Operation`: everything that is true of an integer operation, whatever runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numpy.typing import NDArray

from keras_lowbit.deploy.graph.operations.attributes import ACTIVATION, Attribute
from keras_lowbit.deploy.graph.tensors import BIASES, CODES, Node, Range, Tensor
from keras_lowbit.numerics.kernel_layouts import KernelLayout

Shape = tuple[int | None, ...]
Attributes = Mapping[str, Any]

INT32 = 2  # of LiteRT's TensorType
FREE = "free"  # the output has a range of its own
KEEP = "keep"  # the output has the range of the inputs


class Use(NamedTuple):
    """One node with its tensors. batch_size (None: any), weight_type ("int8", "int4", "int2"): of the file it is written to."""

    node: Node
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batch_size: int | None = 1
    weight_type: str = "int8"

    @property
    def attributes(self) -> Attributes:
        """Of the node."""
        return self.node.attributes

    @property
    def codes(self) -> str:
        """The type of its codes, the wider one where two meet; "int8" for one without any."""
        found = [t.dtype for t in (*self.inputs[:1], *self.outputs) if t.dtype in CODES]
        return max(found, key=list(CODES).index, default="int8")

    @property
    def where(self) -> str:
        """The node in messages: operation and name."""
        return f"{self.node.op} {self.node.name!r}"


class Placed(NamedTuple):
    """A tensor of the file that an operator needs beside the graph's.

    shape: its first size is None for a batch that is open.   content: codes of a constant.   is_variable: whether LiteRT keeps
    its codes from one run to the next.
    """

    shape: Shape
    dtype: str
    scale: float | None = None
    zero_point: int = 0
    content: NDArray[Any] | None = None
    is_variable: bool = False


class Builtin(NamedTuple):
    """The LiteRT operator of a node.

    kind: name in LiteRT's schema ("CONV_2D").   version: the lowest that has the int8 kernel, so that an older runtime
    refuses a file that it would compute wrongly.   options: its options table, and `fields` of it; "padding" and
    "fusedActivationFunction" in this library's words.   constants: int32 operands beside the node's inputs, name -> values.
    operands: order of the operands, numbers for inputs, names for constants, None for one left out; by default inputs, then
    constants.   placed: further tensors by name, for this operator and those of the node behind it.
    intermediates: names of such tensors, whose grids the operator uses inside.
    result: of an operator that is not the node's last: the name under which later ones of the node read what it makes, an int32
    tensor of the output's shape, or of `result_shape`; or one of `placed`.
    """

    kind: str
    version: int
    options: str = ""
    fields: Mapping[str, Any] = {}
    constants: Mapping[str, Any] = {}
    operands: tuple[int | str | None, ...] | None = None
    result: str = ""
    result_shape: tuple[int, ...] | None = None
    placed: Mapping[str, Placed] = {}
    intermediates: tuple[str, ...] = ()


class Limit(NamedTuple):
    """A factor of scales that must stay below a bound. Found by trying LiteRT 2.3, reference kernels and XNNPACK delegate.

    A graph beyond it is refused where it is built, because a file must not be able to end the program that loads it.
    """

    what: str
    factor: Callable[[Use], float]
    below: float


@dataclass(frozen=True)
class Operation:
    """One integer operation.

    name: `Node.op`.   infer_shape: attributes and input shapes (batch first, None) -> output shape; ValueError if they do
    not fit.   builtin: a use of it -> its LiteRT operator, or several in running order; None for a float subgraph, which brings
    its own.
    inputs: how many; None for one or more.   range: FREE, KEEP, or by type of codes the `Range` that the output always has.
    takes: its attributes beside the activation.
    reads, writes: data types of inputs (the bias of a weighted operation is int32 or int64) and of the output.
    also_writes: data types of further outputs, which are values and have the shape of the first.
    int16: the lowest version of the LiteRT operator that has a kernel for int16 codes, which the operation then takes wherever
    it takes int8; None where LiteRT has none.   int16_biases: the types of bias that this kernel takes, the faster first.
    converts: whether inputs and output may have codes of different types.
    fuses_activation: whether a relu or relu6 can stand at its end.   kernel: layout of the weights, for operations that
    have any; weights then are input 1 and an int32 bias is input 2.
    parameters: types of the constants behind the first input, for operations whose other inputs all are constants of their own.
    limits: what LiteRT cannot run.   check: further conditions on a use; ValueError with the words.
    """

    name: str
    infer_shape: Callable[[Attributes, Sequence[Shape]], Shape]
    builtin: Callable[[Use], Builtin | list[Builtin]] | None
    inputs: int | None = 1
    range: str | Mapping[str, Range] = KEEP
    takes: Mapping[str, Attribute] = field(default_factory=dict)
    reads: tuple[str, ...] = ("int8",)
    writes: tuple[str, ...] = ("int8",)
    also_writes: tuple[str, ...] = ()
    int16: int | None = None
    int16_biases: tuple[str, ...] = BIASES
    converts: bool = False
    fuses_activation: bool = False
    kernel: KernelLayout | None = None
    parameters: tuple[tuple[str, ...], ...] = ()
    limits: tuple[Limit, ...] = ()
    check: Callable[[Use], None] = field(default=lambda use: None)

    def __post_init__(self) -> None:
        for side in ("reads", "writes") if self.int16 else ():
            if "int8" in (types := getattr(self, side)):
                object.__setattr__(self, side, (*types, "int16"))

    @property
    def weighted(self) -> bool:
        """Whether it has weights and a bias."""
        return self.kernel is not None

    @property
    def attributes(self) -> Mapping[str, Attribute]:
        """Every attribute of a node of it."""
        return {**self.takes, **({"activation": ACTIVATION} if self.fuses_activation else {})}

    def types_of(self, place: int) -> tuple[str, ...]:
        """The types that its input of that place may have."""
        behind = (("int8",), BIASES) if self.weighted else self.parameters
        return behind[place - 1] if place and behind else self.reads

    @property
    def has_parameters(self) -> bool:
        """Whether all inputs but the first are weights."""
        return self.weighted or bool(self.parameters)

    def fixed_range(self, codes: str = "int8") -> Range:
        """The range that the output always has, in codes of that type. TypeError for an operation without one."""
        if isinstance(self.range, str):
            raise TypeError(f"{self.name} has no fixed range, its range is {self.range!r}")
        return self.range.get(codes, self.range["int8"])

    def operators(self, use: Use) -> list[Builtin]:
        """The LiteRT operators of a use in running order, the last of a version that takes its codes."""
        if self.builtin is None:
            raise TypeError(f"{self.name} brings its own operators")
        found = self.builtin(use)
        *before, last = found if isinstance(found, list) else [found]
        version = max(last.version, self.int16 or 0) if use.codes == "int16" else last.version
        return [*before, last._replace(version=version)]


def only_int16(limit: Limit) -> Limit:
    """The same for uses with int16 codes; the others pass."""
    return limit._replace(factor=lambda use: limit.factor(use) if use.codes == "int16" else 0.0)


def scales(use: Use) -> list[float]:
    """The largest scale of every quantized input."""
    return [float(t.scale.max()) for t in use.inputs if t.scale is not None and t.scale.size]


def output_scale(use: Use) -> float:
    """The scale of the first output; NaN for a float one."""
    scale = use.outputs[0].scale
    return float(scale) if scale is not None else float("nan")


def fixed(scale8: float, zero_point: int, scale16: float) -> dict[str, Range]:
    """The range that an operation's output always has, by type of codes."""
    return {"int8": Range(scale8, zero_point), "int16": Range(scale16, 0, "int16")}


def plain(kind: str, version: int, options: str = "", **fields: Any) -> Callable[[Use], Builtin]:
    """The builtin of an operation whose operator is the same for every node."""
    return lambda use: Builtin(kind, version, options, fields)


def unchanged(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    """The shape of the first input."""
    return shapes[0]


def need_rank(shape: Shape, rank: int, what: str) -> None:
    """ValueError unless the shape has that many axes."""
    if len(shape) != rank:
        raise ValueError(f"{what} needs {rank} axes, got shape {shape}")


def image_of(shape: Shape, what: str) -> tuple[int, int, int]:
    """Height, width and channels. ValueError unless there are four axes."""
    need_rank(shape, 4, what)
    return shape[1], shape[2], shape[3]  # type: ignore[return-value]
