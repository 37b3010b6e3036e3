"""The ops' CUDA kernels as far as a machine without a GPU shows: compiled, linked, registered, named by doctor."""

import json
import sys

import pytest

from keras_lowbit.ops import build, build_cuda, cuda
from keras_lowbit.ops.library import OP_NAMES
from tests.support.process import ROOT, run_python


def missing():
    """Why the kernels cannot be compiled here; empty if they can."""
    try:
        build_cuda.find_nvcc()
        build.find_compiler()
    except build.BuildError as error:
        return str(error)
    return "" if build.installed_tensorflow() else "no TensorFlow"


needs_nvcc = pytest.mark.skipif(bool(missing()), reason=missing())

REGISTERED = """
import json, sys
from pathlib import Path
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import kernels
from keras_lowbit import ops
from keras_lowbit.ops import cuda, library

ops.load()
handle = cuda.load_file(Path(sys.argv[1]))
found = {name: sorted(k.device_type for k in kernels.get_registered_kernels_for_op(f"KerasLowbit>{name}").kernel)
         for name in library.OP_NAMES}
codes, kernel = np.ones((2, 8), np.int8), ops.pack_kernel(np.ones((8, 3), np.int8))
plain = ops.ternary_dense(codes, kernel)
tf.config.set_soft_device_placement(False)
try:
    with tf.device("GPU:0"):
        ops.ternary_dense(tf.constant(codes), kernel)
    error = ""
except (tf.errors.InvalidArgumentError, RuntimeError) as raised:
    error = str(raised)
print(json.dumps({"kernels": found, "sums": plain.numpy().tolist(), "where": plain.device, "error": error,
                  "device": cuda.device(handle), "gpus": len(tf.config.list_physical_devices("GPU"))}))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build_cuda.build_library(tmp_path_factory.mktemp("cuda"), ["80"], say=str)


@needs_nvcc
@pytest.mark.slow(60)
def test_every_op_has_a_gpu_kernel_and_runs_on_the_cpu_as_before(library):
    info = build.read_info(library, build_cuda.INFO)
    assert info["architectures"] == ["80"]
    assert info["cuda"] == build_cuda.find_nvcc().version
    found = json.loads(run_python(REGISTERED, library).splitlines()[-1])
    assert found["kernels"] == {name: ["CPU", "GPU"] for name in OP_NAMES}
    assert found["sums"] == [[8, 8, 8], [8, 8, 8]]
    name, why_not = found["device"]
    # CUDA's own runtime answers, not TensorFlow's stand-in for another version ("Error loading CUDA libraries").
    assert bool(name) != bool(why_not)
    assert "Error loading" not in why_not
    if not found["gpus"]:
        assert "CPU:0" in found["where"]
        assert "/device:GPU:0" in found["error"]  # TensorFlow's own words: there is no such device


def test_without_a_cuda_compiler_one_sentence_says_so(monkeypatch, capsys):
    monkeypatch.setenv("CUDACXX", "/nonexistent/nvcc")
    with pytest.raises(build.BuildError, match="no CUDA compiler: /nonexistent/nvcc is not on the PATH"):
        build_cuda.find_nvcc()
    assert build_cuda.main(["--if-possible"]) == 0
    assert build_cuda.main([]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(line.startswith("CUDA kernels not built, the ops run on the CPU") for line in said)


def test_architectures_are_those_that_the_compiler_has(monkeypatch, tmp_path):
    def nvcc(version):
        return build_cuda.Nvcc("nvcc", version, tmp_path)

    assert build_cuda.architectures_of(nvcc("12.9")) == ("61", "75", "80", "89", "90")
    assert build_cuda.architectures_of(nvcc("13.0")) == ("75", "80", "89", "90")
    assert build_cuda.chosen(None) is None
    assert build_cuda.chosen("80,90") == ["80", "90"]
    code = build_cuda._gencode(build_cuda.architectures_of(nvcc("12.9")))
    assert code[0] == "-gencode=arch=compute_61,code=sm_61"
    assert code[-1] == "-gencode=arch=compute_90,code=compute_90"


def test_a_compiler_that_says_nothing_of_cuda_is_refused(monkeypatch):
    monkeypatch.setenv("CUDACXX", sys.executable)
    with pytest.raises(build.BuildError, match="does not say which CUDA it is of"):
        build_cuda.find_nvcc()


def test_a_library_of_other_sources_is_not_found(monkeypatch, tmp_path):
    monkeypatch.setattr(build_cuda, "target_folder", lambda version: tmp_path)
    assert build_cuda.find("2.21.0") is None
    (tmp_path / build_cuda.NAME).write_bytes(b"whole")
    info = {"sha256": build_cuda.hashlib.sha256(b"whole").hexdigest(), "fingerprint": build_cuda.fingerprint("2.21.0")}
    (tmp_path / build_cuda.INFO).write_text(json.dumps(info))
    assert build_cuda.find("2.21.0") == tmp_path / build_cuda.NAME
    assert build_cuda.find("2.20.0") is None
    (tmp_path / build_cuda.NAME).write_bytes(b"whol")
    assert build_cuda.find("2.21.0") is None


def test_a_library_that_does_not_load_is_a_warning(monkeypatch, tmp_path, caplog):
    (tmp_path / build_cuda.NAME).write_bytes(b"no library")
    monkeypatch.setattr(build_cuda, "find", lambda version: tmp_path / build_cuda.NAME)
    assert cuda.load("2.21.0") is None
    assert "the ops run on the CPU alone" in caplog.text


def test_the_report_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("CUDACXX", "/nonexistent/nvcc")
    monkeypatch.setattr(build_cuda, "find", lambda version: None)
    rows = dict(cuda.report("2.21.0", None))
    assert "no CUDA compiler" in rows["CUDA compiler"]
    assert rows["CUDA kernels"].startswith(f"not built: `{build_cuda.COMMAND}`")
    assert rows["GPU"] == "the ops run on the CPU: no CUDA kernels are loaded"


def test_sources_of_the_library_are_all_there():
    folder = ROOT / "custom_ops"
    for name in (*build_cuda.SOURCES, build_cuda.TF_SOURCE, build_cuda.KERNELS):
        assert (folder / name).is_file(), name
