"""Where a run happened."""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path

import keras

import keras_lowbit as klb


def machine() -> dict:
    """Processor, threads and versions; with JAX also the accelerator."""
    found = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        keras.backend.backend(): importlib.metadata.version(keras.backend.backend()),
        "keras": keras.__version__,
        "keras_lowbit": klb.__version__,
    }
    if keras.backend.backend() == "jax":
        import jax

        found["device"] = jax.devices()[0].device_kind
    return found


def threads() -> int | None:
    """Threads of one operation; on JAX as many as there are cores, which XLA does not say."""
    if keras.backend.backend() != "tensorflow":
        return os.cpu_count()
    import tensorflow as tf

    return tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count()


def processor() -> str:
    """The processor's name as the system gives it, with family and model: "AMD EPYC" alone is many processors."""
    fields = _cpuinfo()
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    return f"{fields['model name']} (family {fields.get('cpu family')}, model {fields.get('model')})"


def has_flag(name: str) -> bool:
    """Whether the system says that the processor has an instruction set, by the name of /proc/cpuinfo."""
    return name in _cpuinfo().get("flags", "").split()


def _cpuinfo() -> dict[str, str]:
    """Fields of the first processor; none where the system has no such file."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    return fields
