"""bench.runtime: a tiny network in three forms, two worker processes, and figures that are what they say."""

import json

import keras
import numpy as np
import pytest

from keras_lowbit.bench import kernels, runtime, workers
from keras_lowbit.deploy.interpreters import make_interpreter


@pytest.fixture(scope="module")
def tiny():
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3))
    y = keras.layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
    y = keras.layers.ReLU()(keras.layers.BatchNormalization()(y))
    y = keras.layers.Add()([y, keras.layers.Conv2D(8, 1)(y)])
    return keras.Model(x, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(y)), name="tiny")


@pytest.mark.slow
def test_a_report_compares_all_kinds_and_thread_counts(tiny):
    layer = kernels.Shape("n", 5, 3, 8, 16)
    report = runtime.measure(tiny, (1, 2), repeats=2, milliseconds=0.1, layers=(layer,))
    report = json.loads(json.dumps(report))
    assert [row["threads"] for row in report["rows"]] == [1, 2]
    for row in report["rows"]:
        for kind in ("tf_float32", "litert_int8"):
            middle, low, high = row[f"times_{kind}"]
            assert 0 < low <= middle <= high
    assert [row["what"] for row in report["scaling"]] == ["runtime", str(layer)]
    assert report["machine"]["weight_bytes"]["runtime"] > 0
    assert f"can use {report['machine']['litert_instructions']}" in runtime.markdown(report)


def test_each_network_has_its_name_in_the_flag_and_in_keras():
    for name in runtime.NETWORKS:
        assert callable(getattr(keras.applications, name))
        assert runtime.FLAGS["network"].parser.parse(name) == name


def test_the_three_forms_are_one_network(tiny, tmp_path):
    """The served runtime and the file give the same codes; the float model near values."""
    runtime.prepare(tiny, tmp_path)
    outputs = {name: run() for name, run in runtime.runs_of(1, str(tmp_path), ()).items() if name != "litert_int8"}
    images = np.random.default_rng(1).integers(-128, 128, (1, 8, 8, 3)).astype(np.int8)
    filed = make_interpreter("reference", model_path=str(tmp_path / "int8.tflite"))
    filed.set_tensor(filed.get_input_details()[0]["index"], images)
    filed.invoke()
    np.testing.assert_array_equal(outputs["runtime"], filed.get_tensor(filed.get_output_details()[0]["index"]))
    assert outputs["tf_float32"].shape == (1, 5)


def _fails(threads):
    raise ValueError(f"no runs on {threads} threads")


def test_a_worker_that_fails_is_an_error(capfd):
    with pytest.raises(RuntimeError, match="a worker process ended"):
        workers.interleaved_workers(_fails, (1,), 1)
    assert "no runs on 1 threads" in capfd.readouterr().err
