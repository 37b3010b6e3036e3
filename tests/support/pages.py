"""The programs in the pages of docs/: what stands in a block marked `python` runs, block after block, with the same names."""

import re

from tests.support.process import ROOT

DOCS = ROOT / "docs"
BLOCK = re.compile(r"^(?:% not run: (?P<reason>.*)\n)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def program(page):
    """The blocks of a page as one text, line by line where they stand in the page; "% not run: why" leaves one out."""
    text = (DOCS / page).read_text(encoding="utf-8")
    lines = [""] * (text.count("\n") + 1)
    for found in BLOCK.finditer(text):
        if found["reason"] is not None:
            continue
        start = text.count("\n", 0, found.start("code"))
        code = found["code"].splitlines()
        lines[start : start + len(code)] = code
    return "\n".join(lines)


def run_page(page, **names):
    """Runs a page; an error names its line. Returns all names that it leaves."""
    names["__name__"] = "page"
    exec(compile(program(page), DOCS / page, "exec"), names)
    return names
