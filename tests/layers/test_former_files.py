"""Files of format version 1 load: layers, packed layers, quantizers and recipes, with the options under their present names."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.quantizers import (
    ActivationRange,
    AdjustableThreshold,
    Binary,
    Clustered,
    DynamicFixedPoint,
    Incremental,
    LearnedPowerOfTwo,
    LearnedStep,
    PowerOfTwo,
    Stochastic,
    Ternary,
    Uniform,
    deserialize,
)
from keras_lowbit.quantizers.former import upgrade
from tests.support.model_zoo import run

FOLDER = Path(__file__).parent.parent / "fixtures" / "v1"
QUANTIZERS = json.loads((FOLDER / "quantizers.json").read_text())
RECIPES = json.loads((FOLDER / "recipes.json").read_text())
TODAY = [
    Uniform(4, "tensor", "mse"),
    Uniform(8, "channel", "percentile", 99.0),
    ActivationRange(),
    ActivationRange(minimum=-1.0, maximum=1.0),
    Binary("tensor"),
    Ternary(0.75, granularity="tensor", scale_granularity="tensor", centered=True),
    Ternary(calibration="mse"),
    PowerOfTwo(4, "channel", calibration="mse"),
    PowerOfTwo(5, "tensor", int8_exact=True),
    Clustered(Ternary(), 4, "mse"),
    Clustered(Uniform(4), 16, granularity="tensor"),
    DynamicFixedPoint(8, granularity="channel"),
    DynamicFixedPoint(8),
    Stochastic(Ternary(), "element"),
    Stochastic(Binary("tensor")),
    Incremental(PowerOfTwo(3, "channel", calibration="mse"), "random"),
    AdjustableThreshold(Uniform(4, "tensor"), calibration="mse"),
    AdjustableThreshold(ActivationRange(), mode="asymmetric"),
    LearnedStep(Uniform(4)),
    LearnedPowerOfTwo(Uniform(4, "tensor")),
]


def stored(name):
    with np.load(FOLDER / name) as arrays:
        return dict(arrays)


def test_every_layer_loads_with_its_codes_and_scales_to_the_bit():
    model, wanted = keras.saving.load_model(FOLDER / "every_layer.keras"), stored("every_layer.npz")
    weights = klb.quantized_weights(model)
    assert {f"codes_{path}" for path in weights} == {name for name in wanted if name.startswith("codes_")}
    for path, found in weights.items():
        np.testing.assert_array_equal(found.codes, wanted[f"codes_{path}"])
        np.testing.assert_array_equal(found.scale, wanted[f"scale_{path}"])
    # Float convolutions round differently on other processors.
    np.testing.assert_allclose(run(model, wanted["data"])[0], wanted["outputs"], atol=1e-5)
    assert model.get_layer("conv").kernel_quantizer == Stochastic(Ternary(granularity="tensor"), seed=5)
    assert model.get_layer("conv1d").kernel_quantizer == Clustered(Ternary(), 4, "mse", granularity="tensor")


def test_a_loaded_file_is_written_in_todays_words(tmp_path):
    model, wanted = keras.saving.load_model(FOLDER / "every_layer.keras"), stored("every_layer.npz")
    model.save(tmp_path / "today.keras")
    again = keras.saving.load_model(tmp_path / "today.keras")
    for old, new in zip(model.layers, again.layers, strict=True):
        assert old.get_config() == new.get_config()
    np.testing.assert_array_equal(run(again, wanted["data"])[0], run(model, wanted["data"])[0], strict=True)


def test_packed_layers_load():
    model, wanted = keras.saving.load_model(FOLDER / "packed.keras"), stored("packed.npz")
    assert any(type(layer).__name__ == "PackedTernaryConv2D" for layer in model.layers)
    np.testing.assert_allclose(run(model, wanted["data"])[0], wanted["outputs"], atol=1e-5)


@pytest.mark.parametrize(("former", "today"), list(zip(QUANTIZERS, TODAY, strict=True)), ids=range(len(TODAY)))
def test_every_quantizer_is_upgraded(former, today):
    found = deserialize(upgrade(former["config"], 1))
    assert found == today
    assert deserialize(json.loads(json.dumps(found.get_config()))) == found
    assert upgrade(found.get_config(), 2) == found.get_config()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_todays(name):
    found = klb.recipes.get(RECIPES[name])
    assert found == klb.recipes.get(name)
    assert found.get_config()["format_version"] == 2
    assert klb.recipes.Recipe.from_json(json.dumps(RECIPES[name])) == found


def test_no_recipe_was_left_out():
    assert set(RECIPES) <= set(klb.recipes.names())
