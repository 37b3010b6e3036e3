"""Options of format version 1, typed today: an error that names the present spelling."""

import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit import quantizers
from keras_lowbit.quantizers import (
    AdjustableThreshold,
    Binary,
    Clustered,
    DynamicFixedPoint,
    LearnedStep,
    PowerOfTwo,
    Stochastic,
    Ternary,
    Uniform,
)
from keras_lowbit.quantizers.former import FORMER_ARGUMENTS, upgrade

MODEL = object()  # refused before anything looks at it


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Binary(scope="filter"), "Binary has no argument scope= any more; write granularity='channel'."),
        (lambda: Ternary(scope="layer"), "Ternary has no argument scope= any more; write granularity='tensor'."),
        (lambda: Ternary(scale_scope="layer"), "scale_scope= any more; write scale_granularity='tensor'"),
        (lambda: Ternary(optimal=True), "optimal= any more; write calibration='mse'"),
        (lambda: Ternary(optimal=False), "optimal= any more; write calibration='mean'"),
        (lambda: PowerOfTwo(3, scope="filter"), "PowerOfTwo .* write granularity='channel'"),
        (lambda: DynamicFixedPoint(scope="layer"), "DynamicFixedPoint .* write granularity='tensor'"),
        (lambda: Clustered(mode="optimal"), "Clustered has no argument mode= any more; write calibration='mse'"),
        (lambda: Clustered(exponent="layer"), "Clustered .* write granularity='tensor'"),
        (lambda: AdjustableThreshold(start="mse"), "start= any more; write calibration='mse'"),
        (lambda: LearnedStep(start="max"), "start= any more; write calibration='max'"),
        (lambda: klb.calibrate(MODEL, None, method="mse"), "calibrate has no argument method= .* calibration='mse'"),
        (lambda: klb.recipes.dfp(mode="optimal"), "dfp has no argument mode= any more; write calibration='mse'"),
        (lambda: klb.recipes.dfp(exponent="filter"), "dfp .* write granularity='channel'"),
        (lambda: quantizers.get({"name": "ternary", "scope": "filter"}), "Ternary .* write granularity='channel'"),
        (lambda: Stochastic({"name": "binary", "scope": "layer"}), "Binary .* write granularity='tensor'"),
        (lambda: klb.layers.QuantDense(3, kernel_quantizer={"name": "clustered", "mode": "rms"}), "calibration='rms'"),
    ],
)
def test_a_former_argument_is_an_error_that_names_the_present_one(make, words):
    with pytest.raises(TypeError, match=words):
        make()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Uniform(granularity="filter"), "Uniform got granularity='filter', which is now 'channel'; choose"),
        (lambda: Uniform(4, "filter"), "granularity='filter', which is now 'channel'"),
        (lambda: Stochastic(granularity="filter"), "Stochastic got granularity='filter', which is now 'channel'"),
        (lambda: Binary("layer"), "Binary got granularity='layer', which is now 'tensor'"),
        (lambda: Ternary(0.7, "filter"), "granularity='filter', which is now 'channel'"),
        (lambda: Ternary(0.7, "channel", "channel", False, True), "calibration=True, which is now 'mse'"),
        (lambda: Clustered(Ternary(), 4, "optimal"), "calibration='optimal', which is now 'mse'"),
        (lambda: quantizers.get({"name": "uniform", "granularity": "filter"}), "which is now 'channel'"),
    ],
)
def test_a_former_value_is_an_error_that_names_the_present_one(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_what_never_was_an_option_is_refused_as_ever():
    with pytest.raises(TypeError, match="unexpected keyword argument 'scopes'"):
        Ternary(scopes="filter")
    with pytest.raises(TypeError, match="unexpected keyword argument 'methods'"):
        klb.calibrate(MODEL, None, methods="mse")
    with pytest.raises(ValueError, match=r"granularity='row'; choose one of"):
        Binary("row")


def test_only_dicts_of_version_1_are_upgraded():
    former = {
        "name": "stochastic",
        "base": {"name": "ternary", "scope": "layer", "optimal": True},
        "granularity": "filter",
    }
    today = {
        "name": "stochastic",
        "base": {"name": "ternary", "granularity": "tensor", "calibration": "mse"},
        "granularity": "channel",
    }
    assert upgrade(former, 1) == today
    assert upgrade([{"kernel": former}, None, "binary"], 1) == [{"kernel": today}, None, "binary"]
    assert upgrade(former, 2) is former
    assert former["granularity"] == "filter", "the dict that was read stays as it is"


def test_every_former_argument_has_a_present_one():
    for name, arguments in FORMER_ARGUMENTS.items():
        fields = set(quantizers.get(name).get_config())
        assert set(arguments.values()) <= fields
        assert not set(arguments) & fields


def test_weight_quantizers_have_none_of_the_methods_of_ranges():
    for name in ("binary", "clustered", "incremental", "power_of_two", "stochastic", "ternary", "uniform"):
        quantizer = quantizers.get(name)
        assert not quantizers.is_activation_quantizer(quantizer)
        assert not [method for method in ("grid", "widen_only", "state_from_min_max") if hasattr(quantizer, method)]
    for name in ("activation", "dynamic_fixed_point"):
        assert quantizers.is_activation_quantizer(quantizers.get(name))
    for base, wanted in (("uniform", False), ("activation", True)):
        assert quantizers.is_activation_quantizer(AdjustableThreshold(base)) is wanted


def test_a_quantizer_state_layer_knows_the_range_of_an_activation():
    kernel = klb.layers.QuantizerHost("dynamic_fixed_point", (-1,))
    assert kernel.activation_range is None
    activation = klb.layers.QuantizerHost("dynamic_fixed_point")
    assert activation.activation_range is activation.quantizer
    assert klb.layers.QuantizerHost(Uniform(4)).activation_range is None


def test_names_in_the_state_of_a_wrapper_are_as_in_saved_files():
    layer = klb.layers.QuantDense(3, kernel_quantizer=Stochastic(AdjustableThreshold(Uniform(4)), seed=1))
    layer.build((None, 2))
    store = {}
    layer.kernel_host.save_own_variables(store)
    assert set(store) == {"ratio", "seed", "base_threshold", "base_factor"}
    assert np.shape(store["base_factor"]) == (1, 3)
