"""QuantizeConfigs as tf_keras files of format version 1 hold them; former options in today's configs are refused."""

import json
from pathlib import Path

import pytest
import tf_keras

from keras_lowbit import quantizers
from keras_lowbit import tfmot as klt
from keras_lowbit.quantizers.former import upgrade

ENTRIES = json.loads((Path(__file__).parent.parent / "fixtures" / "v1" / "quantizers.json").read_text())
FORMER = [entry["config"] for entry in ENTRIES]
RANGE = {"name": "dynamic_fixed_point", "bits": 8, "scope": "layer"}


def read(class_name, config):
    text = {"class_name": f"keras_lowbit>{class_name}", "config": config}
    return tf_keras.utils.legacy.deserialize_keras_object(json.loads(json.dumps(text)))


@pytest.mark.parametrize("kernel", FORMER, ids=lambda config: config["name"])
def test_configs_without_a_version_are_those_of_the_first_format(kernel):
    today = quantizers.deserialize(upgrade(kernel, 1))
    for class_name in ("KernelQuantizeConfig", "SQQuantizeConfig", "FATQuantizeConfig"):
        found = read(class_name, {"kernel": kernel, "activation": RANGE})
        assert type(found).__name__ == class_name
        assert found.kernel_quantizer == today
        assert found.activation_quantizer.quantizer == quantizers.DynamicFixedPoint(8)
    assert read("OutputQuantizeConfig", {"quantizer": RANGE}) == klt.OutputQuantizeConfig("dynamic_fixed_point")
    adapter = {"quantizer": kernel, "filter_axes": [-1], "format_version": 1}
    assert read("LowbitQuantizer", adapter) == klt.LowbitQuantizer(today, (-1,))


def test_todays_configs_say_their_version():
    config = klt.ClusteredQuantizeConfig(calibration="mse").get_config()
    assert config["format_version"] == 2
    assert klt.KernelQuantizeConfig.from_config(config).kernel_quantizer.calibration == "mse"
    assert klt.NoOpQuantizeConfig.from_config({}) == klt.NoOpQuantizeConfig()
    with pytest.raises(ValueError, match=r"A KernelQuantizeConfig was saved in format version 99"):
        klt.KernelQuantizeConfig.from_config(config | {"format_version": 99})


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: klt.ClusteredQuantizeConfig(mode="optimal"), TypeError, "Clustered .* write calibration='mse'"),
        (lambda: klt.ClusteredQuantizeConfig(exponent="layer"), TypeError, "Clustered .* write granularity='tensor'"),
        (lambda: klt.FATQuantizeConfig(start="mse"), TypeError, "AdjustableThreshold .* write calibration='mse'"),
        (lambda: klt.FATQuantizeConfig(granularity="filter"), ValueError, "which is now 'channel'"),
        (lambda: klt.SQQuantizeConfig(granularity="filter"), ValueError, "which is now 'channel'"),
        (lambda: klt.KernelQuantizeConfig({"name": "binary", "scope": "layer"}), TypeError, "granularity='tensor'"),
    ],
)
def test_former_options_are_errors_that_name_the_present_ones(make, error, words):
    with pytest.raises(error, match=words):
        make()
