"""Pages that say how fast LiteRT is name the machine: its kernels differ by three times between two processors."""

import json
import re

import pytest

from tests.support.process import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PEER = re.compile(r"LiteRT|XNNPACK")
SPEED = re.compile(
    r"times as (fast|long)|x LiteRT|as fast as|(slow|fast)er than|no slower|times (slow|fast)er|times the time|\d ms\b|GMAC"
)
MACHINE = re.compile(r"EPYC|Xeon|Graviton|Apple M\d|Pixel \d|Cortex-[A-Z]\d|Raspberry Pi")


def blocks(text):
    """Paragraphs, tables and items of lists; code left out."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [block for block in re.split(r"\n\s*\n|\n(?=- )", text) if block.strip()]


def is_table(block):
    return block.lstrip().startswith("|")


def unplaced(text):
    """Blocks that compare with LiteRT's speed and name no machine; a table and the text beside it may speak for each other."""
    found, all_blocks = [], blocks(text)
    for at, block in enumerate(all_blocks):
        if not (PEER.search(block) and SPEED.search(block)):
            continue
        beside = all_blocks[max(at - 1, 0) : at + 2]
        near = [other for other in beside if other is block or is_table(other) or is_table(block)]
        if not any(MACHINE.search(other) for other in near):
            found.append(block)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_speed_beside_litert_comes_with_its_machine(page):
    assert unplaced(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Twice: 2 times as fast as LiteRT.", 1),
        ("2 times as fast as LiteRT on an AMD EPYC.", 0),
        ("| a | x LiteRT |\n|---|---|\n| b | 2 |\n\nAMD EPYC, one thread.", 0),
        ("| a | x LiteRT |\n|---|---|\n| b | 2 |\n\nOne thread.", 1),
        ("AMD EPYC.\n\nLiteRT takes 3 ms.", 1),
        ("LiteRT runs the file.", 0),
    ],
)
def test_what_counts_as_such_a_statement(text, found):
    assert len(unplaced(text)) == found


def test_the_table_of_machines_is_that_of_the_committed_files():
    """One row of docs/benchmarks.md for each file of a machine in studies/kernel_speed, with its geometric means."""
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    rows = {}
    for path in sorted((ROOT / "studies" / "kernel_speed").glob("result*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        cells = [
            f"{report['means'][name][kind]:.2f}" for name in report["means"] for kind in ("tf_float32", "litert_int8")
        ]
        rows[path.name] = (report["machine"]["cpu"], cells)
    listed = re.findall(
        r"^\| ([^|]+?) \(`studies/kernel_speed/(result\w*\.json)`\) \| ([^|]+) \| (.*) \|$", text, re.MULTILINE
    )
    assert sorted(name for _, name, _, _ in listed) == sorted(rows)
    for cpu, name, _, cells in listed:
        expected, figures = rows[name]
        assert cpu.startswith(expected)
        assert re.findall(r"\d+\.\d+", cells) == figures
