"""Writes studies/README.md and its picture from headlines.json and the stored results.

python -m studies.papers.page            # both; what was not run stands there as not tried, with its command
python -m studies.papers.page --check    # whether the page is that of the stored results
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studies.papers.comparisons import MISSING, ROOT, Difference, compare, verdict
from studies.runner.runs import PAPERS, all_lists, read_runs, stored_result
from studies.runner.throughput import differences_from_base

PAGE, PICTURE = ROOT / "studies" / "README.md", PAPERS / "headlines.png"
THROUGHPUT = ROOT / "studies" / "runner" / "throughput.json"


def headlines() -> list[dict[str, Any]]:
    """The rows: paper, claim, what was published, comparisons, command."""
    return json.loads((PAPERS / "headlines.json").read_text())["headlines"]


def page() -> str:
    """The whole page."""
    rows = [row | {"number": number} for number, row in enumerate(headlines(), start=1)]
    parts = [(PAPERS / "page_head.md").read_text().rstrip(), ""]
    for paper in dict.fromkeys(row["paper"] for row in rows):
        own = [row for row in rows if row["paper"] == paper]
        parts += [f"## {paper}", "", *_table(own), "", *_commands(own), ""]
    return "\n".join([*parts, *_throughput(), "", *_state()]) + "\n"


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| | headline | published | ours, points | 95 % interval | budget, seeds | verdict |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        differences = [compare(comparison) for comparison in row["comparisons"]]
        cells = [_cells(found) for found in differences if found.seeds]
        if missing := "; ".join(found.label for found in differences if not found.seeds):
            cells.append((MISSING, "", missing))
        ours = " | ".join("<br>".join(column) for column in zip(*cells, strict=True))
        decided = verdict(differences, row["at_least"])
        yield f"| {row['number']} | {row['claim']} | {row['published']} | {ours} | **{decided}** |"


def _cells(found: Difference) -> tuple[str, str, str]:
    ours = f"{found.mean:+.2f} ({found.a:.2f} against {found.b:.2f} %)"
    if found.by == "count":
        return f"{found.mean:.1f} %", "exact", found.label
    interval = "one seed" if found.low is None else f"{found.low:+.2f} to {found.high:+.2f}"
    if found.by == "images":
        return ours, f"{interval}, of the images", found.label
    seeds = f"n = {found.seeds}" + (f" of {found.wanted}" if found.wanted > found.seeds else "")
    return ours, interval, f"{found.label}, {seeds}"


def _commands(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "<!-- not run: hours, on data that are not in the repository -->"
    yield "```bash"
    for command in dict.fromkeys(row["command"] for row in rows):
        numbers = ", ".join(str(row["number"]) for row in rows if row["command"] == command)
        yield f"{command}   # {numbers}"
    yield "```"


def _throughput() -> Iterator[str]:
    yield from ("## What a training costs", "", (PAPERS / "page_throughput.md").read_text().rstrip(), "")
    rows = json.loads(THROUGHPUT.read_text())
    machines = sorted({row["machine"]["processor"] for row in rows})
    loads = [row["load"] for row in rows]
    yield f"Measured on {', '.join(machines)}, with {min(loads):.0f} to {max(loads):.0f} other processes at work."
    yield ""
    yield "| network | how | images per processor second | processor seconds an epoch |"
    yield "|---|---|---|---|"
    for row in rows:
        numbers = f"{row['images_per_processor_s']:.0f} | {row['processor_s_per_epoch']:.1f}"
        yield f"| ResNet-{row['depth']} | {differences_from_base(row)} | {numbers} |"


def _state() -> Iterator[str]:
    yield from ("## What is stored", "", "| list | what it is | runs stored |", "|---|---|---|")
    for path in all_lists():
        runs = read_runs(path)
        stored = sum(stored_result(run) is not None for run in runs)
        yield f"| `{path.name}` | {json.loads(path.read_text())['purpose']} | {stored} of {len(runs)} |"


def draw(path: Path) -> None:
    """One point with its interval for every comparison that was made, the published difference beside it."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = [
        (row, found)
        for row in headlines()
        for found in map(compare, row["comparisons"])
        if found.seeds and found.by != "count"
    ]
    figure, axes = plt.subplots(figsize=(10, 1.5 + 0.28 * len(rows)), constrained_layout=True)
    for place, (row, found) in enumerate(rows):
        low, high = (found.mean, found.mean) if found.low is None else (found.low, found.high)
        axes.plot([low, high], [place, place], color="tab:blue")
        axes.plot(found.mean, place, "o", color="tab:blue", fillstyle="none" if found.low is None else "full")
        if row["published_points"] is not None:
            axes.plot(row["published_points"], place, "x", color="tab:orange")
    axes.axvline(0, color="0.7", linewidth=1)
    names = [f"{row['claim']}: {found.label}" for row, found in rows]
    axes.set_yticks(range(len(rows)), names, fontsize="x-small")
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=2)
    axes.set_xticks([-20, -5, -2, -1, 0, 1, 2, 5, 20, 60], "-20 -5 -2 -1 0 1 2 5 20 60".split())
    axes.set(xlabel="points of accuracy: o ours, 95 % interval\n(hollow: one seed); x published")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    parsed = parser.parse_args(arguments)
    text = page()
    if parsed.check:
        same = PAGE.exists() and PAGE.read_text() == text
        print(f"{PAGE.name} is {'up to date' if same else 'out of date: python -m studies.papers.page'}")
        return 0 if same else 1
    PAGE.write_text(text)
    draw(PICTURE)
    print(f"wrote {PAGE} and {PICTURE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
