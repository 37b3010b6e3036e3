"""The programs in the pages of docs/: what stands in a block marked `python` runs, block after block, with the same names; the
commands are the lines that begin with `$` in blocks marked `console`. "% not run: why" above a block leaves it out."""

import re
import shlex

from tests.support.process import ROOT

DOCS = ROOT / "docs"
# The public modules, in the order of the reference; "" is the package itself.
PUBLIC = ["", *"layers quantizers recipes callbacks schedules data distill deploy tfmot ops bench plot".split()]
# Pages whose program begins from nothing.
_GUIDES = "phone microcontrollers custom_layers runtime kernels own_quantizer".split()
GUIDES = ["quick_start.md", *(f"guides/{name}.md" for name in _GUIDES)]
BLOCK = re.compile(
    r"^(?:% not run: (?P<reason>.*)\n)?```(?P<kind>python|console)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


def _blocks(page, kind):
    """The text of the page, and its blocks of a kind that are run."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return text, [found for found in BLOCK.finditer(text) if found["kind"] == kind and found["reason"] is None]


def program(page):
    """The blocks of a page as one text, line by line where they stand in the page."""
    text, blocks = _blocks(page, "python")
    lines = [""] * (text.count("\n") + 1)
    for found in blocks:
        start = text.count("\n", 0, found.start("text"))
        code = found["text"].splitlines()
        lines[start : start + len(code)] = code
    return "\n".join(lines)


def commands(page):
    """What the page tells the reader to type, each command as a line."""
    blocks = _blocks(page, "console")[1]
    return [line.removeprefix("$ ") for found in blocks for line in found["text"].splitlines() if line.startswith("$ ")]


def own_commands(page):
    """Those of `keras-lowbit`, as words."""
    return [shlex.split(line, comments=True) for line in commands(page) if line.startswith("keras-lowbit ")]


def run_page(page, **names):
    """Runs a page; an error names its line. Returns all names that it leaves."""
    names["__name__"] = "page"
    exec(compile(program(page), DOCS / page, "exec"), names)
    return names
