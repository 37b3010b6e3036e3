"""bench.kernels: every layer runs all four ways, and the figures are what they say."""

import json

import pytest

from keras_lowbit.bench import kernels


def test_layer_lists_are_those_of_the_networks():
    assert len(set(kernels.SHAPES)) == len(kernels.SHAPES)
    assert kernels.RESNET50[0].macs == 112 * 112 * 49 * 3 * 64
    assert {shape.inputs for shape in kernels.DENSE} == {4096, 9216, 25088}
    assert all(shape.outputs == 4096 for shape in kernels.DENSE)


@pytest.mark.parametrize("shape", [kernels.Shape("n", 5, 3, 8, 16, 2), kernels.Shape("n", 0, 1, 32, 8)], ids=str)
def test_a_report_holds_its_conditions(shape):
    report = kernels.measure([shape], repeats=2, milliseconds=0.01)
    (row,) = json.loads(json.dumps(report))["rows"]
    assert row["macs"] == shape.macs
    assert row["ternary_gmacs"] == pytest.approx(shape.macs / row["ternary_ms"] / 1e6, rel=0.01, abs=0.01)
    assert set(report["means"]["n"]) == {"int8", "tf_float32", "litert_int8"}
    assert report["machine"]["kernel"] in kernels.markdown(report)


def test_mean_is_geometric():
    rows = [{"network": "a", **{f"times_{kind}": [value, 0, 0] for kind in kernels.KINDS[1:]}} for value in (1.0, 4.0)]
    assert kernels.means(rows)["a"]["int8"] == 2.0
