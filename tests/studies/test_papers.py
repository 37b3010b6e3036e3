"""The page on the papers' headlines: its statistics, its verdicts, and that it is the page of the stored results."""

import dataclasses
import json

import numpy as np
import pytest

from studies.papers import comparisons, counts, page
from studies.papers.comparisons import FAILS, HOLDS, IN_PART, MISSING, OPEN, Difference, compare, t_half_width, verdict
from studies.runner import runs


def test_the_page_is_that_of_the_stored_results():
    assert page.main(["--check"]) == 0
    assert page.PICTURE.exists()


def test_a_changed_page_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page, "PAGE", tmp_path / "README.md")
    assert page.main(["--check"]) == 1
    page.PAGE.write_text(page.page().replace("not decided", "holds"))
    assert page.main(["--check"]) == 1
    assert "python -m studies.papers.page" in capsys.readouterr().out


def test_every_headline_has_what_the_page_needs():
    for row in page.headlines():
        assert set(row) == {"paper", "claim", "published", "published_points", "at_least", "command", "comparisons"}
        assert row["comparisons"]
        module = row["command"].split()[2].replace(".", "/")
        assert (comparisons.ROOT / f"{module}.py").exists()
        sources = [comparison[side] for comparison in row["comparisons"] for side in "ab"]
        lists = {f"studies/papers/{source['study']}.json" for source in sources if "study" in source}
        assert lists == {word for word in row["command"].split() if word.endswith(".json")}


def test_students_interval_is_that_of_the_tables():
    # Quantiles 0.975 of Student's distribution with 1, 2 and 4 degrees of freedom, from a printed table.
    for values, quantile in (([1, 2], 12.7062), ([1, 2, 6], 4.3027), ([0, 1, 2, 3, 9], 2.7764)):
        mean = sum(values) / len(values)
        spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
        np.testing.assert_allclose(
            t_half_width(np.array(values, float)), quantile * spread / len(values) ** 0.5, rtol=1e-4
        )
    assert t_half_width(np.array([1.0])) is None


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A list with three seeds of two methods, two seeds of which are stored for both; and an older study's file."""
    content = {
        "settings": {},
        "methods": {"new": {"recipe": "twn"}, "base": {}},
        "blocks": [{"seeds": [1, 2, 3], "runs": [["new", 4], ["base", 4], ["base", 1]]}],
    }
    (tmp_path / "tiny.json").write_text(json.dumps(content))
    monkeypatch.setattr(comparisons, "PAPERS", tmp_path)
    monkeypatch.setattr(comparisons, "ROOT", tmp_path)
    accuracies = {("new", 1): 0.91, ("new", 2): 0.93, ("new", 3): 0.99, ("base", 1): 0.90, ("base", 2): 0.91}
    for run in runs.read_runs(tmp_path / "tiny.json"):
        if (run.method, run.seed) in accuracies and run.epochs == 4:
            path = runs.result_path(run, tmp_path)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(run.identity | {"test_accuracy": accuracies[run.method, run.seed]}))
    older = {"float": {"top1": 0.5, "images": 100}, "int8": {"top1": 0.4, "images": 100, "agreement_with_float": 0.8}}
    (tmp_path / "older.json").write_text(json.dumps(older))
    return tmp_path


def source(method, epochs=4):
    return {"study": "tiny", "method": method, "epochs": epochs}


def test_equal_seeds_are_paired(stored):
    found = compare({"label": "4 epochs", "a": source("new"), "b": source("base")}, stored)
    assert (found.seeds, found.wanted, found.by) == (2, 3, "seeds")
    np.testing.assert_allclose([found.a, found.b, found.mean], [92.0, 90.5, 1.5])
    np.testing.assert_allclose([found.low, found.high], [1.5 - 12.706 * 0.5, 1.5 + 12.706 * 0.5], rtol=1e-4)
    assert "n = 2 of 3" in page._cells(found)[2]


def test_seeds_of_different_precision_are_no_pair(stored):
    for method, precisions in (("new", ("float32", "float32")), ("base", ("float32", "mixed_bfloat16"))):
        for seed, precision in enumerate(precisions, 1):
            path = stored / f"tiny/{method}-4-seed{seed}.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"precision": precision}))
    comparison = {"label": "4 epochs", "a": source("new"), "b": source("base")}
    assert compare(comparison, stored).seeds == 1
    assert compare(comparison | {"across_precisions": True}, stored).seeds == 2


def test_what_is_missing_is_not_tried(stored):
    found = compare({"label": "1 epoch", "a": source("new"), "b": source("base", 1)}, stored)
    assert (found.seeds, found.wanted, found.verdict(0)) == (0, 3, MISSING)


def test_one_network_is_compared_with_every_seed(stored):
    fixed = {"file": "older.json", "name": "float"}
    found = compare({"label": "", "a": source("new"), "b": fixed, "fixed": True}, stored)
    assert found.seeds == 3
    np.testing.assert_allclose(found.mean, 100 * np.mean([0.41, 0.43, 0.49]))


def test_intervals_of_the_images(stored):
    comparison = {
        "label": "",
        "a": {"file": "older.json", "name": "int8"},
        "b": {"file": "older.json", "name": "float"},
    }
    found = compare(comparison | {"by": "images"}, stored)
    # 20 of 100 images differ, 10 points net: the variance of one image's difference is 0.2 - 0.1^2.
    np.testing.assert_allclose(found.high - found.mean, 100 * 1.96 * (0.19 / 100) ** 0.5)
    apart = compare(comparison | {"by": "images", "independent": True}, stored)
    np.testing.assert_allclose(apart.mean - apart.low, 100 * 1.96 * ((0.24 + 0.25) / 100) ** 0.5)


def test_multiplications_of_a_small_network_are_counted_by_hand():
    import keras
    from keras import layers

    inputs = keras.Input((8, 8, 3))
    hidden = layers.Conv2D(6, 3, padding="same")(inputs)  # 64 positions, 6 filters of 27 weights
    hidden = layers.Conv2D(5, 3, strides=2, padding="same")(
        hidden
    )  # 16 positions, 5 filters: 54 weights, or 2 clusters of 4 slices
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(hidden)))  # 2 filters of 5
    before, after = 64 * 6 * 27 + 16 * 5 * 54 + 2 * 5, 64 * 6 * 27 + 16 * 5 * 2 + 2 * 5
    np.testing.assert_allclose(counts.removed(model, 4), 1 - after / before)


def test_counts_are_exact(stored):
    (stored / "counts.json").write_text(json.dumps({"runs": [{"n": 4, "share": 0.85}, {"n": None, "share": 0.0}]}))
    a, b = ({"file": "counts.json", "n": n} for n in (4, None))
    found = compare({"label": "", "a": a, "b": b, "by": "count"}, stored)
    assert (found.low, found.mean, found.high) == (85.0, 85.0, 85.0)
    assert page._cells(found)[:2] == ("85.0 %", "exact")


def test_sources_that_pick_nothing_or_several_are_refused(stored):
    with pytest.raises(ValueError, match=r"tiny.json lists no 'new' with 3 epochs"):
        compare({"label": "", "a": source("new", 3), "b": source("base")}, stored)
    with pytest.raises(ValueError, match=r"older.json has no result with"):
        compare({"label": "", "a": {"file": "older.json", "name": "int4"}, "b": source("base")}, stored)
    with pytest.raises(ValueError, match="picks several results of seed 0"):
        compare({"label": "", "a": {"file": "older.json", "images": 100}, "b": source("base")}, stored)


def test_verdicts_need_the_whole_interval_on_one_side():
    base = Difference("", 0, 0, 1.0, 0.5, 1.5, 3, 3, "seeds")
    assert [base.verdict(limit) for limit in (0.5, 1.0, 1.6)] == [HOLDS, OPEN, FAILS]
    single = dataclasses.replace(base, low=None, high=None, seeds=1)
    assert single.verdict(-100) == OPEN
    missing = dataclasses.replace(base, seeds=0)
    below = dataclasses.replace(base, mean=-1.0, low=-1.5, high=-0.5)
    assert verdict([missing, missing], 0) == MISSING
    assert verdict([base, missing], 0) == HOLDS
    assert verdict([below, missing], 0) == FAILS
    assert verdict([base, below], 0) == verdict([base, single], 0) == IN_PART
    assert verdict([below, single], 0) == OPEN
