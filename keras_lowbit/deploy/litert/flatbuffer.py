"""The LiteRT file as a flatbuffer: tensors, buffers and operators, with everything that is equal stored once.

Written through the schema module that `ai_edge_litert` ships, so the structure is LiteRT's own. The only
thing done below that level is `SharingBuilder`: equal vectors get one place in the file, and buffers start at
multiples of 16 bytes as the format asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

ALIGNMENT = 16
LARGEST_FILE = 2**31 - 1


class SharingBuilder(flatbuffers.Builder):
    """A flatbuffer builder that stores equal numeric vectors once.

    An int64 zero-point vector costs 8 bytes a channel, twice (kernel and bias), and is all zeros: sharing
    them takes MobileNetV2 from 28 to 12 bytes a channel. Tables keep their own identity; only vectors of
    numbers are shared.
    """

    head: int

    def __init__(self, initial_size: int) -> None:
        super().__init__(initial_size)
        self._written: dict[tuple[str, bytes], int] = {}  # by type and digest

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        """Offset of a vector equal to `x`, written now or before. uint8 vectors (buffers) are aligned to 16
        bytes."""
        content = np.ascontiguousarray(x)
        key = (x.dtype.str, hashlib.sha256(content.data).digest())  # not the bytes: they are all of the file
        if key not in self._written:
            self._written[key] = self._bytes(content) if x.dtype == np.uint8 else super().CreateNumpyVector(x)
        return self._written[key]

    def _bytes(self, content: np.ndarray) -> int:
        self.StartVector(1, content.size, ALIGNMENT)
        self.head = self.head - content.size
        self.Bytes[self.head : self.head + content.size] = content.reshape(-1).data
        return self.EndVector()


class FileBuilder:
    """Collects one subgraph and packs it into the bytes of a .tflite file."""

    def __init__(self, description: str) -> None:
        self.graph = schema.SubGraphT(tensors=[], inputs=[], outputs=[], operators=[], name="main")
        self.model = schema.ModelT(
            version=3,
            operatorCodes=[],
            subgraphs=[self.graph],
            description=description,
            buffers=[schema.BufferT()],
            metadata=[],
            signatureDefs=[],
        )
        self._codes: dict[tuple[int, int, Any], int] = {}
        self._buffers: dict[bytes, int] = {b"": 0}

    def buffer(self, content: bytes) -> int:
        """Index of a buffer with this content; equal buffers are one, empty content is buffer 0."""
        if content not in self._buffers:
            self._buffers[content] = len(self.model.buffers)
            self.model.buffers.append(schema.BufferT(data=np.frombuffer(content, np.uint8)))
        return self._buffers[content]

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        scale: np.ndarray | None = None,
        zero_point: int = 0,
        axis: int = 0,
        content: bytes = b"",
        any_batch: bool = False,
        is_variable: bool = False,
    ) -> int:
        """Index of a new tensor. dtype: a LiteRT type name ("INT8", "INT2", ...). scale: () or (channels
        along `axis`,). any_batch: whether the first size may be set when the file is run.
        is_variable: whether LiteRT keeps its values from one run to the next."""
        grid = None
        if scale is not None:
            scales = np.asarray(scale, np.float32).reshape(-1)
            grid = schema.QuantizationParametersT(
                scale=scales,
                zeroPoint=np.full(scales.shape, zero_point, np.int64),
                quantizedDimension=axis if np.ndim(scale) else 0,
            )
        return self.add_tensor(
            schema.TensorT(
                shape=np.array(shape, np.int32),
                type=getattr(schema.TensorType, dtype),
                buffer=self.buffer(content),
                name=name,
                quantization=grid,
                hasRank=True,
                shapeSignature=np.array([-1, *shape[1:]], np.int32) if any_batch else None,
                isVariable=is_variable,
            )
        )

    def add_tensor(self, tensor: Any) -> int:
        """Index of a tensor made elsewhere."""
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def integers(self, name: str, values: Any) -> int:
        """Index of a new constant int32 tensor (axes, paddings, shapes)."""
        array = np.array(values, "<i4")
        return self.tensor(name, array.shape, "INT32", content=array.tobytes())

    def operator(
        self,
        kind: str,
        version: int,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: str = "",
        intermediates: Sequence[int] = (),
        **fields: Any,
    ) -> None:
        """Append an operator. kind: builtin name ("CONV_2D").   options: its table ("Conv2DOptions") and that
        table's fields.   intermediates: tensors whose grids it uses inside."""
        code = self.code(getattr(schema.BuiltinOperator, kind), version)
        table = getattr(schema, f"{options}T")(**fields) if options else None
        self.graph.operators.append(
            schema.OperatorT(
                opcodeIndex=code,
                inputs=np.array(inputs, np.int32),
                outputs=np.array(outputs, np.int32),
                builtinOptionsType=getattr(schema.BuiltinOptions, options) if options else 0,
                builtinOptions=table,
                intermediates=np.array(intermediates, np.int32) if intermediates else None,
            )
        )

    def code(self, builtin: int, version: int, custom: Any = None) -> int:
        """Index of the operator code, added when first used."""
        key = (builtin, version, custom)
        if key not in self._codes:
            self._codes[key] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(
                schema.OperatorCodeT(
                    deprecatedBuiltinCode=min(builtin, 127), customCode=custom, version=version, builtinCode=builtin
                )
            )
        return self._codes[key]

    def metadata(self, name: str, content: bytes) -> None:
        """Add a model metadata entry."""
        self.model.metadata.append(schema.MetadataT(name=name, buffer=self.buffer(content)))

    def signature(self, inputs: dict[str, int], outputs: dict[str, int]) -> None:
        """Set the subgraph's inputs and outputs and name them in the signature `serving_default`."""
        self.graph.inputs = np.array(list(inputs.values()), np.int32)
        self.graph.outputs = np.array(list(outputs.values()), np.int32)
        named = [[schema.TensorMapT(name=n, tensorIndex=i) for n, i in side.items()] for side in (inputs, outputs)]
        self.model.signatureDefs = [
            schema.SignatureDefT(inputs=named[0], outputs=named[1], signatureKey="serving_default", subgraphIndex=0)
        ]

    def pack(self) -> bytes:
        """The file, once. ValueError beyond 2 GB, the largest that a flatbuffer can address."""
        size = sum(b.data.size for b in self.model.buffers if b.data is not None)
        if size > LARGEST_FILE:
            raise ValueError(
                f"the constants take {size:,} bytes: a LiteRT file holds at most {LARGEST_FILE:,}. "
                "Split the model, or use weights='int4' or 'int2'"
            )
        builder = SharingBuilder(size + self._size_of_tables())
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        self.model.buffers = []
        self._buffers.clear()  # all of it is in the builder now, and will be in the file
        return bytes(memoryview(builder.Bytes)[builder.head :])

    def _size_of_tables(self) -> int:
        """About as many bytes as the tables take, rather more: a builder that is too small doubles."""
        grids = [tensor.quantization for tensor in self.graph.tensors if tensor.quantization is not None]
        scales = sum(np.asarray(grid.scale).nbytes for grid in grids if grid.scale is not None)
        return 65536 + scales + 512 * (len(self.graph.tensors) + len(self.graph.operators))
