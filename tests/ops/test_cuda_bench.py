"""The CUDA benchmark as far as a machine without a GPU shows: its JSON, its list of work, turns and ratios, PyTorch's side."""

import importlib.util
import itertools
import json
import math
import subprocess
import sys

import keras
import pytest

from keras_lowbit.ops import build
from tests.support.process import ROOT

BENCH = ROOT / "custom_ops" / "bench"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


torch_bench = load("torch_bench")


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What a program of the benchmark's own headers prints."""
    if not build.can_build():
        pytest.skip("no C++ compiler")
    folder, made = ROOT / "custom_ops", tmp_path_factory.mktemp("report") / "report_test"
    files = [folder / name for name in ("test/report_test.cc", "core/shapes.cc", "core/packing.cc")]
    command = [*build.find_compiler(), "-std=c++17", f"-I{folder}", *map(str, files), "-o", str(made)]
    subprocess.run(command, check=True)
    return json.loads(subprocess.run([made], check=True, capture_output=True, text=True).stdout)


def test_the_report_is_json_that_names_device_clock_and_ceilings(printed):
    report = printed["report"]
    assert report["device"] == 'no card "at" \\all\n'
    assert report["clock_mhz"] is None  # not a number, and JSON has no other word
    assert (report["int8_peak_gmacs"], report["read_gb_s"], report["compute_capability"]) == (2000, 500, "8.0")
    row = report["results"][0]
    assert (row["layer"], row["weights"], row["ms"], row["median_ms"]) == ("ResNet-50", "ternary", 1, 2)
    assert row["of_int8_peak"] == pytest.approx(2 * 3857973248 / 1e6 / 2000, rel=1e-5)


def test_the_network_is_that_of_keras(printed):
    """Every convolution of keras.applications.ResNet50, by its sizes and its number; its products."""
    network = printed["described"]["jobs"][0]
    model = keras.applications.ResNet50(weights=None)
    expected = []
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            rows, channels = layer.output.shape[1], layer.output.shape[3]
            expected.append((layer.kernel_size[0], layer.strides[0], layer.input.shape[3], channels, rows))
    found = []
    for step in network["steps"]:
        shape = step["shape"]
        if step["kind"] == "conv" and shape["in_height"] > 1:
            rows = -(-shape["in_height"] // shape["stride"])
            sizes = shape["kernel"], shape["stride"], shape["in_channels"], shape["out_channels"], rows
            found.append(sizes)
    assert sorted(found) == sorted(expected)
    products = sum(k * k * inputs * outputs * rows * rows for k, _, inputs, outputs, rows in expected) + 2048 * 1000
    assert network["macs"] == 2 * products


class Clock:
    """A library, and opponents, whose calls take the times that a list says. What they are asked is written down."""

    def __init__(self, described, device):
        self.described, self.found, self.asked, self.closed = described, device, [], 0

    def device(self):
        return self.found

    def jobs(self, batch):
        return self.described

    def versions(self):
        return {"torch": "none"}

    def open(self, batch, job, weights):
        def close():
            self.closed += 1

        return lambda: self._take(f"ours {weights}", 2.0 + weights), 1000, close

    def runners(self, job):
        if "steps" in job:
            return {"PyTorch float16, compiled": lambda: lambda: self._take("compiled", 5.0)}
        if job["list"] == "dense":
            names = {"cuBLAS float16": 14.0, "cuBLAS int8": 5.0}
            return {name: lambda name=name, time=time: lambda: self._take(name, time) for name, time in names.items()}
        return {"cuDNN float16": lambda: lambda: self._take("cudnn", 4.0), "broken": lambda: [][0]}

    def _take(self, name, time):
        self.asked.append(name)
        return time + 0.01 * len(self.asked) % 1


def test_kernels_take_turns_and_ratios_are_of_the_best(printed):
    clock = Clock(printed["described"], {"int8_peak_gmacs": 1e6, "read_gb_s": 800.0})
    report = torch_bench.measure(clock, clock, 2, 3)
    jobs = printed["described"]["jobs"]
    assert clock.closed == 4 * len(jobs)
    network = [name for name in clock.asked if name == "compiled"]
    assert len(network) == 1 + 4  # once to see that it runs, once to warm up, three rounds
    assert clock.asked[1:6] == ["ours 0", "ours 1", "ours 2", "ours 3", "compiled"]
    rows = report["results"]
    broken = [row for row in rows if row.get("opponent") == "broken"]
    assert broken
    assert all("IndexError" in row["cannot"] and "ms" not in row for row in broken)
    ours = next(row for row in rows if row["list"] == "ResNet-50" and row.get("weights") == "ternary")
    theirs = next(row for row in rows if row["layer"] == ours["layer"] and row.get("opponent") == "cuDNN float16")
    assert ours["times_as_fast_as"] == {"cuDNN float16": theirs["ms"] / ours["ms"]}
    assert ours["weight_gb_s"] == pytest.approx(1000 / ours["ms"] / 1e6)


def test_goals_stand_beside_what_was_found(printed):
    rows = []
    for job in printed["described"]["jobs"]:
        opponents = {"networks": "PyTorch float16, compiled", "dense": "cuBLAS float16"}
        facts = {key: job[key] for key in ("layer", "list", "batch", "macs")}
        ratio = {opponents.get(job["list"], "cuDNN float16"): 4.0 if "56x56" in job["layer"] else 1.0}
        rows.append(
            facts | {"weights": "ternary", "times_as_fast_as": ratio, "of_int8_peak": 0.25, "of_read_peak": 0.5}
        )
    found = torch_bench.goals(rows, {"int8_peak_gmacs": 1e6, "read_gb_s": 800.0})
    convolutions = [job["layer"] for job in printed["described"]["jobs"] if job["list"] == "ResNet-50"]
    assert found[0]["of"] == len(convolutions) == 20
    assert found[0]["ratio"] == pytest.approx(
        math.exp(sum("56x56" in name for name in convolutions) * math.log(4) / 20)
    )
    assert (found[1]["of"], found[1]["goal"], found[1]["ratio"]) == (1, 6.0, 1.0)
    assert (found[2]["of"], found[2]["ratio"]) == (0, None)  # nobody ran int8
    assert [one["part"] for one in found[4:]] == pytest.approx([0.25, 0.5])
    assert [one["ceiling"] for one in found[4:]] == [1e6, 800.0]


def test_without_a_device_there_is_no_report(printed):
    clock = Clock(printed["described"], {})
    assert torch_bench.measure(clock, clock, 2, 3) is None


def test_pytorch_does_the_same_work(printed, monkeypatch):
    """On the CPU in float32: shapes, weights, and a network whose layers are those of the benchmark."""
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setitem(sys.modules, "torch_bench", torch_bench)
    opponents = load("torch_opponents_bench")
    run = opponents.Opponents("cpu")
    jobs = printed["described"]["jobs"]
    model = opponents.Network(jobs[0]["steps"])
    assert sum(p.numel() for p in model.parameters() if p.ndim == 4) == 23454912 + 2048000
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 1000, 1, 1)
    convolutions = itertools.islice((job for job in jobs if job["list"] == "ResNet-50"), 6)
    small = {"batch": 1, "in_height": 1, "in_width": 1, "in_channels": 64, "out_channels": 24, "kernel": 1, "stride": 1}
    for job in [*convolutions, {"list": "dense", "shape": small}]:
        for make in run.runners(job).values():
            assert make()() > 0
