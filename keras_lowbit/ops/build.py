"""Builds the op library against the installed TensorFlow: `python -m keras_lowbit.ops.build`.

Needs a C++17 compiler ($CXX, g++, clang++ or c++) and TensorFlow, nothing else. What it was built for is written beside
it and checked when it is loaded; nothing is compiled again until sources, flags, compiler or TensorFlow change. This file
uses the standard library alone (argparse, not absl flags), so that the package's own build can run it before anything is
installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

COMMAND = "python -m keras_lowbit.ops.build"
NAME, INFO = "keras_lowbit_ops.so", "build.json"
NAMED = "KERAS_LOWBIT_LIBRARY"  # the variable that names a library file in place of the usual ones
NATIVE = Path(__file__).resolve().parent / "native"
FLAGS = ("-O3", "-fPIC", "-DNDEBUG", "-fvisibility=hidden", "-ffp-contract=off", "-Wall")
# Files and folders that are no part of the library; of bench, what measures the machine is.
NOT_SHIPPED = re.compile(r"(^|_)(test|fuzz|build)s?(_|\.|$)|_bench\.")
MACHINES = {
    "x86_": "x86_64|AMD64|amd64",
    "arm_": "aarch64|arm64|ARM64",
}  # prefix of an ISA target's files -> platform.machine()

# What TensorFlow says of itself, asked in a process of its own: in pip's isolated build the environment that the package
# is being installed into is only visible to an isolated interpreter.
_ASK = (
    "import json, tensorflow as tf; print(json.dumps({'version': tf.__version__, "
    "'compile': tf.sysconfig.get_compile_flags(), 'link': tf.sysconfig.get_link_flags()}))"
)


class BuildError(RuntimeError):
    """The library cannot be built here; the message says why."""


def find_library(version: str, abi: Sequence[str]) -> Path | None:
    """The library file: `KERAS_LOWBIT_LIBRARY`, beside this package, or in the user's cache; None if there is none.

    The first that fits this TensorFlow, else the first.
    """
    named = os.environ.get(NAMED)
    places = [Path(named)] if named else [NATIVE / NAME, cache_folder() / NAME]
    found = [path for path in places if path.is_file()]
    return next((path for path in found if not mismatch(path, version, abi)), found[0] if found else None)


def cache_folder() -> Path:
    """Where the library goes when the package's own folder cannot be written."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "keras_lowbit" / "native"


def read_info(library: Path) -> dict[str, Any]:
    """What a library was built for: TensorFlow's version, ABI flags, compiler, machine; empty if nothing says."""
    try:
        return json.loads((library.parent / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def mismatch(library: Path, version: str, abi: Sequence[str]) -> str:
    """Why a library does not fit this TensorFlow; empty if it does."""
    info = read_info(library)
    if not info:
        return f"{library} has no {INFO} beside it that says what it was built for"
    if info.get("tensorflow") != version:
        return f"{library} was built for TensorFlow {info.get('tensorflow')}, installed is {version}"
    if info.get("abi") != list(abi):
        return f"{library} was built with the ABI flags {info.get('abi')}, the installed TensorFlow has {list(abi)}"
    return ""


def abi_flags(flags: Sequence[str]) -> list[str]:
    """Those of TensorFlow's compile flags that change the binary interface."""
    return sorted(flag for flag in flags if flag.startswith("-D") or "std=" in flag)


def source_folder() -> Path:
    """The folder custom_ops: inside an installed package, beside it in a checkout. BuildError if it is nowhere."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "custom_ops", package.parent / "custom_ops"):
        if (folder / "tf").is_dir():
            return folder
    raise BuildError("the C++ sources (custom_ops) are not in this installation: install the package from its sources")


def sources(folder: Path, machine: str | None = None) -> list[Path]:
    """The C++ files of the library for an architecture: no tests, no benchmarks, no other machine's targets."""
    machine = machine or platform.machine()
    foreign = tuple(prefix for prefix, pattern in MACHINES.items() if not re.fullmatch(pattern, machine))
    found = (path for path in sorted(folder.rglob("*.cc")) if not path.name.startswith(foreign))
    return [path for path in found if not any(NOT_SHIPPED.search(part) for part in path.relative_to(folder).parts)]


def file_flags(folder: Path, path: Path) -> list[str]:
    """Instruction-set flags of an ISA target's file, `x86_avx2.cc`: KLB_FLAGS_avx2 of custom_ops/sources.cmake.

    All other files are compiled for the lowest CPU.
    """
    prefix, _, isa = path.stem.partition("_")
    if f"{prefix}_" not in MACHINES:
        return []
    table = (folder / "sources.cmake").read_text(encoding="utf-8")
    found = re.search(rf"set\(KLB_FLAGS_{isa}\s([^)]*)\)", table)
    if found is None:
        raise BuildError(f"custom_ops/sources.cmake has no KLB_FLAGS_{isa} for {path.name}")
    return found[1].replace('"', "").split()


def find_compiler() -> str:
    """$CXX, or the first C++ compiler on the PATH. BuildError if there is none."""
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["g++", "clang++", "c++"]:
        found = shutil.which(name)
        if found:
            return found
    raise BuildError(f"no C++ compiler: {wanted or 'g++, clang++ and c++'} not on the PATH")


def ask_tensorflow() -> dict[str, Any]:
    """Version, compile and link flags of the TensorFlow of this interpreter's environment. BuildError without one."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-I", "-c", _ASK]
    asked = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["no message"])[-1]
        raise BuildError(f"TensorFlow cannot be imported by {sys.executable} ({last})")
    return json.loads(asked.stdout.splitlines()[-1])


def installed_tensorflow() -> str:
    """The version of the installed TensorFlow without importing it; empty if there is none."""
    code = "from importlib.metadata import version; print(version('tensorflow'))"
    asked = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    return asked.stdout.strip()


def fingerprint(folder: Path, compiler: str, tensorflow: str) -> str:
    """Changes with the sources, the flags, the compiler and TensorFlow's version."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256(repr((FLAGS, compiler, version, tensorflow, platform.machine())).encode())
    files = [*sources(folder), *(path for kind in ("*.h", "*.inc", "sources.cmake") for path in folder.rglob(kind))]
    for path in sorted(files):
        if any(NOT_SHIPPED.search(part) for part in path.relative_to(folder).parts):
            continue  # in the checkout, not in a wheel: no part of the library
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def build(target: Path | None = None, force: bool = False, say=print) -> Path:
    """Builds the library into `target` (beside the package, or the user's cache), if anything changed; its path.

    BuildError without sources, compiler or TensorFlow, and with the compiler's words if it fails.
    """
    folder, compiler, version = source_folder(), find_compiler(), installed_tensorflow()
    if not version:
        raise BuildError(f"no TensorFlow in the environment of {sys.executable}")
    target = target or _writable_folder()
    library = target / NAME
    print_of = fingerprint(folder, compiler, version)
    for ready in () if force else (target, NATIVE):
        if (ready / NAME).is_file() and read_info(ready / NAME).get("fingerprint") == print_of:
            return _copied(ready, target)
    tensorflow, start = ask_tensorflow(), time.monotonic()
    say(f"building the op library with {compiler} for TensorFlow {tensorflow['version']}")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as work:
        made = _compile(folder, compiler, tensorflow, Path(work))
        info = {
            "tensorflow": tensorflow["version"],
            "abi": abi_flags(tensorflow["compile"]),
            "compiler": compiler,
            "machine": platform.machine(),
            "fingerprint": print_of,
        }
        Path(work, INFO).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        os.replace(made, library)
        os.replace(Path(work, INFO), target / INFO)
    say(f"built {library} in {time.monotonic() - start:.0f} s")
    return library


def can_build() -> bool:
    """Whether there are sources, a compiler and TensorFlow."""
    try:
        return bool(source_folder() and find_compiler() and installed_tensorflow())
    except BuildError:
        return False


def _copied(source: Path, target: Path) -> Path:
    if source != target:
        target.mkdir(parents=True, exist_ok=True)
        for name in (NAME, INFO):
            shutil.copy2(source / name, target / name)
    return target / NAME


def _compile(folder: Path, compiler: str, tensorflow: dict[str, Any], work: Path) -> Path:
    """Compiles every source, as many at a time as there are cores, and links them."""
    files = sources(folder)

    def compiled(item: tuple[int, Path]) -> Path:
        number, path = item
        made = work / f"{number}_{path.stem}.o"
        headers = tensorflow["compile"] if path.parent.name == "tf" else ["-std=c++17"]
        quiet = [flag.replace("-I", "-isystem", 1) if flag.startswith("-I") else flag for flag in headers]
        flags = [*FLAGS, *quiet, "-std=c++17", f"-I{folder}", *file_flags(folder, path)]
        _run([compiler, *flags, "-c", str(path), "-o", str(made)], path.name)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(made) for made in pool.map(compiled, enumerate(files))]
    library = work / NAME
    _run([compiler, "-shared", "-o", str(library), *objects, *tensorflow["link"]], NAME)
    return library


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{what} failed to build:\n{' '.join(command)}\n{done.stderr[-4000:]}")


def _writable_folder() -> Path:
    return NATIVE if os.access(NATIVE if NATIVE.is_dir() else NATIVE.parent, os.W_OK) else cache_folder()


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds; 0 if the library is there, 1 if it cannot be built (0 with --if-possible, after one sentence)."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--force", action="store_true", help="build even if nothing changed")
    parser.add_argument("--if-possible", action="store_true", help="no compiler or no TensorFlow is no failure")
    given = parser.parse_args(arguments)
    try:
        build(force=given.force)
    except BuildError as error:
        print(f"op library not built, the ops run in plain TensorFlow: {error}", file=sys.stderr)
        return 0 if given.if_possible else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
