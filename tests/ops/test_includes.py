"""The folders of custom_ops build on one another in one direction, and what is thrown stays inside: read in the sources."""

import re
import shutil
from pathlib import Path

import pytest

from keras_lowbit.ops import build
from keras_lowbit.ops.library import OP_NAMES
from tests.support.process import ROOT

CUSTOM_OPS = ROOT / "custom_ops"
BELOW = {"core": [], "kernels": ["core"], "layers": ["core", "kernels"], "cuda": ["core", "layers"]}
ON_TOP = {name: list(BELOW) for name in ("tf", "bench")}  # no one below includes these
ON_TOP |= {"test": [*BELOW, "bench"], "tf_cuda": [*BELOW, "tf"], "xla": list(BELOW)}
INCLUDE = re.compile(r'#include "([^"]+)"')


def include_violations(folder: Path) -> list[str]:
    """ "file:line: what is wrong" for includes from above, and for those that are not in this folder."""
    found = []
    for path in sorted(path for kind in ("*.h", "*.cc", "*.cu", "*.inc") for path in folder.rglob(kind)):
        name = path.relative_to(folder).as_posix()
        own = name.split("/")[0]
        if own not in BELOW | ON_TOP:
            continue  # build folders
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            included = INCLUDE.match(line)
            if included is None or included[1].startswith(("tensorflow/", "xla/ffi/", "xla/stream_executor/")):
                continue
            if included[1].split("/")[0] not in [own, *(BELOW | ON_TOP)[own]]:
                found.append(f"{name}:{number}: {own} includes {included[1]}")
            elif not (folder / included[1]).is_file():
                found.append(f"{name}:{number}: there is no {included[1]}")
    return found


def test_layers_include_kernels_and_kernels_include_core():
    assert include_violations(CUSTOM_OPS) == []


def test_what_a_wheel_carries_is_enough_to_build_the_library(tmp_path):
    """As setup.py copies it."""
    folder = tmp_path / "custom_ops"
    left_out = []

    def not_shipped(_folder, names):
        left_out.extend(name for name in names if build.NOT_SHIPPED.search(name))
        return left_out

    shutil.copytree(CUSTOM_OPS, folder, ignore=not_shipped)
    assert {"test", "kernels_bench.cc"} <= set(left_out)
    assert include_violations(folder) == []
    needed = [path.relative_to(CUSTOM_OPS) for path in build.sources(CUSTOM_OPS)]
    assert [path.relative_to(folder) for path in build.sources(folder)] == needed


def test_an_include_from_above_is_found(tmp_path):
    files = {
        "core/a.h": '#include "layers/b.h"\n',
        "kernels/k.inc": '#include <cstdint>\n#include "core/a.h"\n#include "tf/op.h"\n',
        "layers/b.h": '#include "core/a.h"\n#include "core/gone.h"\n#include "bench/m.h"\n',
        "tf/op.h": '#include "layers/b.h"\n#include "tensorflow/core/framework/op.h"\n',
        "bench/m.h": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert include_violations(tmp_path) == [
        "core/a.h:1: core includes layers/b.h",
        "kernels/k.inc:3: kernels includes tf/op.h",
        "layers/b.h:2: there is no core/gone.h",
        "layers/b.h:3: layers includes bench/m.h",
    ]


def code_lines():
    """(file, line without its comment) of all that goes into the library."""
    for path in build.sources(CUSTOM_OPS) + sorted([*CUSTOM_OPS.rglob("*.h"), *CUSTOM_OPS.glob("tf_cuda/*.cc")]):
        if path.relative_to(CUSTOM_OPS).parts[0] in BELOW or path.parent.name in ("tf", "tf_cuda"):
            for line in path.read_text(encoding="utf-8").splitlines():
                yield path, line.partition("//")[0]


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("thread_local", "core/per_thread.h: where memory is short the first use in a thread would end the process"),
        ("REGISTER_KERNEL_BUILDER", "KLB_REGISTER of tf/guard.h: what an op throws would end the process"),
        ("OP_REQUIRES", "a status: ops have Init and Run"),
    ],
)
def test_what_would_let_an_exception_pass(word, instead):
    assert not [path.name for path, line in code_lines() if word in line], f"use {instead}"


def test_shape_functions_are_guarded():
    shapes = [line for _, line in code_lines() if "SetShapeFn(" in line]
    assert len(shapes) == len(OP_NAMES)
    assert all("SetShapeFn(GuardedShapes<" in line for line in shapes)
