"""The clustered study's own pieces, on networks small enough for a test."""

import json

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.keras_graph.variables import to_numpy
from studies.common import imagenet
from studies.dfp_imagenet import plot, run, tune
from studies.dfp_imagenet.networks import NETWORKS, unfold_batch_norms
from tests.support.model_zoo import run as outputs

kl = keras.layers


def test_unfolded_batch_norms_hold_the_statistics_of_the_data_and_change_nothing():
    rng = np.random.default_rng(0)
    image = keras.Input((6, 6, 3))
    value = kl.BatchNormalization(name="one")(kl.Conv2D(4, 3, use_bias=False, name="conv")(image))
    model = keras.Model(image, kl.BatchNormalization(name="two")(kl.Conv2D(5, 1)(kl.ReLU()(value))))
    for name in ("one", "two"):
        norm = model.get_layer(name)
        size = norm.gamma.shape[0]
        norm.set_weights([np.ones(size), rng.normal(size=size), np.zeros(size), np.full(size, 1 - norm.epsilon)])
    images = rng.normal(size=(40, 6, 6, 3)).astype("float32")
    before = outputs(model, images)[0]
    seen = outputs(keras.Model(image, model.get_layer("one").input), images)[0].reshape(-1, 4)
    unfold_batch_norms(model, images, batch_size=16)
    np.testing.assert_allclose(outputs(model, images)[0], before, atol=2e-5)
    np.testing.assert_allclose(model.get_layer("one").moving_mean, seen.mean(0), atol=1e-6)
    np.testing.assert_allclose(model.get_layer("one").moving_variance, seen.var(0), rtol=1e-5)


def distance(one, other, pixels):
    images = imagenet.normalize(pixels)
    return np.square(outputs(one, images)[0] - outputs(other, images)[0]).mean()


def test_tuning_without_labels_trains_the_weights_and_ends_closer_to_the_teacher(monkeypatch):
    monkeypatch.setattr(tune, "HELD_BACK", 16)
    monkeypatch.setattr(tune, "RATE", 0.05)
    image = keras.Input((6, 6, 3))
    hidden = kl.BatchNormalization()(kl.Conv2D(8, 3, use_bias=False, name="conv")(image))
    teacher = keras.Model(image, kl.Dense(4, name="head")(kl.GlobalAveragePooling2D()(kl.ReLU()(hidden))))
    pixels = np.random.default_rng(0).integers(0, 256, (48, 6, 6, 3)).astype(np.uint8)
    quantized, _ = klb.quantize_model(teacher, klb.recipes.dfp(2, cluster_size=2, first=None))
    klb.calibrate(quantized, imagenet.normalize(pixels), verbose=0)
    quantized.get_layer("head").bias.assign([0.3, 0.3, 0.3, 0.3])  # the teacher has 0
    before = distance(teacher, quantized, pixels)
    kernel = to_numpy(quantized.get_layer("conv").kernel).copy()
    found = tune.tune_without_labels(quantized, teacher, pixels)
    assert found["tuning_images"] == 32
    assert distance(teacher, quantized, pixels) < 0.8 * before
    assert np.any(kernel != to_numpy(quantized.get_layer("conv").kernel))


@pytest.mark.parametrize("network", NETWORKS)
def test_every_run_is_planned_once_and_has_a_recipe(network):
    runs = run.plan(network)
    assert len({run.key(each) for each in runs}) == len(runs)
    assert runs[0]["weights"] == "float"
    for each in runs[1:]:
        assert run.recipe(each).activations == klb.quantizers.DynamicFixedPoint(8)


def test_finished_runs_are_kept_listed_and_drawn(tmp_path):
    path = tmp_path / "result.json"
    for each in run.plan("resnet20"):
        with run.update(path) as runs:
            runs.append(each | {"accuracy": 0.5, "weight_error": 0.1})
    found = run.read(path)
    assert [run.key(each) for each in found] == [run.key(each) for each in run.plan("resnet20")]
    assert len(run.table(found).splitlines()) == len(found) + 1
    plot.main(["--result", str(path), "--output", str(tmp_path / "result.png")])
    assert (tmp_path / "result.png").stat().st_size > 10_000
    assert json.loads(path.read_text()).keys() == {"runs"}
