"""Builds the integer layers as calls for XLA, which JAX makes: `python -m keras_lowbit.ops.build_xla`.

The CPU's kernels, and with --cuda those for NVIDIA GPUs (nvcc: see `build_cuda`), in a library without TensorFlow, in the
user's cache. Needs a C++17 compiler and JAX, whose headers it is compiled against.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from keras_lowbit.ops import build, build_cuda

COMMAND = "python -m keras_lowbit.ops.build_xla"
NAME, INFO = "keras_lowbit_xla.so", "build_xla.json"
NAMED = "KERAS_LOWBIT_XLA_LIBRARY"  # names a library file in place of the cache's
CPU_CALLS, GPU_CALLS = "xla/cpu_calls.cc", "xla/gpu_calls.cc"


def target_folder() -> Path | None:
    """Where the library goes and is looked for: the cache's folder of this JAX and these sources."""
    import jaxlib

    return build.cache_folder(f"jaxlib-{jaxlib.__version__}")


def find() -> Path | None:
    """The library that `KERAS_LOWBIT_XLA_LIBRARY` names, or the one for this JAX and these sources; None if there is none."""
    if named := os.environ.get(NAMED):
        return Path(named)
    folder = target_folder()
    library = folder / NAME if folder else None
    if library is None or not library.is_file():
        return None
    known = build.read_info(library, INFO).get("fingerprint") == fingerprint()
    return library if known and build.is_whole(library, INFO) else None


def fingerprint() -> str:
    """Changes with the sources and with JAX's version."""
    import jaxlib

    folder = build.source_folder()
    digest = hashlib.sha256(build.fingerprint(folder, "", jaxlib.__version__).encode())
    for name in (CPU_CALLS, GPU_CALLS, build_cuda.KERNELS):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def build_library(
    target: Path | None = None, architectures: Sequence[str] = (), say=print, objects: Path | None = None
) -> Path:
    """Compiles and links the library into `target`; its path. BuildError with the compiler's words if it fails.

    architectures: compute capabilities of the GPUs to compile for, none for the CPU alone.   objects: a folder with the CPU
    kernels' object files (`build.kept_objects`), where they need not be compiled again.
    """
    target = target or target_folder()
    if target is None:
        raise build.BuildError("there is no folder to compile into: set XDG_CACHE_HOME to one")
    target.mkdir(parents=True, exist_ok=True)
    say(f"building the layers for XLA{' and sm_' + ', sm_'.join(architectures) if architectures else ''}")
    with tempfile.TemporaryDirectory(dir=target, prefix=build.WORK) as work:
        made = _compile(build.find_compiler(), build.source_folder(), architectures, objects, Path(work))
        info = {"architectures": list(architectures), "sha256": build.file_digest(made), "fingerprint": fingerprint()}
        Path(work, INFO).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        build.place(Path(work), target, (NAME, INFO))
    return target / NAME


def _compile(compiler: list[str], folder: Path, architectures: Sequence[str], kept: Path | None, work: Path) -> Path:
    import jax

    kernels = [] if kept else [path for path in build.sources(folder) if path.parent.name not in ("tf", "bench")]
    calls = [folder / CPU_CALLS, *([folder / GPU_CALLS] if architectures else [])]

    def compiled(item: tuple[int, Path]) -> Path:
        number, path = item
        made = work / f"{number}_{path.stem}.o"
        headers = [f"-isystem{jax.ffi.include_dir()}"] if path in calls else []
        flags = [*build.FLAGS, *headers, "-std=c++17", f"-I{folder}", *build.file_flags(folder, path)]
        build.run_command([*compiler, *flags, "-c", str(path), "-o", str(made)], path.name)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, enumerate([*kernels, *calls])))
    objects += sorted(kept.glob("*.o")) if kept else []
    linked = ["-lpthread"]
    if architectures:
        nvcc = build_cuda.find_nvcc()
        objects.append(build_cuda.compile_kernels(nvcc, folder, architectures, work))
        linked = build_cuda.runtime(nvcc)
    files = [str(path) for path in objects]
    build.run_command([*compiler, "-shared", "-o", str(work / NAME), *files, *linked, "-Wl,-z,defs"], NAME)
    return work / NAME


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds; 0 if the library is there, 1 if it cannot be built, after a sentence that says why."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cuda", action="store_true", help="for NVIDIA GPUs too; needs nvcc")
    names = ",".join(build_cuda.ARCHITECTURES)
    parser.add_argument(
        "--architectures", help=f"compute capabilities, with --cuda: {names} by default, CUDA 13 has no 61"
    )
    given = parser.parse_args(arguments)
    try:
        named: Sequence[str] = ()
        if given.cuda:
            named = build_cuda.chosen(given.architectures) or build_cuda.architectures_of(build_cuda.find_nvcc())
        print(f"built {build_library(architectures=named)}")
    except (build.BuildError, ImportError) as error:
        print(f"layers for XLA not built: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
