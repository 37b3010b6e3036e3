"""Builds the ops' kernels for NVIDIA GPUs: `python -m keras_lowbit.ops.build_cuda`.

A library of its own beside the CPU's, loaded after it; without one, everything runs on the CPU as before. Needs nvcc
($CUDACXX, on the PATH, in /usr/local/cuda, or of the package nvidia-cuda-nvcc), a C++17 compiler and TensorFlow; no GPU.
CUDA's runtime is linked in, so its version need not be TensorFlow's: a driver that knows both is enough, and what both are is
written beside the library.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from keras_lowbit.ops import build

COMMAND = "python -m keras_lowbit.ops.build_cuda"
NAME, INFO = "keras_lowbit_cuda.so", "build_cuda.json"
# Machine code for each, and PTX of the last for later GPUs. sm_61 and sm_75 run without tensor cores (cuda/dots.h).
ARCHITECTURES = ("61", "75", "80", "89", "90")
BELOW_CUDA_13 = ("61",)  # CUDA 13 compiles for nothing below sm_75
FLAGS = ("-std=c++17", "-O3", "--expt-relaxed-constexpr", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden")
# What the launchers need of the kernels' other files.
SOURCES = (
    "core/packing.cc",
    "core/shapes.cc",
    "cuda/plan.cc",
    "layers/constants.cc",
    "layers/epilogue.cc",
    "layers/fp32_requantize.cc",
    "layers/fp32_residual.cc",
    "layers/layer_cache.cc",
    "layers/max_pool.cc",
)
TF_SOURCE, KERNELS = "tf_cuda/gpu_kernels.cc", "cuda/kernels.cu"


class Nvcc(NamedTuple):
    """A CUDA compiler. command: its file.   version: of CUDA, "13.0".   folder: where include/ and lib/ are."""

    command: str
    version: str
    folder: Path


def find_nvcc() -> Nvcc:
    """The CUDA compiler. BuildError if there is none, or it does not run."""
    named = os.environ.get("CUDACXX", "").strip()
    for candidate in [named] if named else ["nvcc", "/usr/local/cuda/bin/nvcc", *_packaged()]:
        found = shutil.which(candidate)
        if found:
            return Nvcc(found, *_asked(found))
    raise build.BuildError(
        f"no CUDA compiler: {named or 'nvcc'} is not on the PATH; install CUDA, or the packages nvidia-cuda-nvcc, "
        "nvidia-cuda-runtime and nvidia-cuda-cccl, or name nvcc in CUDACXX"
    )


def architectures_of(nvcc: Nvcc) -> tuple[str, ...]:
    """Those of `ARCHITECTURES` that a compiler has."""
    newest = int(nvcc.version.split(".")[0]) >= 13
    return tuple(name for name in ARCHITECTURES if not (newest and name in BELOW_CUDA_13))


def chosen(names: str | None) -> list[str] | None:
    """Architectures from the command line; None where none is named."""
    return names.split(",") if names else None


def target_folder(version: str) -> Path | None:
    """Where the library goes and is looked for: the cache's folder of this TensorFlow and these sources."""
    return build.cache_folder(version)


def find(version: str) -> Path | None:
    """The library for this TensorFlow and these sources; None if it was not built."""
    folder = target_folder(version)
    library = folder / NAME if folder else None
    if library is None or not library.is_file():
        return None
    known = build.read_info(library, INFO).get("fingerprint") == fingerprint(version)
    return library if known and build.is_whole(library, INFO) else None


def fingerprint(version: str) -> str:
    """Changes with the sources of both libraries, this one's flags and TensorFlow's version."""
    folder = build.source_folder()
    digest = hashlib.sha256(repr((FLAGS, build.fingerprint(folder, "", version))).encode())
    for name in (KERNELS, TF_SOURCE, "tf_cuda/gpu_device.h"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def build_library(target: Path | None = None, architectures: Sequence[str] | None = None, say=print) -> Path:
    """Compiles and links the library into `target`; its path. BuildError with the compiler's words if it fails.

    architectures: compute capabilities without the dot, all that the compiler has by default.
    """
    nvcc, compiler, folder, tensorflow = (
        find_nvcc(),
        build.find_compiler(),
        build.source_folder(),
        build.ask_tensorflow(),
    )
    target = target or target_folder(tensorflow["version"])
    if target is None:
        raise build.BuildError("there is no folder to compile into: set XDG_CACHE_HOME to one")
    target.mkdir(parents=True, exist_ok=True)
    architectures = architectures or architectures_of(nvcc)
    say(f"building the CUDA kernels with CUDA {nvcc.version} for sm_{', sm_'.join(architectures)}")
    with tempfile.TemporaryDirectory(dir=target, prefix=build.WORK) as work:
        made = _compile(nvcc, compiler, folder, tensorflow, architectures, Path(work))
        info = {
            "tensorflow": tensorflow["version"],
            "tensorflow_cuda": tensorflow_cuda(),
            "cuda": nvcc.version,
            "nvcc": nvcc.command,
            "architectures": list(architectures),
            "sha256": build.file_digest(made),
            "fingerprint": fingerprint(tensorflow["version"]),
        }
        Path(work, INFO).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        build.place(Path(work), target, (NAME, INFO))
    return target / NAME


def tensorflow_cuda() -> str:
    """The version of CUDA that the installed TensorFlow was built with; empty for one without GPUs."""
    code = "import tensorflow as tf; print(tf.sysconfig.get_build_info().get('cuda_version', ''))"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    asked = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    return (asked.stdout.strip().splitlines() or [""])[-1]


def compile_kernels(nvcc: Nvcc, folder: Path, architectures: Sequence[str], work: Path) -> Path:
    """The object file of the CUDA kernels, in the folder `work`."""
    made = work / "cuda_kernels.o"
    command = [nvcc.command, *FLAGS, *_gencode(architectures), f"-I{folder}", "-c", str(folder / KERNELS)]
    build.run_command([*command, "-o", str(made)], KERNELS)
    return made


def runtime(nvcc: Nvcc) -> list[str]:
    """Link flags of CUDA's runtime, kept inside the library that they make."""
    folders = [f"-L{nvcc.folder / name}" for name in ("lib64", "lib")]
    return [*folders, "-lcudart_static", "-ldl", "-lrt", "-lpthread", "-Wl,--exclude-libs,ALL"]


def driver() -> str:
    """The NVIDIA driver that is loaded, in its own words; empty if none is."""
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return ""


def _packaged() -> list[str]:
    """nvcc of pip's packages, which put it below nvidia/."""
    found = importlib.util.find_spec("nvidia")
    folders = list(found.submodule_search_locations or []) if found else []
    return [str(path) for folder in folders for path in sorted(Path(folder).glob("*/bin/nvcc"), reverse=True)]


def _asked(command: str) -> tuple[str, Path]:
    """A compiler's CUDA version and its folder: it knows where it is, also behind a script."""
    said = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"release (\d+\.\d+)", said)
    dry = subprocess.run([command, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.*)$", dry.stdout + dry.stderr, re.MULTILINE)
    if version is None or top is None:
        raise build.BuildError(f"{command} does not say which CUDA it is of: {said.strip()[:200] or 'it says nothing'}")
    return version[1], Path(top[1])


def _gencode(architectures: Sequence[str]) -> list[str]:
    code = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    return [*code, f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}"]


def _compile(
    nvcc: Nvcc, compiler: list[str], folder: Path, tensorflow: dict[str, Any], architectures: Sequence[str], work: Path
) -> Path:
    objects = [compile_kernels(nvcc, folder, architectures, work)]
    quiet = [flag.replace("-I", "-isystem", 1) if flag.startswith("-I") else flag for flag in tensorflow["compile"]]
    for name in (*SOURCES, TF_SOURCE):
        objects.append(work / f"{Path(name).stem}.o")
        headers = quiet if name == TF_SOURCE else []
        flags = [*build.FLAGS, *headers, "-std=c++17", f"-I{folder}"]
        build.run_command([*compiler, *flags, "-c", str(folder / name), "-o", str(objects[-1])], name)
    # CUDA's runtime before TensorFlow, whose library has functions of the same names, of another version.
    linked = [*runtime(nvcc), *tensorflow["link"], "-Wl,-z,defs"]
    build.run_command([*compiler, "-shared", "-o", str(work / NAME), *(str(path) for path in objects), *linked], NAME)
    return work / NAME


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds; 0 if the library is there, 1 if it cannot be built (0 with --if-possible, after one sentence)."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--if-possible", action="store_true", help="what cannot be built here is no failure")
    names = ",".join(ARCHITECTURES)
    parser.add_argument("--architectures", help=f"compute capabilities, {names} by default; CUDA 13 has no 61")
    parser.add_argument("--target", type=Path, metavar="FOLDER", help="where it goes, in place of the user's cache")
    given = parser.parse_args(arguments)
    try:
        print(f"built {build_library(given.target, chosen(given.architectures))}")
    except build.BuildError as error:
        print(f"CUDA kernels not built, the ops run on the CPU: {error}", file=sys.stderr)
        return 0 if given.if_possible else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
