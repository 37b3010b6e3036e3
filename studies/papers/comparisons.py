"""Differences of accuracies between what equal seeds gave, their intervals, and what follows from them.

A *source* is a dict that picks stored results: ``study`` (a list of `studies/papers`, with ``method`` and ``epochs``) or
``file`` (JSON of an older study) with the fields that a row must have, dotted for nested ones.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from studies.runner.runs import PAPERS, RESULTS, read_runs, stored_result

ROOT = PAPERS.parent.parent
VALUES = ("test_accuracy", "accuracy", "top1", "share")
TEST_IMAGES = 10_000
HOLDS, FAILS, OPEN, MISSING = "holds", "does not hold here", "not decided", "not tried"
IN_PART = "holds in part"


@dataclasses.dataclass(frozen=True)
class Difference:
    """a - b in points of accuracy.

    low, high: 95 % interval of the mean; None for one seed.   seeds: how many pairs.   wanted: how many the list asks for.
    by: "seeds" (t-interval of paired differences) or "images" (binomial, of results in which nothing is random)
    or "count" (exact).
    """

    label: str
    a: float
    b: float
    mean: float
    low: float | None
    high: float | None
    seeds: int
    wanted: int
    by: str

    def verdict(self, at_least: float) -> str:
        """Whether the mean is at least so much: decided only if the whole interval is on one side."""
        if not self.seeds:
            return MISSING
        if self.low is None or self.high is None:
            return OPEN
        return HOLDS if self.low >= at_least else FAILS if self.high < at_least else OPEN


def compare(comparison: dict[str, Any], results: Path = RESULTS) -> Difference:
    """The difference of two sources ``a`` and ``b``; ``by`` says over what the interval is taken.

    fixed: ``b`` is one network, the same for every seed of ``a``.   independent: ``b`` is not the float network, and how many
    classes differ is not known.   across_precisions: pairs may have been trained in different ones, which is what is compared.
    """
    alike = not comparison.get("across_precisions") and all("study" in comparison[side] for side in "ab")
    a, b = (_by_seed(comparison[side], results, alike) for side in "ab")
    if comparison.get("fixed"):
        b = dict.fromkeys(a, *b.values())
    common = sorted(a.keys() & b.keys())
    pairs = np.array([(a[seed][0], b[seed][0]) for seed in common]).reshape(-1, 2)
    wanted = max(_wanted(comparison["a"]), len(pairs))
    by = comparison.get("by", "seeds")
    if not len(pairs):
        return Difference(comparison["label"], np.nan, np.nan, np.nan, None, None, 0, wanted, by)
    differences, (_, images, differing) = 100 * (pairs[:, 0] - pairs[:, 1]), a[common[0]]
    if by == "images":
        half = _image_half(pairs[0], images, None if comparison.get("independent") else differing)
    else:
        half = 0.0 if by == "count" else t_half_width(differences)
    mean = float(differences.mean())
    low, high = (None, None) if half is None else (mean - half, mean + half)
    first, second = (100 * pairs.mean(0)).tolist()
    return Difference(comparison["label"], first, second, mean, low, high, len(pairs), wanted, by)


def t_half_width(values: np.ndarray, level: float = 0.95) -> float | None:
    """Half of Student's interval for the mean of `values`; None for fewer than two."""
    from scipy import stats

    if len(values) < 2:
        return None
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(stats.t.ppf((1 + level) / 2, len(values) - 1) * error)


def _image_half(pair: np.ndarray, images: int, differing: float | None) -> float:
    """Half of the 95 % interval of a difference of two shares.

    differing: on which share of the images the two give different classes, which bounds the variance of the difference;
    without it as if each had images of its own, which is wider.
    """
    variance = np.sum(pair * (1 - pair)) if differing is None else differing - (pair[0] - pair[1]) ** 2
    return float(100 * 1.96 * np.sqrt(variance / images))


def _by_seed(
    source: dict[str, Any], results: Path, alike: bool
) -> dict[tuple[int, str], tuple[float, int, float | None]]:
    """Of each seed that is stored: accuracy, test images, and the share of these where float says another class.

    alike: seeds are told apart by the precision of the training, which machines choose, so that pairs have the same.
    """
    found: dict[tuple[int, str], tuple[float, int, float | None]] = {}
    for row in _rows(source, results):
        accuracy = next(row[name] for name in VALUES if name in row)
        seed = row.get("seed", 0), row.get("precision", "") if alike else ""
        if seed in found:
            raise ValueError(
                f"{source} picks several results of seed {seed[0]}. Name another field that tells them apart."
            )
        differing = 1 - row["agreement_with_float"] if "agreement_with_float" in row else None
        found[seed] = (accuracy, row.get("images", TEST_IMAGES), differing)
    return found


def _rows(source: dict[str, Any], results: Path) -> Iterator[dict[str, Any]]:
    if "study" in source:
        yield from filter(None, (stored_result(run, results) for run in _listed(source)))
        return
    content = _read(source)
    rows = content["runs"] if "runs" in content else [{"name": name, **row} for name, row in content.items()]
    fields = {name: value for name, value in source.items() if name != "file"}
    picked = [row for row in rows if all(_field(row, name) == value for name, value in fields.items())]
    if not picked:
        raise ValueError(f"{source['file']} has no result with {fields}.")
    yield from picked


def _listed(source: dict[str, Any]) -> list[Any]:
    runs = read_runs(PAPERS / f"{source['study']}.json")
    found = [run for run in runs if (run.method, run.epochs) == (source["method"], source["epochs"])]
    if not found:
        raise ValueError(f"{source['study']}.json lists no {source['method']!r} with {source['epochs']} epochs.")
    return found


def _wanted(source: dict[str, Any]) -> int:
    return len(_listed(source)) if "study" in source else 0


def _read(source: dict[str, Any]) -> dict[str, Any]:
    return json.loads((ROOT / source["file"]).read_text())


def _field(row: Any, name: str) -> Any:
    for part in name.split("."):
        row = row.get(part) if isinstance(row, dict) else None
    return row


def verdict(differences: list[Difference], at_least: float) -> str:
    """Of a headline, from its comparisons at several budgets or networks."""
    found = {difference.verdict(at_least) for difference in differences} - {MISSING}
    if not found:
        return MISSING
    if len(found) == 1:
        return found.pop()
    return IN_PART if HOLDS in found else OPEN
