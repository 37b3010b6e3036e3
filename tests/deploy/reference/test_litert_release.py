"""The reference follows the LiteRT release: from 2.4 on the factors of mul and the rectifiers are formed in double."""

import sys

import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.deploy import interpreters
from keras_lowbit.deploy.graph import GraphBuilder, Range
from keras_lowbit.deploy.reference import run_reference
from keras_lowbit.deploy.runtime.runtime import Runtime
from tests.support.litert_oracle import differing_elements
from tests.support.lowering_zoo import ZOO, trained

CODES = np.arange(-128, 128, dtype=np.int8)
DECIMALS = (0.001, 0.005, 0.0125, 0.02, 0.05, 0.1, 0.25, 0.3)


def rectifier(op, source, target, zero_point=0):
    b = GraphBuilder()
    b.input("x", (256,), range=Range(source, zero_point))
    return b.build([b.operation(op, ["x"], "y", Range(target, 0), {"alpha": 0.3} if op == "leaky_relu" else {})])


def product(first, second, target):
    b = GraphBuilder()
    b.input("x", (256,), range=Range(first, 3))
    b.input("z", (256,), range=Range(second, -7))
    return b.build([b.mul("x", "z", Range(target, 0), "y")])


# operation, input scale, output scale, code -> result up to 2.3, from 2.4 on: LiteRT 2.3.0 and 2.4.0.dev20261026 gave these
TIES = [
    ("relu", 0.25, 0.1, 3, 8, 7),
    ("relu", 0.0125, 0.003, 9, 37, 38),
    ("relu6", 0.25, 0.2, 6, 8, 7),
    ("leaky_relu", 0.25, 0.1, -126, -94, -95),
]


@pytest.mark.parametrize(("op", "source", "target", "code", "before", "since"), TIES)
def test_ties_fall_as_in_the_release(op, source, target, code, before, since):
    graph, images = rectifier(op, source, target), np.full((1, 256), code, np.int8)
    assert set(run_reference(graph, images, litert="2.3.0").flat) == {before}
    assert set(run_reference(graph, images, litert="2.4").flat) == {since}
    assert set(run_reference(graph, images, litert="2.4.0.dev20261026").flat) == {since}


def test_products_are_rounded_as_in_the_release():
    graph = product(0.05, 0.05, 0.001)
    images = {"x": np.full((1, 256), 4, np.int8), "z": np.full((1, 256), -6, np.int8)}  # 1 step times 1 step
    assert run_reference(graph, images, litert="2.3")[0, 0] == 3
    assert run_reference(graph, images, litert="2.4")[0, 0] == 2


def test_the_default_is_the_installed_release_and_equals_its_kernels():
    """Round decimals as scales, so that ties abound."""
    random = np.random.default_rng(0)
    for source in DECIMALS:
        for target in DECIMALS:
            for op in ("relu", "relu6", "leaky_relu"):
                assert not any(differing_elements(rectifier(op, source, target), {"x": CODES[None]}).values())
            inputs = {name: random.permutation(CODES)[None] for name in "xz"}
            graph = product(source, random.choice(DECIMALS), target)
            assert not any(differing_elements(graph, inputs).values())


def test_the_runtime_follows_it_too():
    for graph, inputs in (
        (product(0.05, 0.05, 0.001), [CODES[None], CODES[None, ::-1]]),
        (rectifier("relu", 0.25, 0.1), CODES[None]),
    ):
        np.testing.assert_array_equal(Runtime(graph)(inputs).numpy(), run_reference(graph, inputs))


@pytest.mark.parametrize("litert", ["latest", 2.4])
def test_what_is_no_release_is_refused(litert):
    with pytest.raises(ValueError, match=r"litert=.*expected the version of a LiteRT release, such as '2.3'"):
        run_reference(rectifier("relu", 0.25, 0.1), CODES[None], litert=litert)


def test_the_version_is_that_of_the_package_that_is_imported(tmp_path, monkeypatch):
    """Several may be on the path, as distributions of different names."""
    package, about = tmp_path / "ai_edge_litert", tmp_path / "ai_edge_litert_nightly-2.4.0.dev1.dist-info"
    for folder in (package, about):
        folder.mkdir()
    (package / "__init__.py").write_text("")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ai-edge-litert-nightly\nVersion: 2.4.0.dev1\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "ai_edge_litert"]:
        monkeypatch.delitem(sys.modules, name)
    assert interpreters.litert_version.__wrapped__() == "2.4.0.dev1"
    (package / "__init__.py").unlink()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    about.rename(tmp_path / "other-1.dist-info")
    package.rename(tmp_path / "other")
    assert interpreters.litert_version.__wrapped__() is None


def test_graph_and_file_name_the_release(tmp_path):
    from keras_lowbit.deploy.litert.writer import read_metadata

    model, _ = trained(ZOO["dense 2-d"])
    klb.export_litert(model, tmp_path / "m.tflite")
    assert read_metadata(tmp_path / "m.tflite")["litert"] == interpreters.litert_version()
    assert klb.deploy.lower(model).metadata["litert"] == interpreters.litert_version()
