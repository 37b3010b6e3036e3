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

from studies.inq_cifar.run import HERE

WORDS = {"filter": "grid per filter", "mse": "top of least error", "ternary": "TWN's grid", "taught": "taught"}
GOALS = {2: 2.0, 3: 0.3, 4: 0.3, 5: 0.05}  # points below float; 5 bits: none
FLOOR = 0.05  # points below float; what is nearer, or above, is drawn here


def variant(run: dict) -> str:
    """What a run is besides its width, in words: "magnitude, grid per filter, taught"."""
    partition, *rest = run["method"].split("-")[2:]
    length, last = (run["settings"].get(name, 1) for name in ("epochs_per_step", "last_step_epochs"))
    words = [partition, *(WORDS[word] for word in rest), *([f"{length} epochs a step"] if length > 1 else [])]
    own = run["settings"].get("portions")
    return ", ".join([*words, *(["the last too"] if last > 1 else []), *([f"{len(own)} own steps"] if own else [])])


def draw(content: dict, output: Path) -> None:
    """Left: how far below the float network every run ends, by bits. Right: training error over the steps, magnitude."""
    runs = [run for run in content["runs"] if run["method"].startswith("inq-")]
    if not runs:
        raise ValueError("The result has no finished INQ run. Run studies.inq_cifar.run first.")
    figure, (widths, curves) = plt.subplots(1, 2, figsize=(13, 6), constrained_layout=True)
    whole = content["float_test_accuracy"][f"resnet{runs[0]['settings']['depth']}"]
    kinds = list(dict.fromkeys(variant(run) for run in runs))
    for run in runs:
        kind, bits = kinds.index(variant(run)), int(run["method"].split("-")[1])
        below = max(100 * (whole - run["test_accuracy"]), FLOOR)
        mark = "x" if "random" in kinds[kind] else "os^Dvp"[kinds[kind].count(",")]
        widths.semilogy(bits + 0.04 * (kind - len(kinds) / 2), below, mark, color=f"C{kind}", label=kinds[kind])
        if run["seed"] == runs[0]["seed"] and "random" not in kinds[kind]:
            portion, value = run["curves"]["portion"], 100 - 100 * np.array(run["curves"]["accuracy"])
            line = ":" if "taught" in kinds[kind] else "-"
            curves.semilogy(100 * np.array(portion), value, f".{line}", color=f"C{kind}", alpha=0.4 + 0.12 * bits)
            curves.annotate(str(bits), (100 * portion[-1], value[-1]), xytext=(4, 0), textcoords="offset points")
    for bits, goal in GOALS.items():
        widths.plot([bits - 0.4, bits + 0.4], [goal, goal], "k--", linewidth=0.8, label="goal")
    once = dict(zip(*reversed(widths.get_legend_handles_labels()), strict=True))
    figure.legend(once.values(), once.keys(), fontsize="small", loc="outside lower center", ncols=2)
    widths.set(xlabel="bits", ylabel="points below float", title="all 10,000 test images", xticks=[2, 3, 4, 5])
    title = "while that portion was frozen (taught: disagreement with the teacher)"
    curves.set(xlabel="frozen weights, %", ylabel="training error, %", title=title)
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
