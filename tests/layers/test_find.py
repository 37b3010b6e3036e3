"""hosts, set_ratio and freeze_ranges: quantizers of whole models, nested ones too."""

import keras
import pytest

from keras_lowbit import layers
from keras_lowbit.layers import QuantDense, freeze_ranges, hosts, set_ratio
from keras_lowbit.quantizers import Stochastic, Ternary
from tests.support.training import network, ratios_of


def test_hosts_are_found_in_nested_models_once_each_with_their_paths():
    model = network()
    assert sorted(path for path, _ in hosts(model)) == [
        "conv/kernel_quantizer",
        "conv/output_quantizer",
        "head/kernel_quantizer",
        "inner/conv/kernel_quantizer",
    ]
    shared = QuantDense(4, kernel_quantizer=Stochastic())
    inputs = keras.Input((4,))
    assert len(hosts(keras.Model(inputs, shared(shared(inputs))))) == 1


def test_set_ratio_reaches_every_stochastic_quantizer():
    model = network()
    set_ratio(model, 0.25)
    assert ratios_of(model) == {0.25}
    assert len(layers.find_layers(model, QuantDense)) == 1


def test_a_model_without_variables_is_told_to_build():
    model = keras.Sequential([QuantDense(3, kernel_quantizer=Stochastic())])
    with pytest.raises(ValueError, match=r"no variables yet. Build it first"):
        set_ratio(model, 0.5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: set_ratio(network(), 1.5), r"in \[0, 1\], got 1.5. For 50 % write 0.5"),
        (lambda: set_ratio(network(), float("nan")), "got nan"),
        (lambda: set_ratio(network(kernel=Ternary()), 0.5), "no stochastic quantizer"),
        (lambda: freeze_ranges(network()), "1 of 1 activation ranges have seen no data"),
    ],
)
def test_wrong_use_says_what_to_do(make, words):
    with pytest.raises(ValueError, match=words):
        make()
