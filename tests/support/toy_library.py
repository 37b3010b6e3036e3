"""Sources of an op library that compile at once, against a TensorFlow that needs no import; compilers that are scripts."""

import stat

from keras_lowbit.ops import build

TENSORFLOW = {"version": "9.9.9", "compile": ["-DA=1"], "link": []}


def toy_sources(monkeypatch, folder):
    """The folder of a library of one function, which `build` builds into folder/native or into the user's cache."""
    made = folder / "custom_ops"
    (made / "core").mkdir(parents=True)
    (made / "sources.cmake").write_text("set(KLB_SOURCES core/a.cc)")
    (made / "core" / "a.cc").write_text('extern "C" int Answer() { return 42; }\n')
    monkeypatch.setattr(build, "source_folder", lambda: made)
    monkeypatch.setattr(build, "installed_tensorflow", lambda: TENSORFLOW["version"])
    monkeypatch.setattr(build, "ask_tensorflow", lambda: TENSORFLOW)
    monkeypatch.setattr(build, "NATIVE", folder / "native")
    monkeypatch.delenv("CXX", raising=False)
    return made


def script(path, text):
    """An executable shell script; its path."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
