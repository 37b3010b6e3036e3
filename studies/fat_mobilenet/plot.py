"""Draws result.json: top-1 with its interval and agreement with the float model, cell by cell.

python -m studies.fat_mobilenet.plot [--result result.json] [--output result.png]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from studies.fat_mobilenet.run import HERE


def draw(content: dict[str, Any], network: str, output: Path) -> None:
    """One row for each cell of a network: top-1 with its 95 % interval on the left, agreement on the right."""
    rows = {name.removeprefix(f"{network} "): row for name, row in content.items() if name.startswith(f"{network} ")}
    if not rows:
        raise ValueError(f"No cell of {network} in the result. Run studies.fat_mobilenet.run first.")
    names = list(rows)[::-1]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 0.5 * len(names) + 1.5), sharey=True, constrained_layout=True
    )
    for place, name in enumerate(names):
        row = rows[name]
        color = "tab:red" if name.startswith("fat") else "0.4" if name.startswith("int8") else "tab:blue"
        low, high = (100 * end for end in row["interval"])
        left.plot([low, high], [place, place], color=color)
        left.plot(100 * row["top1"], place, "o", color=color)
        right.barh(place, 100 * row["agreement_with_float"], color=color)
        right.text(1, place, f"{100 * row['agreement_with_float']:.1f}", va="center", color="white")
    left.axvline(100 * rows.get("float", rows[names[0]])["top1"], color="0.7", linestyle=":")
    left.set_yticks(range(len(names)), names)
    left.set(xlabel="top-1 on 1,024 images, % (bar: 95 % interval)", title=network)
    right.set(xlabel="top-1 agreement with the float model, %", xlim=(0, 100))
    figure.savefig(output, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Draws one network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, default=HERE / "result.json")
    parser.add_argument("--network", default="mobilenet_v2")
    parser.add_argument("--output", type=Path, default=HERE / "result.png")
    parsed = parser.parse_args(arguments)
    draw(json.loads(parsed.result.read_text()), parsed.network, parsed.output)
    print(f"wrote {parsed.output}")


if __name__ == "__main__":
    main()
