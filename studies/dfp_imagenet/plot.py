"""Draws result.json: accuracy and weight error over the cluster size N, one column for each network.

python -m studies.dfp_imagenet.plot [--result result.json] [--output result.png]
"""

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from studies.dfp_imagenet.networks import NETWORKS
from studies.dfp_imagenet.run import DEFAULTS, HERE

SIZES = (1, 4, 16, 64)
# Label -> (what a run must have, style).
CURVES = {
    "4 bits": ({"weights": "4w8a", "calibration": "rms"}, "tab:blue"),
    "ternary": ({"weights": "2w8a", "calibration": "rms"}, "tab:orange"),
    "ternary, optimal": ({"weights": "2w8a", "calibration": "mse"}, "tab:green"),
    "ternary, optimal, single weights (FGQ)": (
        {"weights": "2w8a", "calibration": "mse", "groups": "weights"},
        "tab:red",
    ),
}
STATISTICS = {"new": "-", "unfolded": "-", "old": ":"}  # dotted: batch norms as they were


def chosen(runs: list[dict], network: str, statistics: str, **wanted) -> list[dict]:
    """The untuned runs of one curve, by N; what is not asked for is as in the recipe."""
    wanted = DEFAULTS | {"cluster_size": None} | wanted | {"network": network, "statistics": statistics}
    del wanted["cluster_size"]
    found = [run for run in runs if all(run[name] == value for name, value in wanted.items())]
    return sorted(found, key=lambda run: run["cluster_size"] or 0)


def draw(runs: list[dict], output: Path) -> None:
    """Accuracy above, squared error of the weights below."""
    networks = [name for name in NETWORKS if any(run["network"] == name for run in runs)]
    figure, axes = plt.subplots(
        2, len(networks), figsize=(4 * len(networks), 7), sharex=True, squeeze=False, layout="constrained"
    )
    for column, network in enumerate(networks):
        _column(axes[:, column], runs, network)
    axes[0, 0].set_ylabel("top-1 of the int8 file, %")
    axes[1, 0].set_ylabel("relative squared error of clustered layers, mean")
    handles = {}
    for axis in axes.ravel():
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(output, dpi=110)
    plt.close(figure)


def _column(axes, runs, network):
    accuracy, error = axes
    accuracy.set(title=network, xscale="log")
    error.set(xlabel="N, slices in a cluster", yscale="log")
    error.set_xticks(SIZES, SIZES)
    error.minorticks_off()
    for run in runs:
        if run["network"] == network and run["weights"] in ("float", "8w8a"):
            line = "--" if run["weights"] == "float" else "-."
            accuracy.axhline(100 * run["accuracy"], color="0.5", linestyle=line, label=run["weights"])
    for label, (wanted, color) in CURVES.items():
        for statistics, line in STATISTICS.items():
            points = chosen(runs, network, statistics, **wanted)
            if not points:
                continue
            sizes = [run["cluster_size"] for run in points]
            name = label + (", batch norms as they were" if statistics == "old" else "")
            fill = "none" if statistics == "old" else color
            tops = [100 * run["accuracy"] for run in points]
            accuracy.plot(sizes, tops, f"o{line}", color=color, markerfacecolor=fill, label=name)
            if statistics != "old":  # the weights do not depend on them
                error.plot(sizes, [run["weight_error"] for run in points], f"o{line}", color=color)
    for run in runs:
        if run["network"] == network and run["tuning"]:
            accuracy.plot(run["cluster_size"], 100 * run["accuracy"], "k*", markersize=10, label="ternary, fine-tuned")


def main(arguments=None) -> None:
    """Draws the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, default=HERE / "result.json")
    parser.add_argument("--output", type=Path, default=HERE / "result.png")
    parsed = parser.parse_args(arguments)
    draw(json.loads(parsed.result.read_text())["runs"], parsed.output)
    print(f"wrote {parsed.output}")


if __name__ == "__main__":
    main()
