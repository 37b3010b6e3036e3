"""`keras-lowbit train`: the recipe's stages, a teacher, and going on after a kill to the same bits."""

import functools
import json
import os

import keras
import numpy as np
import pytest

from keras_lowbit.keras_graph.variables import to_numpy
from tests.support.events import read_events


@pytest.fixture(autouse=True)
def _without_xla(monkeypatch):
    """Compiling takes longer than the few steps."""
    monkeypatch.setattr(keras.Model, "compile", functools.partialmethod(keras.Model.compile, jit_compile=False))


def weights(path):
    return [to_numpy(weight) for weight in keras.saving.load_model(path).weights]


def flags(files, folder, **more):
    given = {"data": files.data, "output": folder / "q.keras", "batch_size": 8, **more}
    return [f"--{name}={value}" for name, value in given.items()]


@pytest.mark.slow
def test_trains_through_the_stages_and_writes_what_verify_reads(call, files, tmp_path):
    found = call(
        "train",
        files.model,
        *flags(files, tmp_path, recipe="sq-twn", epochs=4, validation=files.data),
        "--pack=int2",
        f"--tensorboard={tmp_path / 'logs'}",
        "--augment=cifar",
        "--json",
    )
    assert found.status == 0, found
    history = found.fields["history"]
    assert history["ratio"] == [0.5, 0.75, 0.875, 1.0]
    assert len(history["val_accuracy"]) == 4
    assert found.fields["file"] == str(tmp_path / "q.tflite")
    assert call("verify", tmp_path / "q.keras", tmp_path / "q.tflite", "--data", files.data).status == 0
    assert sorted(os.listdir(tmp_path)) == ["logs", "q.keras", "q.tflite"]
    events, _ = read_events(tmp_path / "logs")
    assert [float(value) for value in events["ratio"].values()] == history["ratio"]
    assert {"codes/conv", "weights/classes", "epoch_val_accuracy", "sparsity/conv"} <= set(events)


class Killed(BaseException):
    """As a signal: nothing catches it."""


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "at"), [("sq-twn", (3, 0)), ("inq-5", (2, 1))])
@pytest.mark.filterwarnings("default")  # statistics of so few samples may be taken back
def test_a_killed_run_goes_on_to_the_same_bits(call, files, tmp_path, monkeypatch, recipe, at):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    common = {"recipe": recipe, "epochs": 6 if recipe == "inq-5" else 4}
    assert call("train", files.model, *flags(files, tmp_path / "whole", **common)).status == 0
    arguments = flags(files, tmp_path / "killed", checkpoint=tmp_path / "state", **common)
    fit = keras.Model.fit

    def killed_fit(model, *given, callbacks, **named):
        epoch = []
        kill = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda number, logs: epoch.append(number),
            on_train_batch_end=lambda batch, logs: _raise_if((epoch[-1], batch) == at),
        )
        return fit(model, *given, callbacks=[*callbacks, kill], **named)

    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "fit", killed_fit)
        with pytest.raises(Killed):
            call("train", files.model, *arguments)
    assert os.listdir(tmp_path / "killed") == []
    assert call("train", files.model, *arguments).status == 0
    whole, resumed = (weights(tmp_path / name / "q.keras") for name in ("whole", "killed"))
    assert all(np.array_equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert os.listdir(tmp_path / "state") == []


def _raise_if(condition):
    if condition:
        raise Killed


@pytest.mark.slow
def test_a_teacher_needs_no_labels(call, files, tmp_path):
    images = np.load(files.data)["images"]
    np.save(tmp_path / "images.npy", images)
    given = flags(files, tmp_path, recipe="twn", epochs=6, data=tmp_path / "images.npy", learning_rate=0.01)
    assert call("train", files.model, *given).refused("has no labels", "--teacher")
    found = call("train", files.model, *given, f"--teacher={files.model}", "--target=npu-per-tensor", "--json")
    losses = found.fields["history"]["loss"]
    assert len(losses) == 6
    assert losses[-1] < losses[0] / 2
    assert (found.status, found.fields["file"]) == (
        1,
        None,
    )  # the device takes one scale for a kernel: the training stays
    assert "npu-per-tensor" in found.fields["no_file_because"]
    assert sorted(os.listdir(tmp_path)) == ["images.npy", "q.keras"]


def test_bad_input_is_one_sentence_and_leaves_nothing(call, files, tmp_path):
    def refused(*words, model=files.model, **more):
        assert call("train", model, *flags(files, tmp_path, **more)).refused(*words)
        assert os.listdir(tmp_path) == []

    two = files.folder / "two.txt"
    two.write_text("one\ntwo\n")
    refused("is tuned without training", recipe="fat")
    refused("is quantized already", model=files.quantized)
    refused("has 2 labels", labels=two)
    refused("toaster", target="toaster")
    refused("cifar10", augment="cifar10")
    refused("is a file. Give a folder", tensorboard=two)
    refused("no data at", data="none")
    refused("no data at", validation="none")
    refused("no file 'none.keras'", teacher="none.keras")
    refused("4 stages", recipe="sq-twn", epochs=2)
    outside = files.folder / "outside.npz"
    np.savez(outside, x=np.zeros((8, 12, 12, 3), np.float32), y=np.arange(8))
    refused("label value", "valid range of [0, 4)", data=outside, recipe="twn")
    for name in ("q.keras", "q.tflite"):
        (tmp_path / name).write_bytes(b"mine")
        assert call("train", files.model, *flags(files, tmp_path)).refused(name, "exists already")
        (tmp_path / name).unlink()


def test_a_run_that_was_killed_before_it_wrote_its_model_needs_no_epoch(call, files, tmp_path, monkeypatch):
    given = flags(files, tmp_path, recipe="twn", epochs=2, checkpoint=tmp_path / "state")

    def killed(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("keras_lowbit.cli.options.write_output", killed)
        with pytest.raises(Killed):
            call("train", files.model, *given)
    assert sorted(os.listdir(tmp_path / "state")) == ["epoch-2.weights.h5", "settings.json"]
    found = call("train", files.model, *given, "--json")
    assert (found.status, found.fields["history"]) == (0, {})
    assert (tmp_path / "q.keras").exists()


def test_a_damaged_state_is_named(call, files, tmp_path):
    given = flags(files, tmp_path, recipe="twn", epochs=2, checkpoint=tmp_path / "state")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "epoch-1.weights.h5").write_bytes(b"half")
    assert call("train", files.model, *given).refused("epoch-1.weights.h5", "delete it to begin anew")
    assert not (tmp_path / "q.keras").exists()


def test_the_state_of_another_run_is_refused(call, files, tmp_path):
    (tmp_path / "state").mkdir()
    for content, words in (
        (json.dumps({"epochs": 3}).encode(), "other model, model file, recipe"),
        (b"{", "holds no settings"),
    ):
        (tmp_path / "state" / "settings.json").write_bytes(content)
        assert call("train", files.model, *flags(files, tmp_path, checkpoint=tmp_path / "state")).refused(words)
