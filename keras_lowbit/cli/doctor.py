"""keras-lowbit doctor: shows what the compiled ops need and whether they run here, and which kernel does.

    keras-lowbit doctor

Exit status 0 if the compiled ops run, 1 if plain TensorFlow stands in for them or nothing runs (the last line says why and
what to do).
"""

import os
import platform

from absl import flags

from keras_lowbit import ops
from keras_lowbit.bench.machine import machine
from keras_lowbit.ops import build, cuda

FLAGS = flags.FlagValues()
MEASURE = "keras-lowbit bench kernels --output kernels.json"


def run(values) -> int:
    """Prints the report; 0 if the compiled ops run, 1 if not."""
    reason = ops.why_not()
    active, error = _active()
    for name, value in [*report(reason), ("active", active)]:
        print(f"{name:<20}{value}")
    if error:
        print(f"\nThe ops do not run: {error}.")
    elif reason:
        print(f"\nThe ops run in plain TensorFlow (same integers, slower): {reason}.")
    else:
        print(
            f"\nHow fast {active.split()[0]} is here: {MEASURE} (minutes; its last line is the row of docs/benchmarks.md)."
        )
    return 1 if reason or error else 0


def report(reason: str) -> list[tuple[str, str]]:
    """(what, value) rows of all but the active kernel; reason: why the library is not used, empty if it is."""
    import tensorflow as tf

    library = ops.library.find()
    info = {} if library is None else build.read_info(library)
    rows = [
        ("Python", platform.python_version()),
        ("TensorFlow", f"{tf.__version__}, {' '.join(build.abi_flags(tf.sysconfig.get_compile_flags()))}"),
        ("compiler", _compiler()),
        ("library", str(library) if library else "none"),
        ("from", ops.library.origin() or "nowhere"),
        ("built for", f"TensorFlow {info.get('tensorflow')}, {info.get('machine')}" if info else "nothing says"),
        ("CPU", f"{machine()['cpu']}, {platform.machine()}"),
        ("CPU features", " ".join(_features()) or "unknown"),
    ]
    if not reason:
        for target in ops.compiled_kernels():
            runs = "runs" if target.supported else "not on this CPU"
            rows.append((f"ISA {target.name}", f"{runs} ({target.needs or 'any CPU'})"))
    found = None if reason else ops.library.loaded_or_none()
    rows += cuda.report(tf.__version__, found and found.cuda)
    return [*rows, ("available", ", ".join(ops.available_kernels()))]


def _active() -> tuple[str, str]:
    """The kernel that runs and "", or "none" and the reason."""
    forced = os.environ.get("KERAS_LOWBIT_KERNEL")
    try:
        return ops.active_kernel() + (f" (KERAS_LOWBIT_KERNEL={forced})" if forced else ""), ""
    except (ValueError, ops.LibraryError) as error:
        return "none", str(error)


def _compiler() -> str:
    try:
        return build.describe(build.find_compiler()).splitlines()[0]
    except build.BuildError as error:
        return str(error)


def _features() -> list[str]:
    """The CPU features that ISA targets ask for, of those the system names."""
    wanted = ("avx2", "avx_vnni", "avx512bw", "avx512_vnni", "amx_tile", "amx_int8", "asimd", "asimddp", "i8mm")
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = [line for line in file if line.startswith(("flags", "Features"))]
    except OSError:
        return []
    words = set(lines[0].split()) if lines else set()
    return [name for name in wanted if name in words]
