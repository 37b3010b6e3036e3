"""`QuantizationSummaries`: the event files, read back, hold what the model holds."""

import itertools

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.callbacks import PartitionSchedule, QuantizationSummaries, RatioSchedule
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.kernels import quantized_layers
from keras_lowbit.quantizers import Incremental, PowerOfTwo
from tests.support.events import read_events
from tests.support.training import compiled, fit

PATHS = ("conv", "inner/conv", "head")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(the model after four epochs of SQ, codes of each layer before the first and after every epoch, logs, the folder)."""
    folder = tmp_path_factory.mktemp("events") / "new" / "logs"
    keras.utils.set_random_seed(0)
    model = compiled(keras.optimizers.Adam(0.02))
    codes = [codes_of(model)]
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: codes.append(codes_of(model)))
    history = fit(model, RatioSchedule(), QuantizationSummaries(folder, every=3), look, epochs=4)
    return model, codes, history, folder


def codes_of(model):
    return {
        path: np.asarray(layer.kernel_host.encode(layer.kernel).codes)
        for path, layer in quantized_layers(model).items()
    }


def test_scalars_are_those_of_the_model(trained):
    _, codes, history, folder = trained
    values, kinds = read_events(folder)
    assert [float(value) for value in values["ratio"].values()] == [0.5, 0.75, 0.875, 1.0]
    assert [float(value) for value in values["epoch_loss"].values()] == pytest.approx(history["loss"])
    assert set(codes[0]) == set(PATHS)
    for path in PATHS:
        changed = [np.mean(old[path] != new[path]) for old, new in itertools.pairwise(codes)]
        assert [float(value) for value in values[f"flips/{path}"].values()] == pytest.approx(changed)
        zeros = [np.mean(each[path] == 0) for each in codes[1:]]
        assert [float(value) for value in values[f"sparsity/{path}"].values()] == pytest.approx(zeros)
    together = [np.concatenate([each[path].reshape(-1) for path in PATHS]) for each in codes]
    assert float(values["flips"][3]) == pytest.approx(np.mean(together[3] != together[4]))
    assert float(values["sparsity"][3]) == pytest.approx(np.mean(together[4] == 0))
    assert max(float(value) for value in values["flips"].values()) > 0
    assert kinds["ratio"] == ("scalars", 1)


def test_ranges_are_those_that_calibration_tells(trained):
    model, _, _, folder = trained
    values, _ = read_events(folder)
    ranges = klb.activation_ranges(model).ranges
    assert ranges
    for row in ranges:
        found = [float(values[f"ranges/{row.path}/{end}"][3]) for end in ("minimum", "maximum")]
        assert found == pytest.approx([row.minimum, row.maximum])


def test_histograms_have_a_bucket_for_each_code(trained):
    model, codes, _, folder = trained
    values, kinds = read_events(folder)
    for path in PATHS:
        assert list(values[f"codes/{path}"]) == list(values[f"weights/{path}"]) == [0, 3]
        for epoch in (0, 3):
            found, counts = np.unique(codes[epoch + 1][path], return_counts=True)
            assert values[f"codes/{path}"][epoch].tolist() == [
                [code - 0.5, code + 0.5, count] for code, count in zip(found, counts, strict=True)
            ]
        buckets = values[f"weights/{path}"][3]
        assert buckets[:, 2].sum() == codes[0][path].size
        layer = quantized_layers(model)[path]
        scale = np.asarray(layer.kernel_host.encode(layer.kernel).scale)
        steps = to_numpy(layer.kernel) / scale
        assert [buckets[0, 0], buckets[-1, 1]] == pytest.approx([steps.min(), steps.max()], rel=1e-5)
    assert kinds["codes/conv"] == ("histograms", 2)


def test_portions_of_inq_and_a_second_fit_in_the_same_folder(tmp_path):
    model = compiled(keras.optimizers.Adam(0.02), kernel=Incremental(PowerOfTwo(5)))
    for _ in range(2):
        fit(model, PartitionSchedule((0.5, 1.0)), QuantizationSummaries(tmp_path), epochs=2)
    values, _ = read_events(tmp_path)
    assert [float(value) for value in values["portion"].values()] == [1.0, 1.0]  # the second fit has no weights left
    assert len(list(tmp_path.iterdir())) == 2


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(TypeError, match="path=3"):
        QuantizationSummaries(3)
    with pytest.raises(ValueError, match="every=0"):
        QuantizationSummaries(tmp_path, every=0)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        fit(compiled("adam"), QuantizationSummaries(tmp_path / "file"), epochs=1)
    plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    plain.compile("adam", "mse", jit_compile=False)
    with pytest.raises(ValueError, match="no quantized layer to write about"):
        plain.fit(np.ones((2, 2)), np.ones((2, 1)), verbose=0, callbacks=[QuantizationSummaries(tmp_path)])
