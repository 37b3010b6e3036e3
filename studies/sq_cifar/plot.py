"""Draws result.json: test accuracy of every run, and the training curves.

python -m studies.sq_cifar.plot [--result result.json] [--output result.png]
"""

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from studies.sq_cifar.run import HERE, METHODS

COLORS = dict(
    zip(METHODS, ("0.4", "tab:blue", "tab:cyan", "tab:orange", "tab:green", "tab:olive", "tab:red"), strict=True)
)


def draw(content: dict, epochs: int, output: Path) -> None:
    """One picture for one budget: a point per seed with the mean, and beside it the mean curve of each method."""
    runs = [run for run in content["runs"] if run["settings"]["epochs"] == epochs]
    if not runs:
        known = sorted({run["settings"]["epochs"] for run in content["runs"]})
        raise ValueError(
            f"No finished run with epochs={epochs}; the result has {known}. Run studies.sq_cifar.run first."
        )
    methods = [method for method in METHODS if any(run["method"] == method for run in runs)]
    figure, (points, curves) = plt.subplots(1, 2, figsize=(12, 4.5), constrained_layout=True)
    for place, method in enumerate(methods):
        mine = [run for run in runs if run["method"] == method]
        values = [100 * run["test_accuracy"] for run in mine]
        points.plot([place] * len(values), values, "o", color=COLORS[method], alpha=0.6)
        points.plot([place - 0.25, place + 0.25], [np.mean(values)] * 2, color=COLORS[method])
        mean_curve = 100 * np.mean([run["curves"]["val_accuracy"] for run in mine], axis=0)
        curves.plot(np.arange(1, epochs + 1), mean_curve, ".-", color=COLORS[method], label=f"{method} ({len(mine)})")
    for name, value in content["float_test_accuracy"].items():
        points.axhline(100 * value, color="0.7", linestyle=":", label=f"pretrained {name}")
    points.set_xticks(range(len(methods)), methods, rotation=20)
    points.set(
        ylabel="test accuracy, %", title=f"all 10,000 test images, after {epochs} epochs; bar = mean of the seeds"
    )
    if content["float_test_accuracy"]:
        points.legend(loc="lower left")
    shown = runs[0]["settings"]["curve_images"]
    curves.set(
        xlabel="epoch",
        ylabel="test accuracy, %",
        title=f"first {shown} test images, fully quantized; mean of (n) seeds",
    )
    curves.legend(fontsize="small")
    figure.savefig(output, dpi=120)
    plt.close(figure)


def main(arguments=None) -> None:
    """Draws the largest budget of the result, or the one asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, default=HERE / "result.json")
    parser.add_argument("--output", type=Path, default=HERE / "result.png")
    parser.add_argument("--epochs", type=int, help="which budget, if the result has several; default the largest")
    parsed = parser.parse_args(arguments)
    content = json.loads(parsed.result.read_text())
    budgets = [run["settings"]["epochs"] for run in content["runs"]]
    draw(content, parsed.epochs or max(budgets, default=0), parsed.output)
    print(f"wrote {parsed.output}")


if __name__ == "__main__":
    main()
