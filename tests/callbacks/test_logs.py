"""What the schedules log is there for every callback, wherever it stands in the list."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowbit import callbacks
from keras_lowbit.callbacks.logs import add_before_all
from keras_lowbit.quantizers import Incremental, PowerOfTwo
from tests.support.training import compiled, fit

SCHEDULES = {
    "ratio": (lambda: callbacks.RatioSchedule(), {}),
    "portion": (lambda: callbacks.PartitionSchedule((0.5, 1)), {"kernel": Incremental(PowerOfTwo(5))}),
    "learning_rate": (lambda: callbacks.CosineRestarts(period=5), {}),
}


def scalars(folder):
    """Tag -> values by epoch of what TensorBoard wrote."""
    found: dict = {}
    for file in folder.rglob("*tfevents*"):
        for record in tf.data.TFRecordDataset(str(file)):
            for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
                if value.tag.startswith("epoch_"):
                    found.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
    return found


@pytest.mark.parametrize("before", [True, False], ids=["logger first", "logger last"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_loggers_find_what_a_schedule_logs_in_any_order(tmp_path, name, before):
    make, options = SCHEDULES[name]
    model = compiled(keras.optimizers.SGD(0.05), **options)
    seen: list = []
    loggers = [
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs[name])),
    ]
    history = fit(model, *(([*loggers, make()]) if before else [make(), *loggers]), epochs=4)
    assert seen == history[name]
    assert len(seen) == 4
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    for key in (name, "flip_rate") if name != "learning_rate" else (name,):
        np.testing.assert_allclose([float(row[key]) for row in rows], history[key], rtol=1e-6)


def test_tensorboard_is_one_of_them(tmp_path):
    pytest.importorskip("tensorboard")
    model = compiled(keras.optimizers.SGD(0.05))
    history = fit(model, keras.callbacks.TensorBoard(tmp_path), callbacks.RatioSchedule(), epochs=4)
    board = scalars(tmp_path)
    for key in ("ratio", "flip_rate"):
        np.testing.assert_allclose(board[f"epoch_{key}"], history[key], rtol=1e-6)


def test_outside_of_a_list_nothing_happens():
    assert add_before_all(lambda epoch, logs: None) is None
