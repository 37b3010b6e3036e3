"""What `verify` does in pieces and in threads gives what it gives at once, and how much memory it takes."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from threadpoolctl import threadpool_info

import keras_lowbit as klb
from keras_lowbit.deploy.reference import trace
from keras_lowbit.deploy.verification import layers, numpy_reference
from keras_lowbit.deploy.verification.numpy_reference import trace_by_batches
from tests.support.lowering_zoo import ZOO, trained


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """(quantized model, 6 images, path of its file)."""
    model, images = trained(ZOO["add"])
    path = tmp_path_factory.mktemp("large") / "m.tflite"
    klb.export_litert(model, path)
    return model, np.concatenate([images, images[::-1]])[:6], path


def test_pieces_of_a_layer_add_up(residual, monkeypatch):
    model, images, path = residual
    whole = klb.verify(model, path, images)
    monkeypatch.setattr(layers, "CACHED", 7)
    for one, other in zip(whole.layers, klb.verify(model, path, images).layers, strict=True):
        assert other.snr_db == pytest.approx(one.snr_db)
        assert (other.elements, other.max_steps, other.exact, other.unrounded) == (
            one.elements,
            one.max_steps,
            one.exact,
            one.unrounded,
        )


@pytest.mark.parametrize("size", [1, 2, 6])
def test_batches_in_threads_are_the_whole(residual, size):
    model, images, _ = residual
    graph = klb.deploy.lower(model)
    found, expected = trace_by_batches(graph, [images], size), trace(graph, images)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def threads_of_blas():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_a_blas_keeps_its_threads(residual, monkeypatch):
    """Also where several verify at once, and where something is raised."""
    model, images, _ = residual
    graph, seen, before = klb.deploy.lower(model), [], threads_of_blas()
    monkeypatch.setattr(numpy_reference, "trace", lambda *given: seen.append(threads_of_blas()) or trace(*given))
    with ThreadPoolExecutor(4) as several:
        list(several.map(lambda _: trace_by_batches(graph, [images], 1), range(4)))
    with pytest.raises(ValueError, match="has shape"):
        trace_by_batches(graph, [images[:, :3]], 2)
    assert len(seen) > 4 * 6
    assert {count for counts in seen for count in counts} == {1}
    assert threads_of_blas() == before


def test_the_bytes_of_the_file_are_held_once(tmp_path):
    """Them, the lowered model (its codes, twice), and once more while the file is written anew: before, nine times in all."""
    x = inputs = keras.Input((512,))
    for _ in range(16):
        x = keras.layers.Dense(512, activation="relu")(x)
    model, _ = klb.quantize_model(keras.Model(inputs, x), "int8")
    data = np.random.default_rng(0).normal(size=(2, 512)).astype("float32")
    klb.calibrate(model, data, verbose=0)
    path = tmp_path / "m.tflite"
    klb.export_litert(model, path)
    klb.verify(model, path, data)  # what loads late is loaded
    tracemalloc.start()
    assert klb.verify(model, path, data).ok
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * path.stat().st_size
