"""assign_bits: bits go where they help, files keep their budget."""

import json
import os

import keras
import numpy as np
import pytest
from keras import layers

import keras_lowbit as klb
from keras_lowbit.sensitivity.choices import BitChoices, LayerChoices, quantizer_of
from keras_lowbit.sensitivity.logits import Score


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(size=(48, 6, 6, 3)).astype("float32")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(2)
    inputs = x = keras.Input((6, 6, 3))
    x = layers.Conv2D(16, 3, activation="relu", name="conv")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(48, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(5, name="classes")(x))


@pytest.fixture(scope="module")
def choices(model, images):
    return klb.bit_choices(model, images, choices=(8, 4, 2), verbose=0)


def test_fewer_bits_are_noisier_and_never_larger(choices):
    assert [layer.path for layer in choices.layers] == ["conv", "hidden", "classes"]
    for layer in choices.layers:
        assert layer.noise[8] == 0 < layer.noise[4] < layer.noise[2]
        assert layer.size[8] >= layer.size[4] >= layer.size[2]
    hidden = choices.layers[1]
    assert hidden.size[4] < 0.6 * hidden.size[8]


def test_sizes_are_those_of_the_files(choices, model, images, tmp_path):
    for chosen in (choices.path[0], choices.path[-1]):
        recipe = choices.as_recipe(chosen, "test")
        quantized, _ = klb.quantize_model(model, recipe)
        klb.calibrate(quantized, images, verbose=0)
        klb.export_litert(quantized, tmp_path / "m.tflite", weights="auto")
        size = os.path.getsize(tmp_path / "m.tflite")
        assert choices.size_of(chosen) == pytest.approx(size, abs=600)  # operators' versions, metadata
        assert klb.verify(quantized, tmp_path / "m.tflite", images).ok


def test_size_budget_is_kept_by_the_file(choices, model):
    most, least = (choices.file_size(choices.as_recipe(choices.path[i], "")) for i in (0, -1))
    budget = (most + least) / 2000
    recipe = choices.recipe(budget_kb=budget)
    assert choices.file_size(recipe) <= 1000 * budget
    assert len(recipe.plan) == 3
    with pytest.raises(ValueError, match=r"No choice of bits .* the smallest has .* kB"):
        choices.recipe(budget_kb=least / 1000 - 0.1)


def test_points_budget_is_kept_by_the_smallest(choices):
    recipe = choices.recipe(budget_points=100)
    assert {rule.layers: rule.kernel for rule in recipe.plan} == {
        path: quantizer_of(choice) for path, choice in choices.path[-1].items()
    }
    kept = next(c for c in choices.path if choices.points_lost(c) <= 2)
    assert choices.points_lost(kept) <= 2


@pytest.mark.parametrize("budgets", [{}, {"budget_kb": 9, "budget_points": 1}])
def test_one_budget(model, images, budgets):
    with pytest.raises(ValueError, match="one of budget_kb and budget_points"):
        klb.assign_bits(model, images, **budgets)


@pytest.mark.parametrize(
    ("given", "message"),
    [((8, 5.5), r"has \[5.5\]; choose from"), ((8,), "leaves nothing to choose"), ((8, True), "has")],
)
def test_choices_are_looked_at(model, images, given, message):
    with pytest.raises(ValueError, match=message):
        klb.bit_choices(model, images, choices=given)


def test_assign_bits_is_both_in_one(model, images, choices):
    budget = choices.file_size(choices.as_recipe(choices.path[1], "")) / 1000
    recipe = klb.assign_bits(model, images, budget_kb=budget, choices=(8, 4, 2), verbose=0)
    assert recipe == choices.recipe(budget_kb=budget)
    assert klb.recipes.Recipe.from_json(recipe.to_json()) == recipe


def made_up(noise, size):
    """Choices of numbers alone: what is measured is what they say."""
    rows = tuple(LayerChoices(path, noise[path], size) for path in noise)

    def measure(chosen):
        return Score(0.0, 1 - sum(noise[path][choice] for path, choice in chosen.items()))

    return BitChoices("made_up", rows, 100, 4000, None, 10, measure, file_size=lambda recipe: 0)


def test_the_path_takes_the_cheapest_step_first_and_skips_what_is_not_on_the_hull():
    size = {8: 800, 4: 400, 2: 200}
    found = made_up({"robust": {8: 0.0, 4: 0.001, 2: 0.002}, "weak": {8: 0.0, 4: 0.5, 2: 0.51}}, size)
    assert [tuple(chosen.values()) for chosen in found.path] == [(8, 8), (4, 8), (2, 8), (2, 2)]
    assert [found.size_of(chosen) for chosen in found.path] == [1700, 1300, 1100, 500]
    assert found.points_lost(found.path[2]) == pytest.approx(0.2)
    assert [rule.kernel for rule in found.recipe(budget_points=1).plan] == [quantizer_of(2), quantizer_of(8)]
    with pytest.raises(ValueError, match="Even the least noisy choice"):
        made_up({"a": {8: 0.5, 4: 0.6}}, {8: 800, 4: 400}).recipe(budget_points=1)


def test_table_json_and_picture(choices, tmp_path):
    assert "conv" in str(choices)
    read = json.loads(choices.to_json())
    assert [step["bytes"] for step in read["path"]] == [choices.size_of(c) for c in choices.path]
    picture = choices.plot(tmp_path / "front.png", choices.path[1])
    lines = picture.axes[0].lines
    assert lines[0].get_xdata()[0] == pytest.approx(choices.size_of(choices.path[0]) / 1000)
    assert (lines[1].get_xdata()[0], lines[1].get_ydata()[0]) == (choices.float_size / 1000, 100)
