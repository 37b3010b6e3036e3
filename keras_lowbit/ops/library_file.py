"""Where the library file is: named, with the package, in the user's cache; or compiled into that cache at first use.

`pip install` builds a wheel in an environment without TensorFlow, which the library must be compiled against. So the wheel
brings the sources, and the first process that calls an op compiles them, once for this TensorFlow and processor architecture.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_lowbit.ops import build

NAMED = "KERAS_LOWBIT_LIBRARY"  # names a library file in place of the usual ones
ALLOWED = "KERAS_LOWBIT_BUILD"  # 0 forbids to compile at first use
FAILURE = "failure.json"  # in the cache: what the compiler refused there, so that no process tries it again


def find(version: str, abi: list[str]) -> Path | None:
    """The library file: the one named, beside the package, or in the user's cache; None if there is none.

    The first that fits this TensorFlow, else the first.
    """
    named = os.environ.get(NAMED)
    folders = [folder for folder in (build.NATIVE, build.cache_folder(version)) if folder]
    places = [Path(named)] if named else [folder / build.NAME for folder in folders]
    found = [path for path in places if os.path.isfile(path)]
    return next((path for path in found if not build.mismatch(path, version, abi)), found[0] if found else None)


def origin(path: Path, version: str) -> str:
    """Where a library that `find` gave comes from, in words."""
    if os.environ.get(NAMED):
        return f"named by {NAMED}"
    if path.parent == build.cache_folder(version):
        return "compiled on this machine, kept in the user's cache"
    return "beside the package: installed with it, or compiled there"


def compiled(tensorflow: Mapping[str, Any]) -> Path:
    """Compiles the library into the user's cache, after one sentence that says so; its path. BuildError where it cannot be.

    tensorflow: its version, compile and link flags. Another process that is compiling it is waited for.
    """
    if os.environ.get(ALLOWED, "1") == "0":
        raise build.BuildError(f"{ALLOWED}=0 forbids to compile it at first use")
    target, compiler = build.cache_folder(tensorflow["version"]), build.describe(build.find_compiler())
    if target is None:
        raise build.BuildError("there is no folder to compile it into: set XDG_CACHE_HOME to one")
    if (before := build.read_info(target / build.NAME, FAILURE)).get("compiler") == compiler:
        raise build.BuildError(f"this compiler has failed to build it before ({before.get('words')})")
    logging.getLogger("keras_lowbit").warning(
        "keras_lowbit compiles its kernels for TensorFlow %s, once, in about half a minute, into %s (%s=0 forbids it; plain "
        "TensorFlow then gives the same integers, slower)",
        *(tensorflow["version"], target, ALLOWED),
    )
    try:
        return build.build(target, say=logging.getLogger("keras_lowbit").info, tensorflow=dict(tensorflow))
    except build.CompilerError as error:
        words = str(error).splitlines()[0]
        with contextlib.suppress(OSError):
            (target / FAILURE).write_text(json.dumps({"compiler": compiler, "words": words}), encoding="utf-8")
        raise build.BuildError(words) from error
