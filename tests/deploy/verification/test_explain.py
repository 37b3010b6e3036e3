"""`verify` says what in the data explains its verdict."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb

L = keras.layers


def test_features_that_one_step_swallows_are_named(tmp_path):
    scale = np.array([1, 10, 100, 0.1, 5, 1, 1, 1000], np.float32)
    rows = (np.random.default_rng(0).normal(size=(64, 8)) * scale).astype("float32")
    norm = L.Normalization(name="norm")
    norm.adapt(rows)
    model = keras.Sequential([keras.Input((8,), name="row"), norm, L.Dense(4)])
    copy, _ = klb.quantize_model(model)
    with pytest.warns(UserWarning, match=r"features 0, .*6 of the input 'row'"):
        klb.calibrate(copy, rows, verbose=0)
    klb.export_litert(copy, tmp_path / "m.tflite")
    parity = klb.verify(copy, tmp_path / "m.tflite", rows)
    assert not parity.ok
    [note] = parity.notes
    assert "of the input 'row' vary by less than" in note
    assert note in str(parity)
    skipped, _ = klb.quantize_model(model, skip=["norm"])
    klb.calibrate(skipped, rows, verbose=0)
    klb.export_litert(skipped, tmp_path / "m.tflite")
    parity = klb.verify(skipped, tmp_path / "m.tflite", rows)
    assert parity.ok
    assert parity.notes == ()
