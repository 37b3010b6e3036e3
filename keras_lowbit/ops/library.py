"""The compiled op library: found, or compiled, and loaded on first use; if that cannot be, why, in one sentence, once.

Environment: `KERAS_LOWBIT_KERNEL` forces one ISA target by name, or "tf_fallback"; `KERAS_LOWBIT_STRICT=1` makes falling
back an error; `KERAS_LOWBIT_LIBRARY` names the library file; `KERAS_LOWBIT_BUILD=0` forbids to compile it.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from keras_lowbit.ops import build, cuda, library_file

TF_FALLBACK = "tf_fallback"
# Ops of the library -> what TensorFlow calls their wrappers, behind "keras_lowbit_".
WRAPPERS = {
    "PackedConv2D": "packed_conv2d",
    "PackedDense": "packed_dense",
    "DepthwiseConv2D": "depthwise_conv2d",
    "MaxPool2D": "max_pool2d",
    "LookUp": "look_up",
    "LookUpPair": "look_up_pair",
}
OP_NAMES = tuple(WRAPPERS)
# Plain C functions of the library, behind "KerasLowbit": those that give text, and those that give a number.
TEXTS, NUMBERS = ("CompiledKernels", "ActiveKernel", "ForceKernel"), ("PeakGmacs", "PeakFloatGmacs", "ReadGigabytes")


class LibraryError(RuntimeError):
    """The compiled op library cannot be used; the message says why and what to do.

    >>> try:
    ...     path = klb.ops.load()
    ... except klb.ops.LibraryError as error:
    ...     print(error)
    """


class Loaded(NamedTuple):
    """A loaded library. ops: TensorFlow's module of wrappers.   handle: for the plain C functions.   path: its file.

    cuda: the library of the GPU kernels; None if they were not built.
    """

    ops: Any
    handle: ctypes.CDLL
    path: Path
    cuda: ctypes.CDLL | None


class IsaTarget(NamedTuple):
    """An instruction set that the kernels are compiled for. needs: CPU features.   supported: this CPU has them."""

    name: str
    needs: str
    supported: bool


class _State:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.loaded: Loaded | None = None
        self.failure: LibraryError | None = None
        self.told = False
        self.forced = ""  # the kernel that `using_kernel` forces


_STATE = _State()


def load() -> Path:
    """Loads the library and registers its ops, once; its path. A process that serves a SavedModel calls this first.

    Where none fits this TensorFlow, it is compiled first, in about half a minute. Returns its path.
    Raises LibraryError if that cannot be or is forbidden, or the library does not load.

    >>> path = klb.ops.load() if not klb.ops.why_not() else None
    """
    return _load().path


def loaded_or_none() -> Loaded | None:
    """The library for a call that is being made or traced; None where plain TensorFlow stands in.

    Says once why it does, unless it was asked for. LibraryError under `KERAS_LOWBIT_STRICT=1`.
    """
    if _fallback_wanted():
        return None
    try:
        return _load()
    except LibraryError as error:
        if os.environ.get("KERAS_LOWBIT_STRICT", "") not in ("", "0"):
            raise
        with _STATE.lock:
            if not _STATE.told:
                _STATE.told = True
                logging.getLogger("keras_lowbit").warning("keras_lowbit runs its ops in plain TensorFlow: %s", error)
        return None


def find() -> Path | None:
    """The library file that `load` takes, whether it fits or not; None if there is none."""
    return library_file.find(*_tensorflow())


def origin() -> str:
    """Where the file that `find` gives comes from, in words; "" without one."""
    path, (version, _) = find(), _tensorflow()
    return library_file.origin(path, version) if path else ""


def why_not() -> str:
    """Why the compiled library is not used; empty if it is.

    Returns a sentence, or "".

    >>> klb.ops.why_not() == "" or klb.ops.active_kernel() == "tf_fallback"
    True
    """
    if _fallback_wanted():
        return "the fallback in plain TensorFlow was asked for by name"
    try:
        _load()
    except LibraryError as error:
        return str(error)
    return ""


def available_kernels() -> list[str]:
    """ISA targets that run on this CPU, best first; the last is "tf_fallback", in plain TensorFlow.

    Returns a list of str.

    >>> klb.ops.available_kernels()[-1]
    'tf_fallback'
    """
    try:
        names = [target.name for target in compiled_kernels() if target.supported]
    except LibraryError:
        names = []
    return [*names, TF_FALLBACK]


def compiled_kernels() -> list[IsaTarget]:
    """All ISA targets in the library, best first. LibraryError if it cannot be loaded.

    Returns a list of `IsaTarget`: name, and whether this CPU runs it.

    >>> if not klb.ops.why_not():
    ...     kernels = klb.ops.compiled_kernels()
    """
    lines = _text(_load().handle.KerasLowbitCompiledKernels()).splitlines()
    return [IsaTarget(name, needs, supported == "1") for name, needs, supported in (line.split("\t") for line in lines)]


def active_kernel() -> str:
    """The kernel that runs: forced by `using_kernel` or `KERAS_LOWBIT_KERNEL`, else the first available.

    Returns the name of an ISA target, or "tf_fallback".
    ValueError for a forced name that is unknown or that this CPU cannot run, with the choices.

    >>> klb.ops.active_kernel() in klb.ops.available_kernels()
    True
    """
    loaded = loaded_or_none()
    if loaded is None:
        wanted = _wanted() or TF_FALLBACK
        if wanted != TF_FALLBACK:
            raise ValueError(f"KERAS_LOWBIT_KERNEL={wanted!r}, but there is no compiled library: {why_not()}")
        return TF_FALLBACK
    name, _, error = _text(loaded.handle.KerasLowbitActiveKernel()).partition("\t")
    if error:
        raise ValueError(error)
    return name


class Ceilings(NamedTuple):
    """What one thread of this machine can do at most, measured now; None where no loop is known for the CPU.

    products, floats: 10**9 products of int8 codes, and float32 fused multiply-adds, a second.   reads: GB a second of 256 MB.
    instruction: the fastest that multiplies int8 codes here, which `products` is of.
    """

    products: float | None
    floats: float | None
    reads: float
    instruction: str


def ceilings() -> Ceilings | None:
    """This machine's ceilings from loops in the compiled library, half a second; None without the library.

    MemoryError where the 256 MB to be read do not fit.
    Returns a `Ceilings`: products, floats, reads; or None.

    >>> found = klb.ops.ceilings() if klb.ops.why_not() == "" else None
    """
    found = loaded_or_none()
    if found is None:
        return None
    instruction = ctypes.c_char_p()
    products, floats = (
        found.handle.KerasLowbitPeakGmacs(ctypes.byref(instruction)),
        found.handle.KerasLowbitPeakFloatGmacs(),
    )
    reads = found.handle.KerasLowbitReadGigabytes(256 << 20)
    if not reads:
        raise MemoryError("no 256 MB of memory whose reading could be timed: free some")
    return Ceilings(products or None, floats or None, reads, _text(instruction.value or b""))


@contextlib.contextmanager
def using_kernel(name: str) -> Iterator[None]:
    """Forces an ISA target by name inside a `with`; "tf_fallback" is decided when a call is made or traced.

    For tests and measurements: it counts for all threads; behind it, what counted before. ValueError for an unknown name,
    with the choices.
    name: one of `available_kernels()`.
    Returns a context manager.

    >>> with klb.ops.using_kernel("tf_fallback"):
    ...     klb.ops.active_kernel()
    'tf_fallback'
    """
    before = _STATE.forced
    try:
        _force(name)
        yield
    finally:
        _force(before)


def _force(name: str) -> None:
    """An ISA target, "tf_fallback", or "" for the first that is available."""
    target = "" if name == TF_FALLBACK else name
    if target or _STATE.loaded is not None:
        error = _text(_load().handle.KerasLowbitForceKernel(target.encode()))
        if error:
            raise ValueError(error)
    _STATE.forced = name


def _wanted() -> str:
    """The kernel asked for by name, the innermost first; "" if none is."""
    return _STATE.forced or os.environ.get("KERAS_LOWBIT_KERNEL", "")


def _fallback_wanted() -> bool:
    return _wanted() == TF_FALLBACK


def _load() -> Loaded:
    with _STATE.lock:
        if _STATE.failure is not None:
            raise _STATE.failure
        if _STATE.loaded is None:
            import tensorflow as tf

            find_and_open = tf.autograph.experimental.do_not_convert(lambda: _open(_fitting()))
            try:
                _STATE.loaded = find_and_open()  # a function may be in the middle of being traced
            except LibraryError as error:
                _STATE.failure = error
                raise
        return _STATE.loaded


def _fitting() -> Path:
    """The library file for this TensorFlow, compiled now if there is none."""
    path, named = find(), os.environ.get(library_file.NAMED)
    if path is None and named:
        raise LibraryError(
            f"{library_file.NAMED}={named!r} is no file; correct it, or unset it and run `{build.COMMAND}`"
        )
    problem = "the op library is not built" if path is None else build.mismatch(path, *_tensorflow())
    if path is not None and not problem:
        return path
    if named:
        raise LibraryError(
            f"{problem}; unset {library_file.NAMED}, which names it, and run `{build.COMMAND}` to build it again"
        )
    return _compiled(problem)


def _compiled(problem: str) -> Path:
    """The library, compiled now; problem: why the one that is there, if one is, does not do."""
    import tensorflow as tf

    flags = {"compile": tf.sysconfig.get_compile_flags(), "link": tf.sysconfig.get_link_flags()}
    try:
        return library_file.compiled({"version": tf.__version__, **flags})
    except build.BuildError as error:
        raise LibraryError(f"{problem}, and {error}; run `{build.COMMAND}` (it needs a C++17 compiler)") from error


def _open(path: Path) -> Loaded:
    import tensorflow as tf

    try:
        ops, handle = tf.load_op_library(str(path)), ctypes.CDLL(str(path))
        _declare(handle)
        missing = [name for name, wrapper in WRAPPERS.items() if not hasattr(ops, f"keras_lowbit_{wrapper}")]
        if missing:
            raise AttributeError(f"no op {', '.join(missing)}")
        for name in OP_NAMES:
            tf.no_gradient(f"KerasLowbit>{name}")  # integers in: nothing to differentiate
    except (tf.errors.OpError, OSError, RuntimeError, ValueError, AttributeError, LookupError) as error:
        raise LibraryError(f"{path} does not load ({error}); run `{build.COMMAND} --force`") from error
    return Loaded(ops, handle, path, cuda.load(tf.__version__))


def _declare(handle: ctypes.CDLL) -> None:
    """Types of the plain C functions. AttributeError if one is missing."""
    for function in TEXTS:
        getattr(handle, f"KerasLowbit{function}").restype = ctypes.c_char_p
    for function in NUMBERS:
        getattr(handle, f"KerasLowbit{function}").restype = ctypes.c_double
    handle.KerasLowbitForceKernel.argtypes = [ctypes.c_char_p]
    handle.KerasLowbitPeakGmacs.argtypes = [ctypes.POINTER(ctypes.c_char_p)]
    handle.KerasLowbitReadGigabytes.argtypes = [ctypes.c_int64]


def _tensorflow() -> tuple[str, list[str]]:
    """Version and ABI flags of the installed TensorFlow."""
    import tensorflow as tf

    return tf.__version__, build.abi_flags(tf.sysconfig.get_compile_flags())


def _text(value: bytes) -> str:
    return value.decode()
