"""Reads a .tflite file back: the codes and scales that are really in it, packed ones unpacked."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from keras_lowbit.deploy.graph.unpacking import unpack
from keras_lowbit.deploy.litert.file_tree import file_tree, named
from keras_lowbit.files import FilePath, name_of, read_whole

_BITS = {"INT8": 8, "INT4": 4, "INT2": 2}
_WHOLE = {"INT16": "<i2", "INT32": "<i4", "INT64": "<i8"}


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """A tensor of the file. scale: float32 [n].   data: its bytes, for constants; None for the others."""

    type: str
    shape: tuple[int, ...]
    scale: np.ndarray
    zero_point: np.ndarray
    data: np.ndarray | None

    @property
    def codes(self) -> np.ndarray | None:
        """int8 (unpacked) to int64, of this shape, for constants; None for the others. ValueError where they do not fit it.

        Unpacked when asked for: in a hostile file a million tensors may share their bytes.
        """
        return None if self.data is None else _codes(np.asarray(self.data, np.uint8), self.type, self.shape)


class FileOperator(NamedTuple):
    """An operator of the file. builtin: its name ("CONV_2D").   options: the fields of its option table."""

    builtin: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: dict[str, Any]


class LiteRTFile:
    """The tensors of a .tflite file by name, its operators in running order, and its ends.

    model: the tables as LiteRT's schema unpacks them.   content: the bytes.

    Raises FileNotFoundError for a missing file, ValueError for one that is foreign, cut short or damaged.
    """

    def __init__(self, path: FilePath) -> None:
        content = read_bytes(path)
        self.size = len(content)
        with parsing(path, self.size):
            self._parse(content)

    @classmethod
    def of_bytes(cls, content: bytes) -> "LiteRTFile":
        """The same for a file in memory."""
        made = cls.__new__(cls)
        made.size = len(content)
        made._parse(content)
        return made

    def _parse(self, content: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.content = content
        self.model = model = unpack(schema, "Model", content)
        graph = model.subgraphs[0]
        types, builtins = _names(schema.TensorType), _names(schema.BuiltinOperator)
        names = [tensor.name.decode() for tensor in graph.tensors]
        if len(set(names)) != len(names):
            raise ValueError("two tensors have the same name")
        self.tensors = {
            name: _tensor(tensor, types[tensor.type], model.buffers[tensor.buffer].data)
            for name, tensor in zip(names, graph.tensors, strict=True)
        }
        codes = [builtins[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
        self.operators = [_operator(operator, codes, names) for operator in graph.operators]
        self.inputs, self.outputs = named(graph.inputs, names), named(graph.outputs, names)
        self.tree(names)  # every index leads somewhere

    def tree(self, names: list[str] | None = None) -> dict[str, Any]:
        """All that the file says, see `file_tree`. names: of its tensors, their own by default."""
        return file_tree(self.model, list(self.tensors) if names is None else names)

    @property
    def has_any_batch(self) -> bool:
        """Whether the batch of its inputs may be set when it is run."""
        graph = self.model.subgraphs[0]
        places = [] if graph.inputs is None else graph.inputs
        signatures = [graph.tensors[place].shapeSignature for place in places]
        return any(signature is not None and len(signature) and signature[0] == -1 for signature in signatures)

    def operator_of(self, tensor: str) -> str:
        """Builtin name of the operator that writes a tensor; empty for inputs and constants."""
        return next((op.builtin for op in self.operators if tensor in op.outputs), "")


def constant_bytes(content: bytes) -> dict[str, int]:
    """Name of each constant tensor of a .tflite file -> the bytes of its values; 0 where an earlier one has the same place."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content)
    graph, seen, found = model.Subgraphs(0), {0}, {}
    for tensor in map(graph.Tensors, range(graph.TensorsLength())):
        if size := model.Buffers(tensor.Buffer()).DataLength():
            found[tensor.Name().decode()] = 0 if tensor.Buffer() in seen else size
            seen.add(tensor.Buffer())
    return found


def _names(enumeration: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if not name.startswith("_")}


def _operator(operator: Any, codes: list[str], names: list[str]) -> FileOperator:
    table = operator.builtinOptions
    options = {} if table is None else {k: _plain(v) for k, v in vars(table).items()}
    inputs, outputs = named(operator.inputs, names, optional=True), named(operator.outputs, names)
    return FileOperator(codes[operator.opcodeIndex], tuple(inputs), tuple(outputs), options)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


@contextlib.contextmanager
def parsing(path: FilePath, size: int) -> Iterator[None]:
    """What the readers of the parts of a file raise, whatever damaged bytes lead them to, as one ValueError."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{name_of(path)!r} is damaged or cut short ({size:,} bytes; {type(error).__name__}: {error}). "
            "Export it again: keras_lowbit.export_litert(model, path)."
        ) from error


def read_bytes(path: FilePath) -> bytes:
    """The bytes of a .tflite file. FileNotFoundError if there is none, ValueError if it is something else."""
    try:
        content = read_whole(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"No file at {name_of(path)!r}. Write it first: keras_lowbit.export_litert(model, path)."
        ) from error
    if content[4:8] != b"TFL3":
        raise ValueError(
            f"{name_of(path)!r} is not a .tflite file: expected the identifier b'TFL3', got {content[4:8]!r} in "
            f"{len(content)} bytes. Give a file that keras_lowbit.export_litert wrote."
        )
    return content


def _tensor(tensor: Any, kind: str, data: Any) -> FileTensor:
    quantization = tensor.quantization
    scale = [] if quantization is None or quantization.scale is None else quantization.scale
    zero_point = [] if quantization is None or quantization.zeroPoint is None else quantization.zeroPoint
    shape = tuple(int(size) for size in (tensor.shape if tensor.shape is not None else ()))
    stored = data if data is not None and len(data) else None
    return FileTensor(kind, shape, np.asarray(scale, np.float32), np.asarray(zero_point, np.int64), stored)


def _codes(data: np.ndarray, kind: str, shape: tuple[int, ...]) -> np.ndarray | None:
    if kind in _WHOLE:
        return data.view(_WHOLE[kind]).reshape(shape)
    if kind not in _BITS:
        return None
    bits = _BITS[kind]
    if bits == 8:
        return data.view(np.int8).reshape(shape)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    fields = (data[:, None] >> shifts) & np.uint8(2**bits - 1)
    signed = fields.astype(np.int16).reshape(-1)[: int(np.prod(shape, dtype=np.int64))]
    return np.where(signed >= 2 ** (bits - 1), signed - 2**bits, signed).astype(np.int8).reshape(shape)
