"""Draws result.json: accuracy over the width for both partitions, and how it moves from step to step.

python -m studies.inq_cifar.plot [--result result.json] [--output result.png]
"""

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from studies.inq_cifar.run import HERE, PARTITIONS

COLORS = dict(zip(PARTITIONS, ("tab:blue", "tab:orange"), strict=True))


def draw(content: dict, output: Path) -> None:
    """Left: test accuracy of every run by bits. Right: the curve of each width over its steps, magnitude partition."""
    runs = [run for run in content["runs"] if run["method"].startswith("inq-")]
    if not runs:
        raise ValueError("The result has no finished INQ run. Run studies.inq_cifar.run first.")
    figure, (widths, curves) = plt.subplots(1, 2, figsize=(12, 4.5), constrained_layout=True)
    for run in runs:
        _, bits, partition, *grid = run["method"].split("-")
        shift = 0.06 if partition == "random" else -0.06
        label, mark = f"{partition}, grid per {grid[0] if grid else 'layer'}", "s" if grid else "o"
        widths.plot(int(bits) + shift, 100 * run["test_accuracy"], mark, color=COLORS[partition], label=label)
        if partition == "magnitude" and run["seed"] == runs[0]["seed"]:
            portion, value = run["curves"]["portion"], 100 * np.array(run["curves"]["accuracy"])
            curves.plot(100 * np.array(portion), value, ".--" if grid else ".-", label=f"{bits} bits {' '.join(grid)}")
    for name, value in content["float_test_accuracy"].items():
        widths.axhline(100 * value, color="0.6", linestyle=":", label=f"pretrained {name}")
    once = dict(zip(*reversed(widths.get_legend_handles_labels()), strict=True))
    widths.legend(once.values(), once.keys(), loc="lower right")
    widths.set(xlabel="bits", ylabel="test accuracy, %", title="all 10,000 test images", xticks=[2, 3, 4, 5])
    curves.set(
        xlabel="frozen weights, %", ylabel="training accuracy, %", title="while that portion was frozen, magnitude"
    )
    curves.legend()
    figure.savefig(output, dpi=120)
    plt.close(figure)


def main(arguments=None) -> None:
    """Draws the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, default=HERE / "result.json")
    parser.add_argument("--output", type=Path, default=HERE / "result.png")
    parsed = parser.parse_args(arguments)
    draw(json.loads(parsed.result.read_text()), parsed.output)
    print(f"wrote {parsed.output}")


if __name__ == "__main__":
    main()
