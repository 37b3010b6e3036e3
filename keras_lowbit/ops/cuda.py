"""The ops' kernels for NVIDIA GPUs: loaded after the CPU's library if they were built; what they use here, or why nothing.

Device placement chooses: an op that TensorFlow places on a GPU runs there, all others on the CPU, with equal integers.
"""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path
from typing import NamedTuple

from keras_lowbit.ops import build, build_cuda


class Device(NamedTuple):
    """A GPU as the kernels see it. name: it and the product that they use; empty: none.   why_not: why there is none."""

    name: str
    why_not: str


def load(version: str) -> ctypes.CDLL | None:
    """Registers the GPU kernels with TensorFlow, whose version is given, if they were built for it; their library.

    A library that does not load is no error: the ops then run on the CPU, and a warning says why.
    """
    path = build_cuda.find(version)
    try:
        return None if path is None else load_file(path)
    except (OSError, RuntimeError, ValueError, AttributeError, LookupError) as error:
        logging.getLogger("keras_lowbit").warning("the ops run on the CPU alone: %s does not load (%s)", path, error)
        return None


def load_file(path: Path) -> ctypes.CDLL:
    """The same for one library file; the CPU's library is loaded before. What TensorFlow and the loader raise."""
    import tensorflow as tf

    try:
        tf.load_library(str(path))
    except tf.errors.OpError as error:
        raise RuntimeError(str(error)) from error
    handle = ctypes.CDLL(str(path))
    handle.KerasLowbitCudaDevice.restype = ctypes.c_char_p
    return handle


def device(handle: ctypes.CDLL) -> Device:
    """The GPU of this process, asked of a library."""
    name, _, why_not = handle.KerasLowbitCudaDevice().decode().partition("\t")
    return Device(name, why_not)


def report(version: str, handle: ctypes.CDLL | None) -> list[tuple[str, str]]:
    """(what, value) rows: compiler, driver, kernels and device.   version: TensorFlow's.   handle: what `load` gave."""
    return [
        ("CUDA compiler", _compiler()),
        ("CUDA driver", build_cuda.driver() or "none is loaded"),
        ("CUDA kernels", _kernels(version)),
        ("GPU", _gpu(handle)),
    ]


def _compiler() -> str:
    try:
        nvcc = build_cuda.find_nvcc()
    except build.BuildError as error:
        return str(error)
    return f"CUDA {nvcc.version}, {nvcc.command}"


def _kernels(version: str) -> str:
    import tensorflow as tf

    own = tf.sysconfig.get_build_info().get("cuda_version")
    theirs = f"TensorFlow's own CUDA is {own}" if own else "this TensorFlow was built without CUDA"
    path = build_cuda.find(version)
    if path is None:
        return f"not built: `{build_cuda.COMMAND}` ({theirs})"
    info = build.read_info(path, build_cuda.INFO)
    return f"{path}, CUDA {info['cuda']}, sm_{' sm_'.join(info['architectures'])} ({theirs})"


def _gpu(handle: ctypes.CDLL | None) -> str:
    if handle is None:
        return "the ops run on the CPU: no CUDA kernels are loaded"
    found = device(handle)
    return found.name or f"the ops run on the CPU: {found.why_not}"
