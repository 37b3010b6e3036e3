"""Reads a .tflite file back: the codes and scales that are really in it, packed ones unpacked."""

import os
from typing import Any, NamedTuple

import numpy as np

_BITS = {"INT8": 8, "INT4": 4, "INT2": 2}


class FileTensor(NamedTuple):
    """A tensor of the file. codes: int8 (unpacked) or int32 for constants, else None.   scale: float32 [n]."""

    type: str
    shape: tuple[int, ...]
    scale: np.ndarray
    zero_point: np.ndarray
    codes: np.ndarray | None


class LiteRTFile:
    """The tensors of a .tflite file by name, and its operators as (builtin, output names)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from ai_edge_litert import schema_py_generated as schema

        content = _read(path)
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        graph = model.subgraphs[0]
        types = {value: name for name, value in vars(schema.TensorType).items() if not name.startswith("_")}
        builtins = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
        names = [tensor.name.decode() for tensor in graph.tensors]
        self.tensors = {
            name: _tensor(tensor, types[tensor.type], model.buffers[tensor.buffer].data)
            for name, tensor in zip(names, graph.tensors, strict=True)
        }
        codes = [builtins[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
        self.operators = [(codes[op.opcodeIndex], [names[i] for i in op.outputs]) for op in graph.operators]
        self.size = len(content)


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as stream:
            content = stream.read()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"No file at {os.fspath(path)!r}. Write it first: keras_lowbit.export_litert(model, path)."
        ) from error
    if content[4:8] != b"TFL3":
        raise ValueError(
            f"{os.fspath(path)!r} is not a .tflite file: expected the identifier b'TFL3', got {content[4:8]!r} in "
            f"{len(content)} bytes."
        )
    return content


def _tensor(tensor: Any, kind: str, data: Any) -> FileTensor:
    quantization = tensor.quantization
    scale = [] if quantization is None or quantization.scale is None else quantization.scale
    zero_point = [] if quantization is None or quantization.zeroPoint is None else quantization.zeroPoint
    shape = tuple(int(size) for size in (tensor.shape if tensor.shape is not None else ()))
    codes = None
    if data is not None and len(data):
        codes = _codes(np.asarray(data, np.uint8), kind, shape)
    return FileTensor(kind, shape, np.asarray(scale, np.float32), np.asarray(zero_point, np.int64), codes)


def _codes(data: np.ndarray, kind: str, shape: tuple[int, ...]) -> np.ndarray | None:
    if kind == "INT32":
        return data.view("<i4").reshape(shape)
    if kind not in _BITS:
        return None
    bits = _BITS[kind]
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    fields = (data[:, None] >> shifts) & np.uint8(2**bits - 1)
    signed = fields.astype(np.int16).reshape(-1)[: int(np.prod(shape, dtype=np.int64))]
    return np.where(signed >= 2 ** (bits - 1), signed - 2**bits, signed).astype(np.int8).reshape(shape)
