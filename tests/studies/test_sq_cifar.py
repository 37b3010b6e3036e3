"""The SQ study's machinery: budget, resuming, restarts, table, plot. The study itself takes hours."""

import json

import keras
import numpy as np
import pytest

from studies.common import cifar_resnet
from studies.common.cifar_training import Results
from studies.sq_cifar import plot, run

CONFIG = json.loads((run.HERE / "config.json").read_text())


def record(method, seed, accuracy, epochs=8):
    settings = run.settings(CONFIG) | {"epochs": epochs}
    curves = {"val_accuracy": [accuracy] * epochs}
    return {"method": method, "seed": seed, "settings": settings, "test_accuracy": accuracy, "curves": curves}


@pytest.fixture
def results(tmp_path):
    results = Results(tmp_path / "deep" / "result.json", run.METHODS)
    with results.update() as content:
        content["float_test_accuracy"]["resnet20"] = 0.9173
    for method, seed, accuracy in [("sq-twn", 1, 0.90), ("twn", 0, 0.88), ("sq-twn", 0, 0.91)]:
        with results.update() as content:
            content["runs"].append(record(method, seed, accuracy))
    return results


def test_results_are_stored_at_once_in_a_fixed_order(results):
    stored = json.loads(results.path.read_text())
    assert [(r["method"], r["seed"]) for r in stored["runs"]] == [("twn", 0), ("sq-twn", 0), ("sq-twn", 1)]


def test_methods_that_a_newer_version_stored_are_kept(results):
    older = Results(results.path, ["twn"])
    with older.update() as content:
        content["runs"].append(record("twn", 1, 0.88))
    assert [run["method"] for run in results.read()["runs"]] == ["twn", "twn", "sq-twn", "sq-twn"]


def test_finished_run_is_recognised_only_under_the_same_settings(results):
    assert results.has("twn", 0, CONFIG)
    assert not results.has("twn", 1, CONFIG)
    assert not results.has("bwn", 0, CONFIG)
    assert not results.has("twn", 0, CONFIG | {"epochs": 16})
    assert results.has("twn", 0, CONFIG | {"seeds": [7]})


def test_failing_update_leaves_the_file_as_it_was(results):
    def fail():
        with results.update() as content:
            content["runs"].clear()
            raise KeyboardInterrupt

    before = results.path.read_text()
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert results.path.read_text() == before


def test_summary_has_mean_and_sample_spread(results):
    rows = [line.split() for line in run.summary(results.read()).splitlines()[1:]]
    assert rows[0] == ["8", "twn", "1", "88.00", "-", "88.00", "88.00"]
    assert rows[1] == ["8", "sq-twn", "2", "90.50", "0.71", "90.00", "91.00"]


def test_plot_is_written_and_names_known_budgets(results, tmp_path):
    plot.draw(results.read(), 8, tmp_path / "result.png")
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"epochs=5; the result has \[8\]"):
        plot.draw(results.read(), 5, tmp_path / "other.png")


@pytest.mark.parametrize("epochs", ["3", "6"])
def test_budget_that_gives_unequal_stages_is_refused(epochs, capsys):
    with pytest.raises(SystemExit):
        run.parse_arguments(["--epochs", epochs])
    assert "give a multiple of 4" in capsys.readouterr().err


def test_restarts_empty_the_momentum_and_restart_the_schedule_at_each_stage():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    rate = keras.optimizers.schedules.CosineDecay(0.1, 4)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), "mse", jit_compile=False)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            momentum = max((float(abs(np.asarray(v)).max()) for v in model.optimizer.variables[2:]), default=0.0)
            seen.append((int(model.optimizer.iterations), momentum > 0))

    x, y = np.ones((4, 2), np.float32), np.ones((4, 1), np.float32)
    model.fit(x, y, batch_size=2, epochs=4, verbose=0, callbacks=[run.Restarts(2), Watch()])
    assert seen == [(0, False), (2, True), (0, False), (2, True)]


@pytest.fixture
def small_network(monkeypatch):
    """The 8-layer network in place of the pretrained one: a third of the graph to trace."""
    monkeypatch.setattr(cifar_resnet, "pretrained", lambda folder, depth=20: cifar_resnet.cifar_resnet(8))


@pytest.mark.slow
@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize("method", ["twn-restarts", "sq-bwn"])
def test_one_tiny_run_ends_with_ratio_1_and_all_it_should_record(tmp_path, method):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (16, 32, 32, 3)).astype(np.uint8), rng.integers(0, 10, 16)
    config = CONFIG | {"epochs": 4, "batch_size": 8}
    got = run.run_one(method, 0, config, ((images, labels), (images, labels)), tmp_path)
    assert got["settings"]["epochs"] == 4
    assert len(got["curves"]["val_accuracy"]) == 4
    assert 0 <= got["test_accuracy"] <= 1
    assert got["machine"]["cores"] >= 1
    if method.startswith("sq-"):
        assert got["curves"]["ratio"] == [0.5, 0.75, 0.875, 1.0]
    json.dumps(got)
