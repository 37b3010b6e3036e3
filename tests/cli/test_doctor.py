"""doctor says what runs, and why not; its exit status says so to scripts."""

from keras_lowbit import ops
from keras_lowbit.cli import main
from tests.support.process import run_python


def test_tells_what_runs(capsys):
    status = main(["keras-lowbit", "doctor"])
    text = capsys.readouterr().out
    assert status == (1 if ops.why_not() else 0)
    for word in ("Python", "TensorFlow", "compiler", "library", "built for", "CPU features", "available", "active"):
        assert word in text
    assert ("bench kernels --output" in text) == (status == 0)


def test_a_missing_library_is_said_with_the_remedy(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(ops.library, "_STATE", ops.library._State())
    monkeypatch.setenv("KERAS_LOWBIT_LIBRARY", str(tmp_path / "none.so"))
    assert main(["keras-lowbit", "doctor"]) == 1
    text = capsys.readouterr().out
    assert "python -m keras_lowbit.ops.build" in text
    assert "tf_fallback" in text


def test_a_library_for_another_tensorflow_is_refused(capsys, monkeypatch, tmp_path):
    (tmp_path / "x.so").write_bytes(b"")
    (tmp_path / "build.json").write_text('{"tensorflow": "1.0.0", "machine": "x", "abi": []}')
    monkeypatch.setattr(ops.library, "_STATE", ops.library._State())
    monkeypatch.setenv("KERAS_LOWBIT_LIBRARY", str(tmp_path / "x.so"))
    assert main(["keras-lowbit", "doctor"]) == 1
    assert "was built for TensorFlow 1.0.0" in capsys.readouterr().out


def test_strict_mode_without_a_library_is_reported_too(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(ops.library, "_STATE", ops.library._State())
    monkeypatch.setenv("KERAS_LOWBIT_LIBRARY", str(tmp_path / "none.so"))
    monkeypatch.setenv("KERAS_LOWBIT_STRICT", "1")
    assert main(["keras-lowbit", "doctor"]) == 1
    *_, active, _, last = capsys.readouterr().out.splitlines()
    assert active.split() == ["active", "none"]
    assert last.startswith("The ops do not run: KERAS_LOWBIT_LIBRARY=")


DOCTOR = "from keras_lowbit.cli import main; print(main(['keras-lowbit', 'doctor']))"


def test_an_unknown_isa_target_is_a_failure():
    *_, active, _, why, status = run_python(DOCTOR, KERAS_LOWBIT_KERNEL="sse9").splitlines()
    assert active.split() == ["active", "none"]
    assert why.startswith("The ops do not run: ")
    assert "sse9" in why
    assert status == "1"
