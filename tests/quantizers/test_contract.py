import dataclasses
import json

import numpy as np
import pytest

from keras_lowbit import quantizers
from keras_lowbit.quantizers import (
    ActivationRange,
    AdjustableThreshold,
    Binary,
    KeptScale,
    LearnedPowerOfTwo,
    LearnedStep,
    Stochastic,
    Ternary,
    TrainedTernary,
    Uniform,
)

EXAMPLES = [
    Binary(),
    Binary(granularity="tensor"),
    Ternary(),
    Ternary(factor=0.75, granularity="tensor", scale_granularity="tensor", centered=True),
    Ternary(calibration="mse"),
    Uniform(),
    Uniform(bits=3, granularity="tensor", calibration="percentile", percentile=99.0),
    Uniform(bits=4, calibration="mse"),
    KeptScale(bits=4, granularity="tensor"),
    ActivationRange(),
    ActivationRange(bits=4, minimum=-1.0, maximum=3.0),
    ActivationRange(momentum=0.9, hold=True),
    Stochastic(),
    Stochastic(Binary(), "element", "softmax", "keep_error", hybrid_evaluation=True, seed=7),
    Stochastic(Uniform(bits=4)),
    AdjustableThreshold(),
    AdjustableThreshold(Uniform(4, "tensor"), limits=(0.4, 1.3), calibration="mse", project=False),
    AdjustableThreshold(ActivationRange(hold=True), mode="asymmetric", left_limits=(-0.1, 0.2), signed=False),
    LearnedStep(Uniform(3), calibration="max"),
    LearnedStep(ActivationRange(4), signed=True),
    LearnedPowerOfTwo(),
    TrainedTernary(),
    TrainedTernary(threshold=0.1, granularity="tensor", merged=True, limits=(0.5, 2.0)),
]


@pytest.mark.parametrize("quantizer", EXAMPLES, ids=repr)
def test_round_trip_through_json_gives_an_equal_value(quantizer):
    config = json.loads(json.dumps(quantizers.serialize(quantizer)))
    again = quantizers.deserialize(config)
    assert again == quantizer
    assert hash(again) == hash(quantizer)
    assert quantizers.get(config) == quantizer


def test_names_objects_classes_and_none():
    assert quantizers.get("ternary") == Ternary(factor=0.7) == quantizers.get({"name": "ternary", "factor": 0.7})
    assert quantizers.get(Binary) == Binary()
    assert quantizers.get(quantizers.get("uniform")) == Uniform(bits=8)
    assert quantizers.get(None) is None
    assert quantizers.serialize(None) is None
    assert quantizers.deserialize(None) is None
    assert {"activation", "binary", "stochastic", "ternary", "uniform"} <= set(quantizers.known_names())


def test_a_quantizer_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Ternary().factor = 0.1


@pytest.mark.parametrize("identifier", ["ternari", {"name": "twn"}])
def test_unknown_names_list_the_known_ones(identifier):
    with pytest.raises(ValueError, match="Known names, the most alike first: ternary, ") as caught:
        quantizers.get(identifier)
    assert all(f" {name}" in str(caught.value) for name in quantizers.known_names())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: quantizers.get(3), "a name, a dict, a Quantizer or None, got int: 3"),
        (lambda: quantizers.deserialize({"bits": 4}), "needs a 'name'"),
        (lambda: quantizers.deserialize({"name": "uniform", "bit": 4}), r"no argument \['bit'\]; it takes \['bits'"),
        (lambda: Uniform(bits=1), "2 to 8 bits, got bits=1. For -1/0/.1 weights use Ternary"),
        (lambda: Uniform(bits=9), "got bits=9"),
        (lambda: Uniform(bits=4.0), "got bits=4.0"),
        (lambda: Uniform(bits=True), "got bits=True"),
        (lambda: Uniform(granularity="row"), "choose one of 'channel', 'tensor'"),
        (lambda: Uniform(calibration="kl"), "choose one of 'max', 'percentile', 'mse'"),
        (lambda: Uniform(percentile=0), r"percentile in \(0, 100\], got 0"),
        (lambda: Binary(granularity="row"), "choose one of 'channel', 'tensor'"),
        (lambda: Ternary(scale_granularity="row"), "scale_granularity='row'"),
        (lambda: Ternary(factor=-0.7), "factor >= 0, got -0.7. The paper uses 0.7"),
        (lambda: Ternary(factor=float("nan")), "got nan"),
        (lambda: ActivationRange(bits=12), "got bits=12"),
        (lambda: ActivationRange(momentum=1.0), r"momentum in \[0, 1\), got 1.0"),
        (lambda: ActivationRange(minimum=0.0), "Give both for a fixed range"),
        (lambda: ActivationRange(minimum=2.0, maximum=1.0), "minimum < maximum, got 2.0 and 1.0"),
        (lambda: Stochastic(None), "needs a base quantizer"),
        (lambda: Stochastic(Stochastic()), "needs a base quantizer"),
        (lambda: Stochastic("twn"), "Known names"),
        (lambda: Stochastic(granularity="row"), "choose one of 'channel', 'element'"),
        (lambda: Stochastic(probability="log"), "choose one of 'constant', 'linear', 'softmax', 'sigmoid'"),
        (lambda: Stochastic(selection="sorted"), "choose one of 'quantize_inv_error', 'keep_error'"),
    ],
)
def test_wrong_arguments_say_what_to_give_instead(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make()


def test_a_name_cannot_be_taken_twice():
    with pytest.raises(ValueError, match="named 'binary' exists already"):
        quantizers.register(type("Other", (quantizers.Quantizer,), {"name": "binary"}))


def test_bits():
    assert [q.bits for q in (Binary(), Ternary(), Uniform(5), Stochastic(Binary()))] == [1, 2, 5, 1]


def test_only_stochastic_and_ranges_need_state():
    shape = (3, 3, 4, 5)
    assert all(q.state_specs(shape, (-1,)) == {} for q in (Binary(), Ternary(), Uniform()))
    assert ActivationRange(minimum=0.0, maximum=6.0).state_specs(shape) == {}
    assert set(ActivationRange().state_specs(shape)) == {"minimum", "maximum", "count", "frozen"}
    nested = Stochastic(ActivationRange()).state_specs(shape)
    assert {"ratio", "seed", "base_minimum"} < set(nested)
    assert nested["seed"].seed


@pytest.mark.parametrize(
    "quantizer",
    [
        Binary(),
        Ternary(),
        Ternary(calibration="mse"),
        TrainedTernary(),
        TrainedTernary(merged=True),
        Uniform(4),
        Uniform(4, calibration="mse"),
    ],
)
def test_a_nan_weight_shows_in_its_whole_filter_and_nowhere_else(quantizer):
    weights = np.random.default_rng(0).normal(size=(9, 3)).astype("float32")
    weights[2, 1] = np.nan
    on_grid = np.asarray(quantizer(weights, {}, (-1,)))
    assert np.isnan(on_grid[:, 1]).all()
    assert np.isfinite(on_grid[:, [0, 2]]).all()
