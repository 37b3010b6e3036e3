"""The build of the op library, on sources that compile at once: what it leaves, how it is named, where it cannot write."""

import fcntl
import os
import platform
import signal
import subprocess
import sys
import threading
import time

import pytest

from keras_lowbit.ops import build, library_file
from tests.support.process import ROOT
from tests.support.toy_library import TENSORFLOW, script, toy_sources

pytestmark = pytest.mark.skipif(not any(map(build.shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler")


def problem(target):
    return build.mismatch(target / build.NAME, TENSORFLOW["version"], build.abi_flags(TENSORFLOW["compile"]))


@pytest.fixture
def sources(monkeypatch, tmp_path):
    return toy_sources(monkeypatch, tmp_path)


def test_builds_once_until_a_source_changes(sources):
    said = []
    library = build.build(say=said.append)
    assert library == build.NATIVE / build.NAME
    assert len(said) == 2
    assert not problem(build.NATIVE)
    build.build(say=said.append)
    assert len(said) == 2
    (sources / "core" / "a.cc").write_text("int b;\n")
    assert "from other sources" in problem(build.NATIVE)
    build.build(say=said.append)
    assert len(said) == 4
    assert not problem(build.NATIVE)


def test_a_damaged_library_is_built_again(sources):
    library = build.build(say=str)
    whole = library.read_bytes()
    library.write_bytes(whole[: len(whole) // 2])
    assert "or not all of it" in problem(build.NATIVE)
    build.build(say=str)
    assert not problem(build.NATIVE)


@pytest.mark.parametrize("renewed", ["built", "copied"])
def test_a_library_in_use_is_replaced_not_written_to(sources, tmp_path, renewed):
    target = tmp_path / "elsewhere"
    library = build.build(target, say=str)
    build.build(say=str)
    before, size = library.stat().st_ino, library.stat().st_size
    with library.open("rb") as used:
        if renewed == "built":
            build.build(target, force=True, say=str)
        else:
            build._copied(build.NATIVE, target)
        assert len(used.read()) == size
        assert os.fstat(used.fileno()).st_ino == before != library.stat().st_ino
    assert sorted(path.name for path in target.iterdir()) == [build.INFO, build.NAME]


def test_a_compiler_of_several_words(sources, monkeypatch, tmp_path):
    found = build.find_compiler()[0]
    script(tmp_path / "ccache", f'echo "$@" >> {tmp_path}/called; exec "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CXX", f"ccache {found} -g0")
    assert build.find_compiler() == [str(tmp_path / "ccache"), found, "-g0"]
    build.build(say=str)
    assert (tmp_path / "called").read_text().count(f"{found} -g0 -") >= 2
    assert not problem(build.NATIVE)


def test_a_compiler_whose_path_has_a_space(sources, monkeypatch, tmp_path):
    folder = tmp_path / "my compiler"
    folder.mkdir()
    named = script(folder / "c++", f'exec {build.find_compiler()[0]} "$@"')
    for written in (str(named), f'"{named}"'):
        monkeypatch.setenv("CXX", written)
        assert build.find_compiler() == [str(named)]
    build.build(say=str)


@pytest.mark.parametrize(
    ("compiler", "words"),
    [
        ("ccache-none g++", "no C++ compiler: ccache-none not on the PATH"),
        ('g++ "', "is no command"),
        ("{text}", "does not run"),
    ],
)
def test_a_compiler_that_is_none_is_said_in_one_sentence(sources, monkeypatch, tmp_path, capsys, compiler, words):
    text = tmp_path / "text"
    text.write_bytes(b"\x7fnothing that runs")
    text.chmod(0o755)
    monkeypatch.setenv("CXX", compiler.format(text=text))
    assert build.main(["--if-possible"]) == 0
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert build.main([]) == 1


def test_no_folder_to_write_is_said_in_one_sentence(sources, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(build, "NATIVE", tmp_path / "file" / "native")
    (tmp_path / "file").write_text("")  # no folder: nobody can write there, root included
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    assert build.main(["--if-possible"]) == 0
    said = capsys.readouterr().err
    assert "plain TensorFlow: " in said
    assert "cannot be written" in said
    assert said.count("\n") == 1
    assert build.main([]) == 1


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_without_a_home_nothing_is_written_where_we_stand(sources, monkeypatch, tmp_path, capsys, home):
    monkeypatch.setattr(build, "NATIVE", tmp_path / "file" / "native")
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(sources)
    before = sorted(sources.rglob("*"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user whom the system does not know
    else:
        monkeypatch.setenv("HOME", home)
    assert build.cache_folder("9.9.9") is None
    assert library_file.find("9.9.9", []) is None
    assert build.main(["--if-possible"]) == 0
    assert "no home: set XDG_CACHE_HOME" in capsys.readouterr().err
    assert sorted(sources.rglob("*")) == before


def test_the_cache_is_the_user_s_with_a_folder_for_each_tensorflow_and_state_of_the_sources(sources, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    first = build.cache_folder("9.9.9")
    assert str(first).startswith(f"/cache/keras_lowbit/native/9.9.9-{platform.machine()}-")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # to be ignored, says the specification
    monkeypatch.setenv("HOME", "/home/me")
    assert str(build.cache_folder("9.9.9")) == f"/home/me/.cache/keras_lowbit/native/{first.name}"
    assert build.cache_folder("9.9.8").name != first.name
    (sources / "core" / "a.cc").write_text("int other;\n")
    assert build.cache_folder("9.9.9").name != first.name


# A build whose compiler takes a minute.
KILLED = f"""
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("b", {str(ROOT / "keras_lowbit" / "ops" / "build.py")!r})
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)
build.source_folder = lambda: Path(sys.argv[1])
build.installed_tensorflow = lambda: "9.9.9"
build.ask_tensorflow = lambda: {TENSORFLOW!r}
build.build(Path(sys.argv[2]))
"""


def test_a_killed_build_is_cleared_away_by_the_next(sources, tmp_path):
    slow = script(tmp_path / "slow", '[ "$1" = --version ] || exec sleep 60')
    command = [sys.executable, "-c", KILLED, str(sources), str(build.NATIVE)]
    killed = subprocess.Popen(command, env={**os.environ, "CXX": str(slow)}, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not list(build.NATIVE.glob(f"{build.WORK}*")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        said = []
        other = threading.Thread(target=lambda: build.build(say=said.append))
        other.start()  # waits while the first one lives
        while not said:
            time.sleep(0.02)
        assert said[0].startswith("waiting for another build of")
        assert list(build.NATIVE.glob(f"{build.WORK}*"))
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    other.join(60)
    assert sorted(path.name for path in build.NATIVE.iterdir()) == [build.INFO, build.NAME]
    assert not problem(build.NATIVE)


def test_a_disk_without_locks_is_built_on_as_well(sources, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    build.build(say=str)
    assert not problem(build.NATIVE)


def test_what_is_written_beside_it(sources):
    info = build.read_info(build.build(say=str))
    assert info["tensorflow"] == "9.9.9"
    assert info["machine"] == platform.machine()
    assert info["compiler"].startswith(build.find_compiler()[0])
