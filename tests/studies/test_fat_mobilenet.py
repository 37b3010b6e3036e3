"""The FAT study's machinery: its cells, table, interval and plot. The study itself takes an hour."""

import json

import numpy as np
import pytest

from studies.fat_mobilenet import plot, run


def row(top1, agreement=0.9, **more):
    right = np.arange(1000) < 1000 * top1
    return run.accuracy(right) | {"agreement_with_float": agreement, "bytes": 1} | more


FOUND = {
    "mobilenet_v2 float": row(0.71, 1.0),
    "mobilenet_v2 int8 scalar": row(0.05),
    "mobilenet_v2 fat vector": row(0.70, 0.95, minutes=12.5, processor_minutes=8.0),
}


def test_interval_is_wilsons():
    found = run.accuracy(np.arange(100) < 70)
    # Wilson score interval of 70 of 100 at 95 %.
    np.testing.assert_allclose(found["interval"], [0.6042, 0.7811], atol=2e-4)
    assert found["top1"] == 0.7


def test_config_covers_every_recipe_that_is_tuned():
    config = json.loads((run.HERE / "config.json").read_text())
    assert set(config["learning_rate"]) == {"fat", "fat-scalar", "fat-w4"}
    assert config["network"] in run.NETWORKS
    assert {"fat vector", "fat scalar, rescaled", "w4", "int8 scalar", "int8 vector"} <= set(run.CELLS)


def test_images_held_back_are_not_used_otherwise():
    config = json.loads((run.HERE / "config.json").read_text())
    for used in (0, config["rounding_images"]):
        tuning, held_back = run.split(992, config, used)
        assert len(held_back) == config["held_back_images"]
        assert sorted([*tuning, *held_back]) == list(range(992))
        assert held_back.min() >= max(config["calibration_images"], config["correction_images"], used)


def test_table_names_every_cell():
    text = run.table(FOUND)
    for name in FOUND:
        assert name in text
    assert "12.5" in text


def test_plot_is_drawn_and_an_empty_one_refused(tmp_path):
    plot.draw(FOUND, "mobilenet_v2", tmp_path / "result.png")
    assert (tmp_path / "result.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="No cell of mobilenet_v1"):
        plot.draw(FOUND, "mobilenet_v1", tmp_path / "none.png")
