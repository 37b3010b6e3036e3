"""What a measurement was made on: no figure without it."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from keras_lowbit.deploy.interpreters import litert_version

# What LiteRT's kernels multiply int8 codes with: flags of /proc/cpuinfo, the fastest first.
_LITERT = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx2": "AVX2",
    "i8mm": "i8mm",
    "asimddp": "dot product",
    "asimd": "NEON",
}


def machine() -> dict[str, Any]:
    """CPU, cores, system and versions of what runs the files, and which instructions LiteRT can use."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "ai-edge-litert": litert_version() or "not installed",
        "litert_instructions": litert_instructions(_cpuinfo()),
        "keras_lowbit": _version("keras_lowbit"),
    }


def litert_instructions(cpuinfo: str) -> str:
    """The fastest instructions that LiteRT's int8 kernels can use on a CPU, in words; cpuinfo: text of /proc/cpuinfo.

    On x86-64 it says whether AMX is among them, which is what makes two machines differ by three times.
    """
    lines = [line for line in cpuinfo.splitlines() if line.startswith(("flags", "Features"))]
    flags = set(lines[0].split()) if lines else set()
    best = next((words for flag, words in _LITERT.items() if flag in flags), "unknown")
    return f"{best}, no AMX" if lines and lines[0].startswith("flags") and "amx_int8" not in flags else best


def _cpu() -> str:
    found = [line.split(":", 1)[1].strip() for line in _cpuinfo().splitlines() if line.startswith("model name")]
    return found[0] if found else platform.processor() or "unknown"


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
