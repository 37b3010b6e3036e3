"""bench.kernels: every layer runs all four ways, and the figures are what they say."""

import json

import pytest

from keras_lowbit import ops
from keras_lowbit.bench import kernels
from tests.support.process import ROOT


@pytest.fixture(autouse=True)
def short_chains(monkeypatch):
    monkeypatch.setattr(kernels, "CHAIN", 2)
    monkeypatch.setattr(kernels, "DENSE_CHAIN", 2)
    monkeypatch.setattr(kernels, "EMPTY_CHAIN", 8)


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
    ceilings = row["peak_gmacs"], row["peak_float_gmacs"], row["bandwidth_gbs"]
    text, about = kernels.markdown(report), report["machine"]
    assert f"can use {about['litert_instructions']}" in text
    if about["kernel"] in ("x86_avx512vnni", "x86_amx"):
        assert f"{about['peak_gmacs']} GMAC/s of {about['peak_instruction']}" in text
        assert row["share_of_peak"] == pytest.approx(row["ternary_gmacs"] / ceilings[0], abs=0.002)
        assert row["share_of_bandwidth"] == pytest.approx(row["ternary_weight_gbs"] / ceilings[2], abs=0.002)
        assert ceilings[1] < ceilings[0]
    assert set(report["means"]["n"]) == {"int8", "tf_float32", "litert_int8"}
    assert about["kernel"] in text


def test_other_isa_targets_have_their_own_ratio():
    name = ops.available_kernels()[-2 if len(ops.available_kernels()) > 1 else -1]  # "reference"
    report = kernels.measure([kernels.Shape("n", 5, 3, 8, 16)], repeats=2, milliseconds=0.01, others=[name])
    assert report["rows"][0][name]["ternary_ms"] > 0
    assert report["other_isas"][name]["n"] == pytest.approx(report["rows"][0][name]["times_int8"][0])
    assert f"On ISA target {name}" in kernels.markdown(report)


def test_without_the_library_there_is_no_roofline(monkeypatch):
    monkeypatch.setenv("KERAS_LOWBIT_KERNEL", "tf_fallback")
    report = kernels.measure([kernels.Shape("n", 0, 1, 32, 8)], repeats=1, milliseconds=0.01)
    assert (report["rows"][0]["share_of_peak"], report["machine"]["bandwidth_gbs"]) == (None, None)
    assert "no compiled library" in kernels.markdown(report)


def test_a_machine_has_its_row_in_the_table_of_the_documentation():
    about = {"cpu": "A chip", "cores": 4, "kernel": "x86_amx", "litert_instructions": "AMX"}
    means = {
        name: {"tf_float32": 3.0, "litert_int8": ratio, "int8": 1.0}
        for name, ratio in (("ResNet-50", 0.5), ("dense", 4.0))
    }
    row = kernels.machine_row({"machine": about, "means": means}, "studies/x.json")
    assert (
        row
        == "| A chip, 4 cores, ISA target x86_amx (`studies/x.json`) | AMX | 3.00, 0.50 | not measured | 3.00, 4.00 |"
    )
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert "| machine (file) | LiteRT can use | ResNet-50 | MobileNetV2 | dense |" in page


def test_mean_is_geometric():
    rows = [{"network": "a", **{f"times_{kind}": [value, 0, 0] for kind in kernels.KINDS[1:]}} for value in (1.0, 4.0)]
    assert kernels.means(rows)["a"]["int8"] == 2.0
