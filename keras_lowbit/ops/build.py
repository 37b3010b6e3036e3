"""Builds the op library against the installed TensorFlow: `python -m keras_lowbit.ops.build`.

Needs a C++17 compiler ($CXX, which may be several words as "ccache g++", or g++, clang++, c++) and TensorFlow, nothing else.
What it was built for and from is written beside it and checked when it is loaded; nothing is compiled again until sources,
flags, compiler or TensorFlow change. A library in use is never written to: another file takes its place. This file uses the
standard library alone (argparse, not absl flags), so that the package's own build can run it before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows: no two builds are kept apart there
    fcntl = None  # type: ignore[assignment]

COMMAND = "python -m keras_lowbit.ops.build"
NAME, INFO = "keras_lowbit_ops.so", "build.json"
NATIVE = Path(__file__).resolve().parent / "native"
KERNELS = "kernels_"  # the object files that know nothing of TensorFlow begin with this
WORK = ".building-"  # what a build makes in its target folder while it runs begins with this
FLAGS = ("-O3", "-fPIC", "-DNDEBUG", "-fvisibility=hidden", "-ffp-contract=off", "-Wall")
# Files and folders that are no part of the library; of bench, what measures the machine is.
NOT_SHIPPED = re.compile(r"(^|_)(test|fuzz|build)s?(_|\.|$)|_bench\.")
OTHER_LIBRARIES = ("tf_cuda", "xla")  # folders of custom_ops with libraries of their own
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


class CompilerError(BuildError):
    """The compiler refused a source, and would do so again."""


def cache_folder(tensorflow: str) -> Path | None:
    """Where a library goes that is not beside the package: a folder for each TensorFlow, architecture and state of the sources.

    None for a user without a home, or without sources.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):
        home = os.path.expanduser("~") if os.environ.get("HOME", "~") else "~"
        cache = os.path.join(home, ".cache")
    try:
        digest = fingerprint(source_folder(), "", tensorflow)[:16]
    except (BuildError, OSError):
        return None
    name = f"{tensorflow}-{platform.machine()}-{digest}"
    return Path(cache, "keras_lowbit", "native", name) if os.path.isabs(cache) else None


def read_info(library: Path, name: str = INFO) -> dict[str, Any]:
    """What a library was built for and from: TensorFlow's version, ABI flags, compiler, machine, the digest of the file and the
    fingerprint of all that went in; empty if nothing says."""
    try:
        info = json.loads((library.parent / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return info if isinstance(info, dict) else {}


def mismatch(library: Path, version: str, abi: Sequence[str]) -> str:
    """Why a library must not be loaded: for another TensorFlow or machine, not whole, of other sources; empty if it may."""
    info = read_info(library)
    if not info:
        return f"{library} has no {INFO} beside it that says what it was built for"
    if info.get("tensorflow") != version:
        return f"{library} was built for TensorFlow {info.get('tensorflow')}, installed is {version}"
    if info.get("abi") != list(abi):
        return f"{library} was built with the ABI flags {info.get('abi')}, the installed TensorFlow has {list(abi)}"
    if info.get("machine") != platform.machine():
        return f"{library} was built for {info.get('machine')}, this machine is {platform.machine()}"
    if not is_whole(library):
        return f"{library} is not the file that its {INFO} was written for, or not all of it"
    try:
        current = fingerprint(source_folder(), str(info.get("compiler")), version)
    except (BuildError, OSError):
        return ""  # no sources here that could be others
    return "" if info.get("fingerprint") == current else f"{library} was built from other sources than those installed"


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
    own = [path for path in found if path.parent.name not in OTHER_LIBRARIES]
    return [path for path in own if not any(NOT_SHIPPED.search(part) for part in path.relative_to(folder).parts)]


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


def find_compiler() -> list[str]:
    """$CXX, or the first C++ compiler on the PATH, as the words of a command. BuildError if there is none."""
    wanted = os.environ.get("CXX", "").strip()
    try:
        words = [wanted] if shutil.which(wanted) else shlex.split(wanted)
    except ValueError as error:
        raise BuildError(f"CXX={wanted!r} is no command ({error})") from error
    for command in [words] if words else [["g++"], ["clang++"], ["c++"]]:
        found = shutil.which(command[0])
        if found:
            return [found, *command[1:]]
    raise BuildError(f"no C++ compiler: {words[0] if words else 'g++, clang++ and c++'} not on the PATH")


def describe(compiler: Sequence[str]) -> str:
    """A compiler's command and what it says of itself."""
    try:
        said = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError as error:
        raise BuildError(f"{shlex.join(compiler)} does not run ({error})") from error
    return f"{shlex.join(compiler)}: {said.strip()}"


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
    """Changes with the sources, the flags, the compiler (as `describe` gives it) and TensorFlow's version."""
    digest = hashlib.sha256(repr((FLAGS, compiler, tensorflow, platform.machine())).encode())
    files = [*sources(folder), *(path for kind in ("*.h", "*.inc", "sources.cmake") for path in folder.rglob(kind))]
    for path in sorted(files):
        if any(NOT_SHIPPED.search(part) for part in path.relative_to(folder).parts):
            continue  # in the checkout, not in a wheel: no part of the library
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def build(
    target: Path | None = None,
    force: bool = False,
    say=print,
    objects: Path | None = None,
    tensorflow: dict[str, Any] | None = None,
) -> Path:
    """Builds the library into `target` (beside the package, or the user's cache), if anything changed; its path.

    One build of a folder at a time. The kernels' object files are left in the folder `objects`, if one is given: `kept_objects`
    finds them. tensorflow: what `ask_tensorflow` gives, for who has imported it. BuildError without sources, compiler or
    TensorFlow, with the compiler's words if it fails, and for a folder that cannot be written.
    """
    folder, compiler = source_folder(), find_compiler()
    version = tensorflow["version"] if tensorflow else installed_tensorflow()
    if not version:
        raise BuildError(f"no TensorFlow in the environment of {sys.executable}")
    target = target or _writable_folder(version)
    wanted = fingerprint(folder, describe(compiler), version)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _alone_in(target, say):
            for ready in () if force else (target, NATIVE):
                if read_info(ready / NAME).get("fingerprint") == wanted and is_whole(ready / NAME):
                    return _copied(ready, target)
            return _build(folder, compiler, tensorflow or ask_tensorflow(), target, say, objects)
    except OSError as error:
        raise BuildError(f"{target} cannot be written ({error})") from error


def kept_objects(objects: Path, library: Path) -> Path | None:
    """The folder of the kernels' object files that were kept when `library` was built; None if they are of other sources."""
    folder = objects / str(read_info(library).get("fingerprint"))
    return (
        folder if folder.is_dir() and not mismatch(library, installed_tensorflow(), read_info(library)["abi"]) else None
    )


def can_build() -> bool:
    """Whether there are sources, a compiler and TensorFlow."""
    try:
        return bool(source_folder() and find_compiler() and installed_tensorflow())
    except BuildError:
        return False


def _build(
    folder: Path, compiler: list[str], tensorflow: dict[str, Any], target: Path, say, objects: Path | None
) -> Path:
    """Compiles beside the library that is there, if one is, and puts the new one in its place."""
    start = time.monotonic()
    say(f"building the op library with {shlex.join(compiler)} for TensorFlow {tensorflow['version']}")
    with tempfile.TemporaryDirectory(dir=target, prefix=WORK) as work:
        made, described = _compile(folder, compiler, tensorflow, Path(work)), describe(compiler)
        info = {
            "tensorflow": tensorflow["version"],
            "abi": abi_flags(tensorflow["compile"]),
            "compiler": described,
            "machine": platform.machine(),
            "sha256": file_digest(made),
            "fingerprint": fingerprint(folder, described, tensorflow["version"]),
        }
        Path(work, INFO).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        if objects is not None:
            _keep_objects(Path(work), objects, info["fingerprint"])
        place(Path(work), target)
    say(f"built {target / NAME} in {time.monotonic() - start:.0f} s")
    return target / NAME


def _keep_objects(work: Path, objects: Path, current: str) -> None:
    """Copies the object files that know nothing of TensorFlow into a folder of this fingerprint, in place of older ones."""
    shutil.rmtree(objects, ignore_errors=True)
    (objects / current).mkdir(parents=True)
    for path in work.glob(f"{KERNELS}*.o"):
        shutil.copy2(path, objects / current)


def place(work: Path, target: Path, names: Sequence[str] = (NAME, INFO)) -> None:
    """Moves library and info from a folder of the same disk: who has the old file open keeps it."""
    for name in names:
        os.replace(work / name, target / name)


def _copied(source: Path, target: Path) -> Path:
    if source != target:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=WORK) as work:
            for name in (NAME, INFO):
                shutil.copy2(source / name, Path(work, name))
            place(Path(work), target)
    return target / NAME


@contextlib.contextmanager
def _alone_in(target: Path, say) -> Iterator[None]:
    """Holds a folder's lock, which ends with its process, and clears away what builds that were killed have left there."""
    handle = os.open(target, os.O_RDONLY) if fcntl else None
    try:
        if handle is not None and _locked(handle, target, say):
            for left in target.glob(f"{WORK}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _locked(handle: int, target: Path, say) -> bool:
    """Waits for the lock; False on a disk that has none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"waiting for another build of {target}")
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def file_digest(path: Path) -> str:
    """What `read_info` calls sha256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_whole(library: Path, name: str = INFO) -> bool:
    """Whether a library is, byte for byte, the one that its info was written for."""
    try:
        return read_info(library, name).get("sha256") == file_digest(library)
    except OSError:
        return False


def _compile(folder: Path, compiler: list[str], tensorflow: dict[str, Any], work: Path) -> Path:
    """Compiles every source, as many at a time as there are cores, and links them."""
    files = sources(folder)

    def compiled(item: tuple[int, Path]) -> Path:
        number, path = item
        made = work / f"{'tf_' if path.parent.name == 'tf' else KERNELS}{number}_{path.stem}.o"
        headers = tensorflow["compile"] if path.parent.name == "tf" else ["-std=c++17"]
        quiet = [flag.replace("-I", "-isystem", 1) if flag.startswith("-I") else flag for flag in headers]
        flags = [*FLAGS, *quiet, "-std=c++17", f"-I{folder}", *file_flags(folder, path)]
        run_command([*compiler, *flags, "-c", str(path), "-o", str(made)], path.name)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(made) for made in pool.map(compiled, enumerate(files))]
    library = work / NAME
    run_command([*compiler, "-shared", "-o", str(library), *objects, *tensorflow["link"]], NAME)
    return library


def run_command(command: list[str], what: str) -> None:
    """Runs a compiler. CompilerError with its words if it refuses `what`, BuildError if it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} does not run ({error})") from error
    if done.returncode:
        raise CompilerError(f"{what} failed to build:\n{' '.join(command)}\n{done.stderr[-4000:]}")


def _writable_folder(tensorflow: str) -> Path:
    folder = NATIVE if NATIVE.is_dir() else NATIVE.parent
    if folder.is_dir() and os.access(folder, os.W_OK):
        return NATIVE
    cache = cache_folder(tensorflow)
    if cache is None:
        raise BuildError(f"{NATIVE} cannot be written and this user has no home: set XDG_CACHE_HOME to a folder")
    return cache


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds; 0 if the library is there, 1 if it cannot be built (0 with --if-possible, after one sentence)."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--force", action="store_true", help="build even if nothing changed")
    parser.add_argument("--if-possible", action="store_true", help="what cannot be built here is no failure")
    parser.add_argument(
        "--objects", type=Path, metavar="FOLDER", help="keep the kernels' object files, for their C++ tests"
    )
    given = parser.parse_args(arguments)
    try:
        build(force=given.force, objects=given.objects)
    except BuildError as error:
        print(f"op library not built, the ops run in plain TensorFlow: {error}", file=sys.stderr)
        return 0 if given.if_possible else 1
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an interrupt: nothing half done is left
    sys.exit(main())
