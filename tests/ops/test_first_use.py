"""An installed package without a library compiles it at first use: once, aloud, into the user's cache; or says why not."""

import concurrent.futures
import logging
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from keras_lowbit.ops import build, library_file
from tests.support.process import ROOT
from tests.support.toy_library import TENSORFLOW, script, toy_sources

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler")


@pytest.fixture
def calls(monkeypatch, tmp_path, caplog):
    """The file in which the compiler of an installed package without a library counts its compilations."""
    toy_sources(monkeypatch, tmp_path)
    real = build.find_compiler()[0]
    script(tmp_path / "compiler", f'[ "$1" = --version ] || echo >> {tmp_path}/calls; exec {real} "$@"')
    monkeypatch.setenv("CXX", str(tmp_path / "compiler"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KERAS_LOWBIT_BUILD", raising=False)
    monkeypatch.delenv("KERAS_LOWBIT_LIBRARY", raising=False)
    caplog.set_level(logging.WARNING, "keras_lowbit")
    return tmp_path / "calls"


def find():
    return library_file.find(TENSORFLOW["version"], build.abi_flags(TENSORFLOW["compile"]))


def lines(path):
    return path.read_text().count("\n") if path.exists() else 0


def test_it_is_compiled_into_the_cache_after_one_sentence(calls, caplog):
    assert find() is None
    made = library_file.compiled(TENSORFLOW)
    assert made == build.cache_folder("9.9.9") / build.NAME == find()
    (said,) = [record.message for record in caplog.records]
    for words in ("TensorFlow 9.9.9", "once", str(made.parent), "KERAS_LOWBIT_BUILD=0 forbids it", "slower"):
        assert words in said
    assert "user's cache" in library_file.origin(made, "9.9.9")
    assert not build.NATIVE.exists()


def test_many_at_once_compile_it_once(calls):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        made = list(pool.map(library_file.compiled, [TENSORFLOW] * 4))
    assert set(made) == {find()}
    assert lines(calls) == 2  # one source, and the linking
    assert sorted(path.name for path in made[0].parent.iterdir()) == [build.INFO, build.NAME]


def test_it_can_be_forbidden(calls, monkeypatch, caplog):
    monkeypatch.setenv("KERAS_LOWBIT_BUILD", "0")
    with pytest.raises(build.BuildError, match="KERAS_LOWBIT_BUILD=0 forbids"):
        library_file.compiled(TENSORFLOW)
    assert not caplog.records
    assert not calls.exists()


def test_no_compiler_says_nothing_of_compiling(calls, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler: no-such-compiler not on the PATH"):
        library_file.compiled(TENSORFLOW)
    assert not caplog.records


def test_what_a_compiler_refuses_it_is_asked_once(calls, monkeypatch, caplog, tmp_path):
    good = os.environ["CXX"]
    script(tmp_path / "old", f"echo >> {calls}; exit 1")
    monkeypatch.setenv("CXX", str(tmp_path / "old"))
    for words in ("a.cc failed to build", "has failed to build it before .a.cc failed to build"):
        with pytest.raises(build.BuildError, match=words):
            library_file.compiled(TENSORFLOW)
    assert len(caplog.records) == 1
    monkeypatch.setenv("CXX", good)  # another one is tried
    assert library_file.compiled(TENSORFLOW) == find()


def test_a_folder_that_cannot_be_written_is_said(calls, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")  # no folder: nobody can write there, root included
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(build.BuildError, match="cannot be written"):
        library_file.compiled(TENSORFLOW)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "")
    with pytest.raises(build.BuildError, match="set XDG_CACHE_HOME"):
        library_file.compiled(TENSORFLOW)


TRACED = """
import numpy as np, tensorflow as tf
from keras_lowbit import ops
kernel = ops.pack_kernel(np.ones((8, 3), np.int8))

@tf.function
def run(x):
    return ops.ternary_dense(x, kernel)

print(run(np.ones((1, 8), np.int8)).numpy().tolist())
"""


@pytest.mark.slow
def test_a_library_that_is_looked_for_while_a_function_is_traced_is_no_part_of_it(tmp_path):
    """AutoGraph would rewrite the search, and complain of what it cannot."""
    (tmp_path / "traced.py").write_text(TRACED)  # AutoGraph rewrites what is in files
    done = subprocess.run(
        [sys.executable, tmp_path / "traced.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path), "KERAS_LOWBIT_BUILD": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[[8, 8, 8]]\n"
    assert "AutoGraph" not in done.stderr


# Runs a compiled op and says where the library came from.
OP = """
import numpy as np
from keras_lowbit import ops
x = ops.ternary_dense(np.ones((1, 8), np.int8), ops.pack_kernel(np.ones((8, 3), np.int8)))
print(ops.active_kernel(), x.numpy().tolist(), ops.library.origin())
"""
NEEDED = (
    "keras_lowbit",
    "custom_ops",
    "keras_lowbit_command.py",
    "setup.py",
    "setup.cfg",
    "pyproject.toml",
    "MANIFEST.in",
)


def sdist(folder):
    """A source distribution of this checkout, made outside it."""
    for name in (*NEEDED, "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("native", "build", "__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    made = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    done = subprocess.run([sys.executable, "-c", made], cwd=folder, capture_output=True, text=True, check=True)
    return folder / "dist" / done.stdout.splitlines()[-1]


@pytest.mark.slow(120)
def test_a_plain_pip_install_of_a_source_distribution_runs_compiled_ops(tmp_path):
    """The isolated build has no TensorFlow; the environment gets this one's packages afterwards, as dependencies arrive."""
    if not build.can_build():
        pytest.skip("no C++ compiler")
    (tmp_path / "sources").mkdir()
    package = sdist(tmp_path / "sources")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", package]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "KERAS_LOWBIT"))}
    done = subprocess.run(command, capture_output=True, text=True, env=clean, check=False)
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("no network: pip cannot set up its isolated build")
    assert done.returncode == 0, done.stderr
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    clean |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "KERAS_LOWBIT_STRICT": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([python, "-c", OP], cwd=tmp_path, env=clean, **pipes) for _ in range(2)]
    told = [process.communicate(timeout=1800) for process in both]
    for out, err in told:
        assert "[[8, 8, 8]] compiled on this machine, kept in the user's cache" in out, err
        assert "tf_fallback" not in out
    assert len(list(Path(tmp_path, "cache").rglob(build.NAME))) == 1
    later = subprocess.run([python, "-c", OP], cwd=tmp_path, env=clean, capture_output=True, text=True, check=True)
    assert "compiles its kernels" not in later.stderr
