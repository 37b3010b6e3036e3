"""The INQ study's machinery: budgets, partitions, table, plot. The study itself takes over an hour."""

import json

import numpy as np
import pytest

import keras_lowbit as klb
from studies.common import cifar_resnet
from studies.inq_cifar import plot, run

CONFIG = json.loads((run.HERE / "config.json").read_text())


def record(method, accuracy, levels):
    steps = len(klb.schedules.portions(int(method.split("-")[1])))
    curves = {"portion": list(klb.schedules.portions(int(method.split("-")[1]))), "accuracy": [accuracy] * steps}
    return {
        "method": method,
        "seed": 0,
        "settings": run.settings(CONFIG),
        "epochs": steps,
        "test_accuracy": accuracy,
        "held_out_accuracy": accuracy - 0.001,
        "held_out_accuracy_reestimated": accuracy + 0.001,
        "levels": levels,
        "curves": curves,
    }


@pytest.fixture
def content():
    runs = [
        record("inq-5-magnitude", 0.92, 8),
        record("inq-5-random", 0.91, 8),
        record("inq-2-magnitude-filter", 0.9, 1),
    ]
    return {"float_test_accuracy": {"resnet20": 0.9173}, "runs": runs}


def test_table_has_both_measurements_and_the_levels(content):
    lines = run.summary(content).splitlines()
    assert lines[1].split() == ["pretrained", "resnet20", "91.73"]
    assert lines[2].split() == ["inq-5-magnitude", "1", "4", "0.01", "-", "92.00", "-", "91.90", "92.10", "8"]


def test_runs_of_other_steps_and_rates_are_rows_of_their_own(content):
    own = record("inq-5-magnitude", 0.9, 8)
    own["settings"] |= {"portions": [0.5, 0.9, 0.99, 1.0]}
    faster = record("inq-5-magnitude", 0.8, 8)
    faster["settings"] |= {"learning_rate": 0.03}
    rows = [
        line.split()[:6]
        for line in run.summary({**content, "runs": [content["runs"][0], own, faster]}).splitlines()[2:]
    ]
    assert rows == [
        ["inq-5-magnitude", "1", "4", "0.01", "-", "92.00"],
        ["inq-5-magnitude", "1", "4", "0.01", "4", "90.00"],
        ["inq-5-magnitude", "1", "4", "0.03", "-", "80.00"],
    ]
    assert plot.variant(own) == "magnitude, 4 own steps"


def test_portions_of_ones_own_take_the_place_of_the_papers(stored_data):
    config, _ = run.parse_arguments(
        ["--portions", "0.5", "0.9", "1", "--epochs-per-step", "2", "--last-step-epochs", "2"]
    )
    _, [schedule], epochs = run.prepared("inq-3-random", config, stored_data, 0)
    assert (schedule.values, epochs) == ((0.5, 0.9, 1.0), 6)
    assert [schedule.stage(epoch, 5) for epoch in range(6)] == [0, 0, 1, 1, 2, 2]


def test_plot_is_written_and_refuses_an_empty_result(content, tmp_path):
    plot.draw(content, tmp_path / "result.png")
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no finished INQ run"):
        plot.draw(content | {"runs": []}, tmp_path / "other.png")


@pytest.fixture
def small_network(monkeypatch):
    """The 8-layer network in place of the pretrained one: a third of the graph to trace."""
    monkeypatch.setattr(cifar_resnet, "pretrained", lambda folder, depth=20: cifar_resnet.cifar_resnet(8))


@pytest.mark.slow
@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize("method", ["inq-5-random", "inq-5-magnitude-taught"])
def test_one_tiny_run_ends_on_the_grid_with_all_it_should_record(tmp_path, method):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (16, 32, 32, 3)).astype(np.uint8), rng.integers(0, 10, 16)
    got = run.run_one(
        method,
        3,
        CONFIG | {"batch_size": 8, "curve_images": 4},
        ((images, labels), (images, labels)),
        tmp_path,
    )
    assert got["epochs"] == 4
    assert got["curves"]["portion"] == [0.5, 0.75, 0.875, 1.0]
    assert 1 < got["levels"] <= 8
    assert got["curves"]["flip_rate"][-1] == 0.0  # all frozen: nothing moves in the last epoch
    json.dumps(got)


def test_float_control_trains_as_long_as_the_steps_it_stands_for(stored_data):
    model, callbacks, epochs = run.prepared("float-10", CONFIG, stored_data, 0)
    assert (epochs, len(callbacks)) == (10, 1)
    assert run.levels(model) is None
