"""The library's ways to be there and not: forced ISA targets, no compiler, another TensorFlow, strict mode; its C++ tests."""

import contextlib
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keras_lowbit import ops
from keras_lowbit.ops import build, library
from tests.support.process import ROOT, run_python

CUSTOM_OPS = ROOT / "custom_ops"

# The same integers whatever runs them.
DIGEST = """
import hashlib, numpy as np
import keras_lowbit as klb
rng = np.random.default_rng(0)
x = rng.integers(-128, 128, (2, 9, 7, 21)).astype(np.int8)
packed = klb.ops.pack_ternary(rng.integers(-1, 2, (3, 3, 21, 70)), rng.integers(0, 128, (6, 70)), 4)
y = klb.ops.clustered_ternary_conv2d(x, packed, input_zero_point=-128, strides=2, padding="SAME")
print(klb.ops.active_kernel(), hashlib.sha256(np.array(y).tobytes()).hexdigest())
"""


@pytest.fixture
def without_library(monkeypatch, tmp_path):
    """A process state in which no library has been found."""
    monkeypatch.setattr(library, "_STATE", library._State())
    monkeypatch.setenv("KERAS_LOWBIT_LIBRARY", str(tmp_path / "none.so"))


def test_no_compiler_on_the_path_is_no_failure_and_gives_the_same_integers(tmp_path):
    """What an install on such a machine does: the build says so and succeeds, the ops fall back."""
    environment = {"PATH": str(tmp_path), "KERAS_LOWBIT_LIBRARY": str(tmp_path / "none.so"), "CXX": ""}
    command = [sys.executable, str(ROOT / "keras_lowbit" / "ops" / "build.py"), "--if-possible"]
    built = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "no C++ compiler" in built.stderr
    kernel, fallback = run_python(DIGEST, **environment).split()
    assert kernel == "tf_fallback"
    here = io.StringIO()
    with contextlib.redirect_stdout(here):
        exec(DIGEST, {})
    kernel, digest = here.getvalue().split()
    assert digest == fallback, kernel


def test_falling_back_speaks_once(without_library, caplog):
    assert library.loaded_or_none() is None
    assert library.loaded_or_none() is None
    said = [record.message for record in caplog.records if record.name == "keras_lowbit"]
    assert len(said) == 1
    assert "none.so' is no file; correct it, or unset it and run `python -m keras_lowbit.ops.build`" in said[0]


def test_strict_mode_forbids_it(without_library, monkeypatch):
    monkeypatch.setenv("KERAS_LOWBIT_STRICT", "1")
    with pytest.raises(ops.LibraryError, match=r"KERAS_LOWBIT_LIBRARY=.*none\.so' is no file"):
        library.loaded_or_none()


@pytest.fixture
def places(monkeypatch, tmp_path):
    """Writes a library for a TensorFlow beside the package or into the cache, and gives its path."""
    monkeypatch.setattr(library, "_STATE", library._State())
    monkeypatch.setattr(build, "NATIVE", tmp_path / "package")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("KERAS_LOWBIT_LIBRARY", raising=False)
    version, abi = library._tensorflow()

    def write(place, tensorflow=version):
        folder = {"package": build.NATIVE, "cache": build.cache_folder(version)}[place]
        folder.mkdir(parents=True)
        (folder / build.NAME).write_bytes(b"")
        info = {"tensorflow": tensorflow, "abi": abi, "machine": platform.machine(), "compiler": "c++"}
        info["sha256"] = hashlib.sha256(b"").hexdigest()
        info["fingerprint"] = build.fingerprint(build.source_folder(), "c++", tensorflow)
        (folder / build.INFO).write_text(json.dumps(info))
        return folder / build.NAME

    return write


def test_a_library_that_fits_is_preferred_to_one_that_does_not(places):
    """Where the package cannot be written, the one for a newer TensorFlow is in the cache, the old one beside the package."""
    assert library.find() is None
    assert library.why_not().startswith("the op library is not built")
    beside, cached = places("package", "2.20.0"), places("cache")
    assert library.find() == cached
    cached.unlink()
    assert library.find() == beside
    library._STATE.failure = None
    assert "was built for TensorFlow 2.20.0" in library.why_not()
    (beside.parent / build.INFO).write_text((cached.parent / build.INFO).read_text())
    cached.write_bytes(b"")
    assert library.find() == beside


def test_a_named_library_that_does_not_fit_is_not_built_again_but_unset(places, monkeypatch):
    monkeypatch.setenv("KERAS_LOWBIT_LIBRARY", str(places("package", "2.20.0")))
    places("cache")
    assert "2.20.0" in library.why_not()
    assert "unset KERAS_LOWBIT_LIBRARY, which names it, and run" in library.why_not()


DAMAGES = {
    "of older sources": ({"fingerprint": "0" * 64}, "was built from other sources than those installed"),
    "without a fingerprint": ({"fingerprint": None}, "was built from other sources"),
    "by another compiler than it says": ({"compiler": ["g++"]}, "was built from other sources"),
    "for another machine": ({"machine": "sparc"}, "was built for sparc"),
    "cut off or another's": ({"sha256": hashlib.sha256(b"more").hexdigest()}, "is not the file that its build.json"),
    "without a digest": ({"sha256": None}, "is not the file that its build.json"),
    "of other flags": ({"abi": "-std=c++11"}, "ABI flags -std=c++11"),
    "that is none": ({}, "does not load"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_state_of_the_file_falls_back_with_one_sentence(places, monkeypatch, caplog, damage):
    changed, words = DAMAGES[damage]
    path = places("package")
    info = json.loads((path.parent / build.INFO).read_text())
    (path.parent / build.INFO).write_text(json.dumps(info | changed))
    assert library.loaded_or_none() is None
    assert library.loaded_or_none() is None
    (said,) = [record.message for record in caplog.records if record.name == "keras_lowbit"]
    assert words in said
    assert "run `python -m keras_lowbit.ops.build" in said


@pytest.mark.parametrize("info", ["", "[1, 2]", "{", '"text"', "3", "[" * 100_000, b"\xff\xfe{}"])
def test_info_that_says_nothing_falls_back_too(places, info):
    path = places("package")
    (path.parent / build.INFO).write_bytes(info if isinstance(info, bytes) else info.encode())
    assert "has no build.json beside it that says" in library.why_not()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize(("functions", "lacks"), [((), "KerasLowbitCompiledKernels"), (library.TEXTS, "PeakGmacs")])
def test_an_older_interface_falls_back(places, functions, lacks):
    """Whole and described as it should be, yet without a function that this version calls."""
    path = places("package")
    source = path.parent / "old.c"
    source.write_text("".join(f'const char* KerasLowbit{name}(void) {{ return ""; }}\n' for name in functions))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(path), str(source)], check=True)
    info = json.loads((path.parent / build.INFO).read_text())
    info["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / build.INFO).write_text(json.dumps(info))
    assert lacks in library.why_not()
    assert "does not load" in library.why_not()


UNKNOWN = """
import keras_lowbit as klb
try:
    klb.ops.active_kernel()
except ValueError as error:
    print(error)
"""


def test_unknown_isa_target_is_an_error():
    assert "sse9" in run_python(UNKNOWN, KERAS_LOWBIT_KERNEL="sse9")


def test_unknown_isa_target_without_a_library_is_an_error(without_library, monkeypatch):
    monkeypatch.setenv("KERAS_LOWBIT_KERNEL", "x86_avx2")
    with pytest.raises(ValueError, match="there is no compiled library"):
        ops.active_kernel()


def test_the_fallback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("KERAS_LOWBIT_KERNEL", "tf_fallback")
    assert ops.active_kernel() == "tf_fallback"
    assert library.loaded_or_none() is None


def test_flags_are_those_of_the_file_alone():
    files = build.sources(CUSTOM_OPS, "x86_64")
    flags = {path.name: build.file_flags(CUSTOM_OPS, path) for path in files}
    assert not any(name.startswith("arm_") for name in flags)
    assert not any("test" in path.relative_to(CUSTOM_OPS).parts for path in files)
    assert "kernels_bench.cc" not in flags
    assert "-mavx512vnni" in flags["x86_avx512vnni.cc"]
    assert "-mavx512vnni" not in flags["x86_avx2.cc"]
    assert all(not found for name, found in flags.items() if not name.startswith("x86_"))


def test_fingerprint_changes_with_a_source(tmp_path):
    for part in ("tf", "core"):
        (tmp_path / part).mkdir()
    (tmp_path / "sources.cmake").write_text("set(KLB_FLAGS_avx2 -mavx2)")
    source = tmp_path / "core" / "a.cc"
    source.write_text("int a;")
    first = build.fingerprint(tmp_path, sys.executable, "2.21.0")
    assert build.fingerprint(tmp_path, sys.executable, "2.21.0") == first
    assert build.fingerprint(tmp_path, sys.executable, "2.22.0") != first
    source.write_text("int b;")
    assert build.fingerprint(tmp_path, sys.executable, "2.21.0") != first


@pytest.mark.slow(60)
def test_cpp_tests(tmp_path):
    """ctest of custom_ops, on the object files of the op library where `make test` kept them, else compiled here."""
    missing = [tool for tool in ("cmake", "ctest") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not on the PATH")
    try:
        build.find_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    folder, objects = Path(tmp_path, "build"), build.kept_objects(ROOT / "build" / "objects", build.NATIVE / build.NAME)
    for command in (
        ["cmake", "-S", str(CUSTOM_OPS), "-B", str(folder), f"-DKLB_OBJECTS={objects or ''}"],
        ["cmake", "--build", str(folder), "--parallel", "2"],
        ["ctest", "--test-dir", str(folder), "--output-on-failure"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_emulated_tiles_run_when_asked_for_by_name():
    if ops.why_not():
        pytest.skip(ops.why_not())
    assert "reference_amx" not in ops.available_kernels()
    rng = np.random.default_rng(1)
    codes = rng.integers(-128, 128, (40, 70)).astype(np.int8)
    weights = rng.integers(-1, 2, (70, 65)).astype(np.int8)
    with ops.using_kernel("reference_amx"):
        assert ops.active_kernel() == "reference_amx"
        sums = ops.ternary_dense(codes, ops.pack_kernel(weights))
    np.testing.assert_array_equal(sums, codes.astype(np.int32) @ weights.astype(np.int32))


TARGETS = [name for name in ops.available_kernels() if name != "tf_fallback"]


@pytest.mark.skipif(len(TARGETS) < 2, reason="fewer than two compiled ISA targets run here")
def test_forced_isa_targets_nest(monkeypatch):
    best, other = TARGETS[0], TARGETS[-1]
    for outer, inner in ((other, best), ("tf_fallback", other), (other, "tf_fallback"), (other, other)):
        with ops.using_kernel(outer):
            with ops.using_kernel(inner):
                assert ops.active_kernel() == inner
            assert ops.active_kernel() == outer
            with pytest.raises(ValueError, match="sse9"), ops.using_kernel("sse9"):
                pass
            assert ops.active_kernel() == outer
    assert ops.active_kernel() == (os.environ.get("KERAS_LOWBIT_KERNEL") or best)
    monkeypatch.setenv("KERAS_LOWBIT_KERNEL", "tf_fallback")
    with ops.using_kernel(other):
        assert ops.active_kernel() == other
    assert ops.active_kernel() == "tf_fallback"
