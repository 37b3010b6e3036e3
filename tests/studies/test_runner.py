"""The runner of long studies: lists, batches, resuming to the same bits, the queue. Its runs take hours."""

import dataclasses
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.keras_graph.variables import to_numpy
from studies.common import cifar10
from studies.runner import checkpoints, networks, runs, throughput, training
from studies.runner.batches import MARGIN, cut, draw_epoch, hold_out, pad
from studies.runner.queue import BUSY, Queue, locked, main, make, status
from tests.support.process import ROOT

LIST = {
    "settings": {"batch_size": 8, "held_out": 8, "precision": "float32"},
    "methods": {"twn": {"recipe": "twn"}, "sq-twn": {"recipe": "sq-twn", "stages": 4}},
    "blocks": [
        {"seeds": [1, 2], "runs": [["twn", 4], ["sq-twn", 4]]},
        {"seeds": [1], "runs": [["twn", 4], ["twn", 8]]},
    ],
}


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(LIST))
    return path


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 32, 32, 3)).astype(np.uint8), rng.integers(0, 10, 40)
    return (images, labels), (images[:8], labels[:8])


def test_runs_come_seed_by_seed_and_each_once(listed):
    names = [run.name for run in runs.read_runs(listed)]
    first = [f"tiny/{method}-4-seed{seed}" for seed in (1, 2) for method in ("twn", "sq-twn")]
    assert names == [*first, "tiny/twn-8-seed1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": [{"seeds": [1], "runs": [["bwn", 4]]}]}, "asks for the method 'bwn'; it defines twn, sq-twn"),
        ({"blocks": [{"seeds": [1], "runs": [["sq-twn", 6]]}]}, "6 epochs of 'sq-twn' are not 4 stages"),
        ({"settings": {"deph": 8}}, r"has \['deph'\] in 'settings'; known are depth"),
        ({"methods": {"twn": {"recip": "twn"}}}, r"has \['recip'\] in 'twn'; known are recipe"),
    ],
)
def test_lists_with_mistakes_are_refused(tmp_path, change, message):
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(LIST | change))
    with pytest.raises(ValueError, match=message):
        runs.read_runs(path)


def test_every_list_of_the_papers_can_be_made():
    queue = runs.read_queue(runs.all_lists())
    names = [run.name for run in queue]
    assert len(set(names)) == len(names)
    for run in {run.study + run.method: run for run in queue}.values():
        recipe = networks.recipe_of(run)
        schedule = {} if recipe is None else recipe.schedule
        callbacks = networks.callbacks_of(run)
        assert bool(callbacks) == (bool(schedule) or run.stages > 1)
        if schedule:  # a stage of the schedule is a stage of the learning rate
            assert len(callbacks[0].values) == run.stages, run.name


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86-64")
@pytest.mark.parametrize(("flag", "want"), [(True, "mixed_bfloat16"), (False, "float32")])
def test_bfloat16_is_for_processors_on_which_it_is_fast(listed, monkeypatch, flag, want):
    run = runs.read_runs(listed)[0]
    monkeypatch.setattr(networks, "has_flag", lambda name: flag and name == "avx512f")
    assert networks.precision_of(run) == "float32"  # as its list says
    assert networks.precision_of(dataclasses.replace(run, settings=run.settings | {"precision": "auto"})) == want


def test_a_run_does_not_go_on_in_another_precision(tmp_path):
    progress = {"precision": "mixed_bfloat16"}
    training._same_precision(progress, "mixed_bfloat16", tmp_path)
    with pytest.raises(ValueError, match="was trained in mixed_bfloat16, this machine would go on in float32"):
        training._same_precision(progress, "float32", tmp_path)


def test_vgg9_has_the_weights_of_the_paper():
    run = next(run for run in runs.read_runs(runs.PAPERS / "sq_vgg9.json") if run.method == "twn")
    model = networks.build(run, runs.PAPERS)
    kernels = {layer.name: tuple(layer.kernel.shape) for layer in model.layers if hasattr(layer, "kernel")}
    widths = (3, 64, 64, 128, 128, 256, 256)
    convolutions = [(3, 3, before, after) for before, after in itertools.pairwise(widths)]
    assert list(kernels.values()) == [*convolutions, (4 * 4 * 256, 512), (512, 512), (512, 10)]


def test_an_epoch_is_cut_as_plain_loops_cut_it(data):
    images = data[0][0]
    epoch, padded = draw_epoch(len(images), 16, seed=3, epoch=5), pad(images)
    assert epoch.rows.shape == (2, 16)
    assert len(set(epoch.rows.ravel())) == 32
    for step in range(2):
        got = cut(padded, epoch, step)
        for place in range(16):
            black = np.zeros((32 + 2 * MARGIN, 32 + 2 * MARGIN, 3), np.uint8)
            black[MARGIN:-MARGIN, MARGIN:-MARGIN] = images[epoch.rows[step, place]]
            y, x = epoch.top[step, place], epoch.left[step, place]
            want = black[y : y + 32, x : x + 32]
            np.testing.assert_array_equal(got[place], want[:, ::-1] if epoch.mirrored[step, place] else want)


def test_epochs_are_a_function_of_seed_and_number():
    def drawn(seed, epoch):
        return np.concatenate([array.ravel() for array in dataclasses.astuple(draw_epoch(64, 8, seed, epoch))])

    np.testing.assert_array_equal(drawn(1, 2), drawn(1, 2))
    assert np.any(drawn(1, 2) != drawn(1, 3))
    assert np.any(drawn(1, 2) != drawn(2, 2))
    with pytest.raises(ValueError, match="7 training images do not fill one batch of 8"):
        draw_epoch(7, 8, 0, 0)


def test_held_out_images_are_not_trained_on(data):
    (train, _), (held_out, labels) = hold_out(data[0], 8)
    np.testing.assert_array_equal(np.concatenate([train, held_out]), data[0][0])
    assert (len(train), len(held_out), len(labels)) == (32, 8, 8)
    with pytest.raises(ValueError, match="held_out=40 must leave some of the 40"):
        hold_out(data[0], 40)


@pytest.mark.slow(20)
def test_a_killed_run_ends_with_the_same_bits(listed, data, tmp_path, monkeypatch):
    run = next(run for run in runs.read_runs(listed) if run.method == "sq-twn")
    whole = training.train(run, data, tmp_path, tmp_path / "a" / "whole.npz")
    assert whole["curves"]["ratio"] == [0.5, 0.75, 0.875, 1.0]

    def killed(path, model, progress):
        save(path, model, progress)
        if progress["epochs"] == 2:
            raise KeyboardInterrupt

    save, work, results = checkpoints.save, tmp_path / "work", tmp_path / "results"
    checkpoint = work / f"{run.name}.npz"
    monkeypatch.setattr(checkpoints, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(run, data, tmp_path, checkpoint)
    assert checkpoint.exists()
    monkeypatch.setattr(checkpoints, "save", save)
    monkeypatch.setattr(cifar10, "load_cifar10", lambda cache: data)
    monkeypatch.setattr(cifar10, "data_folder", lambda: tmp_path)
    assert make(run, work, results)
    assert not checkpoint.exists()
    resumed = runs.stored_result(run, results)
    for name in ("weights_sha256", "curves", "test_accuracy", "held_out_accuracy"):
        assert resumed[name] == whole[name]
    assert json.loads(training.as_json(whole)) == whole
    monkeypatch.setattr(training, "train", None)
    assert make(run, work, results)  # it is stored: nothing is trained
    other = dataclasses.replace(run, settings=run.settings | {"l2": 1.0})
    with pytest.raises(ValueError, match=r"its settings is .* Give the changed run another name"):
        runs.stored_result(other, results)


@pytest.mark.slow(40)
def test_pruned_weights_stay_zero_in_a_taught_run_and_clusters_get_ranges(data, tmp_path, monkeypatch):
    import keras

    from studies.common import cifar_resnet

    monkeypatch.setattr(
        cifar_resnet, "pretrained", lambda folder, depth=20, **choices: cifar_resnet.cifar_resnet(8, **choices)
    )
    path = tmp_path / "pretrained.json"
    methods = {
        "inq": {"recipe": "inq-5", "stages": 4, "teacher": True, "prune": 0.5},
        "clusters": {
            "dfp": {"weight_bits": 2, "cluster_size": 4},
            "activations": "recipe",
            "settings": {"learning_rate": 1e-3},
        },
    }
    blocks = [{"seeds": [1], "runs": [["inq", 4], ["clusters", 1]]}]
    settings = LIST["settings"] | {"start": "pretrained"}
    path.write_text(json.dumps({"settings": settings, "methods": methods, "blocks": blocks}))
    for run in runs.read_runs(path):
        record = training.train(run, data, tmp_path, tmp_path / f"{run.method}.npz")
        assert len(record["curves"]["held_out_accuracy"]) == run.epochs
        model = networks.build(run, tmp_path)
        model.compile(networks.optimizer_of(run, model, 4))
        model.optimizer.build(model.trainable_variables)
        checkpoints.load(tmp_path / f"{run.method}.npz", model)
        if run.method == "inq":
            assert record["curves"]["portion"] == [0.5, 0.75, 0.875, 1.0]
            shares = [np.mean(to_numpy(layer.kernel) == 0) for layer in model.layers if hasattr(layer, "kernel")]
            assert min(shares) >= 0.5 - 1e-3
            assert max(shares) < 1
        else:
            counts = [
                float(to_numpy(host.state["count"])) for _, host in klb.layers.hosts(model) if "count" in host.state
            ]
            assert counts
            assert min(counts) > 0
        keras.backend.clear_session()


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    import keras

    def compiled(units):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(units)])
        model.compile("sgd")
        return model

    path = tmp_path / "c.npz"
    assert checkpoints.load(path, compiled(2)) is None
    checkpoints.save(path, compiled(2), {"epochs": 1})
    assert checkpoints.load(path, compiled(2)) == {"epochs": 1}
    with pytest.raises(ValueError, match="checkpoint of another network"):
        checkpoints.load(path, compiled(3))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="is no checkpoint of a run"):
        checkpoints.load(path, compiled(2))


def test_a_run_is_locked_while_it_is_made(listed, tmp_path):
    first, second, *_ = runs.read_runs(listed)
    with locked(first, tmp_path) as mine, locked(first, tmp_path) as again, locked(second, tmp_path) as other:
        assert (mine, again, other) == (True, False, True)
    with locked(first, tmp_path) as free:
        assert free


# In place of a training: stores a result under the run's name, but fails for seed 2.
WORKER = """
import pathlib, sys, time
folder, name = pathlib.Path(sys.argv[1]), sys.argv[3]
(folder / "started").open("a").write(name + "\\n")
if "sleep" in sys.argv[0]: time.sleep(60)
if name.endswith("twn-4-seed2"): sys.exit(BUSY if "sq" in name else 1)
path = folder / (name + ".json")
path.parent.mkdir(exist_ok=True)
path.write_text((folder / "records" / name.replace("/", "_")).read_text())
"""


@pytest.fixture
def worker(tmp_path, listed):
    (tmp_path / "records").mkdir()
    for run in runs.read_runs(listed):
        record = run.identity | {"held_out_accuracy": 0.5, "test_accuracy": 0.25, "processor_s": 7.0}
        (tmp_path / "records" / run.name.replace("/", "_")).write_text(json.dumps(record))
    path = tmp_path / "worker.py"
    path.write_text(WORKER.replace("BUSY", str(BUSY)))
    return [sys.executable, str(path), str(tmp_path)]


@pytest.mark.parametrize("processes", [1, 3])
def test_queue_makes_what_is_missing_and_leaves_failures_aside(listed, worker, tmp_path, processes):
    listed_runs = runs.read_runs(listed)
    failed = Queue(listed_runs, worker, processes, tmp_path).work(pause=0.02)
    assert failed == ["tiny/twn-4-seed2"]
    started = (tmp_path / "started").read_text().split()
    assert sorted(started) == sorted(run.name for run in listed_runs)
    assert processes > 1 or started == [run.name for run in listed_runs]
    lines = status(listed_runs, tmp_path).splitlines()
    assert lines[0].split(maxsplit=1)[1].strip() == "held out 50.00 %  test 25.00 %  7 s"
    assert [line.split()[0] for line in lines if line.endswith("missing")] == [
        "tiny/twn-4-seed2",
        "tiny/sq-twn-4-seed2",
    ]
    (tmp_path / "started").unlink()
    Queue(listed_runs, worker, 1, tmp_path).work(pause=0.02)
    assert (tmp_path / "started").read_text().split() == ["tiny/twn-4-seed2", "tiny/sq-twn-4-seed2"]


def test_sigterm_ends_the_queue_and_its_processes(listed, worker, tmp_path):
    asleep = tmp_path / "sleep.py"
    asleep.write_text((tmp_path / "worker.py").read_text())
    script = (
        "import pathlib, sys\nfrom studies.runner import queue, runs\n"
        f"queue.Queue(runs.read_runs(pathlib.Path({str(listed)!r})), [sys.executable, {str(asleep)!r}, {str(tmp_path)!r}], 2, "
        f"pathlib.Path({str(tmp_path)!r})).work(0.02)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() or len((tmp_path / "started").read_text().split()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM  # it waits for its processes, which sleep for a minute
    assert time.monotonic() - before < 30


def test_command_says_what_is_missing_and_refuses_unknown_runs(listed, tmp_path, capsys):
    assert main([str(listed), "--status", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("missing") == 5
    with pytest.raises(SystemExit):
        main([str(listed), "--make", "tiny/no-4-seed1"])
    assert "no run 'tiny/no-4-seed1' in these lists" in capsys.readouterr().err


def test_throughput_stores_each_variant_once_in_the_order_of_the_list(tmp_path, monkeypatch):
    rates = iter((100, 200, 300, 400))
    measured = {"images_per_s": 1.0, "processor_s_per_epoch": 2.0}
    monkeypatch.setattr(
        throughput,
        "in_a_process",
        lambda variant, depth, parsed: variant | measured | {"depth": depth, "images_per_processor_s": next(rates)},
    )
    path = tmp_path / "throughput.json"
    for depth, variant in ((20, 6), (8, 1), (8, 0), (8, 1)):
        throughput.main(["--depths", str(depth), "--variants", str(variant), "--output", str(path)])
    rows = json.loads(path.read_text())
    assert [(row["depth"], row["images_per_processor_s"]) for row in rows] == [(8, 300), (8, 400), (20, 100)]
    lines = throughput.table(rows).splitlines()
    assert [line.split(maxsplit=1)[1].split("  ")[0] for line in lines] == [
        "loop fit",
        "loop fit, steps_per_execution 16",
        "precision mixed_bfloat16, norm fused",
    ]
    assert throughput.differences_from_base(throughput.BASE) == "the base"
