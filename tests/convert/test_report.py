"""What the report of quantize_model says of batch norms and relus is what the integer graph does."""

import dataclasses

import keras
import pytest

import keras_lowbit as klb
from tests.support.lowering_zoo import ZOO, Case, enliven, samples

L = keras.layers


def _behind_skipped(*layers):
    entry = Case(lambda: keras.Sequential([keras.Input((6, 6, 3)), L.Conv2D(4, 3, name="float"), *layers]))
    return dataclasses.replace(entry, arguments={"skip": ["float"]})


REPORTED = {
    **{
        name: ZOO[name]
        for name in ("add", "two norms", "norm after conv", "norm behind relu", "nested", "shared", "dropout")
    },
    "relu layer": ZOO["relu layer"],
    "activation relu": ZOO["activation relu"],
    "norm behind a skipped convolution": _behind_skipped(L.BatchNormalization(), L.ReLU()),
    "relu behind a skipped convolution": _behind_skipped(L.ReLU()),
}


@pytest.mark.parametrize("name", REPORTED)
def test_the_report_says_which_norms_and_relus_are_operations_of_their_own(name):
    entry = REPORTED[name]
    model = entry.make()
    enliven(model)
    quantized, report = klb.quantize_model(model, entry.recipe, **entry.arguments)
    data = samples(model)
    klb.calibrate(quantized, data if len(data) > 1 else data[0], verbose=0)
    operations = {node.name for node in klb.deploy.lower(quantized).nodes}
    rows = [row for row in report.layers if row.detail.startswith(("per-channel affine", "relu or relu6"))]
    assert rows
    for row in rows:
        own = "an integer operation of its own" in row.detail
        assert own != (", folds into" in row.detail or ", fuses with" in row.detail)
        assert own == (row.path in operations)
