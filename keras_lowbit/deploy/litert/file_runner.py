"""Runs a .tflite file with LiteRT: reals in, reals or raw tensors out, batch by batch."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_lowbit.deploy.interpreters import make_interpreter, open_interpreter
from keras_lowbit.deploy.litert.ends import FINER
from keras_lowbit.files import FilePath
from keras_lowbit.numerics.requantization import quantize_real


class FileRunner:
    """One interpreter. reference: LiteRT's reference kernels, every tensor kept; else the default XNNPACK delegate.

    spare_reference: the built-in kernels in place of the reference ones, for data that would end the process there.
    content: of the file, if it has been read.
    resolver: the kernels it really runs on, a key of `RESOLVERS`.
    """

    def __init__(
        self,
        path: FilePath,
        reference: bool = False,
        threads: int = 1,
        spare_reference: bool = False,
        content: bytes = b"",
    ) -> None:
        source = {"model_path": path, "model_content": content}
        if reference and spare_reference:
            self.interpreter, self.resolver = make_interpreter("built-in", threads, True, **source), "built-in"
        else:
            self.interpreter, self.resolver = open_interpreter(reference, threads, keep_all=reference, **source)
        # Our writer lists both in the order of the graph, which is the model's.
        self.inputs = self.interpreter.get_input_details()
        kinds = {detail["name"]: detail["dtype"] for detail in self.interpreter.get_tensor_details()}
        self.finer = [kinds.get(detail["name"].removesuffix("/int16")) is np.int8 for detail in self.inputs]
        self.outputs = self.interpreter.get_output_details()
        self.batch_size = int(self.inputs[0]["shape"][0])

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Real outputs, in the model's order, for real inputs [n, ...] in the model's order."""
        found = [self._invoke(chunk) for chunk in self._chunks(arrays)]
        count = len(arrays[0])
        return [np.concatenate(parts)[:count] for parts in zip(*found, strict=True)]

    def all_tensors(self, arrays: list[np.ndarray], names: set[str]) -> dict[str, np.ndarray]:
        """Raw values (codes, or floats of float tensors) of named tensors for real inputs."""
        by_name = {d["name"]: d["index"] for d in self.interpreter.get_tensor_details()}
        found: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for chunk in self._chunks(arrays):
            self._invoke(chunk)
            for name in names:
                found[name].append(self.interpreter.get_tensor(by_name[name]))
        return {name: np.concatenate(parts)[: len(arrays[0])] for name, parts in found.items()}

    def _chunks(self, arrays: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
        size = self.batch_size
        for start in range(0, len(arrays[0]), size):
            chunk = [array[start : start + size] for array in arrays]
            short = size - len(chunk[0])
            yield [np.concatenate([part, part[-1:].repeat(short, 0)]) if short else part for part in chunk]

    def _invoke(self, chunk: list[np.ndarray]) -> list[np.ndarray]:
        for detail, value, finer in zip(self.inputs, chunk, self.finer, strict=True):
            if value.size != int(np.prod(detail["shape"])):
                raise ValueError(
                    f"Input {detail['name']!r} of the file takes {tuple(int(d) for d in detail['shape'])}, got samples of "
                    f"shape {value.shape[1:]}. Resize the data, or export with input_shapes= of the data."
                )
            self.interpreter.set_tensor(detail["index"], _encode(value, detail, finer))
        self.interpreter.invoke()
        return [_decode(self.interpreter.get_tensor(d["index"]), d) for d in self.outputs]


def _encode(real: np.ndarray, detail: Any, finer: bool) -> np.ndarray:
    """Codes of the file's input. finer: int16 ones in front of an int8 tensor, whose codes they then are: what such a file does
    with those between is QUANTIZE's own."""
    dtype, (scale, zero_point) = detail["dtype"], detail["quantization"]
    if not scale:
        codes = real
    elif dtype is np.int16 and finer:
        codes = quantize_real(real, np.float32(scale * FINER), 0, (-255, 255)) * FINER
    else:
        kind = np.iinfo(dtype)
        codes = quantize_real(real, np.float32(scale), zero_point, (kind.min, kind.max))
    return codes.astype(dtype).reshape(detail["shape"])


def _decode(value: np.ndarray, detail: Any) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    if not scale:
        return value.copy()
    return (value.astype(np.float32) - zero_point) * np.float32(scale)
