"""The programs and commands of the documentation.

A block marked `python` is part of its page's program: the blocks run one after the other, with the same names. Commands are the
lines of blocks marked `bash`, and those that begin with `$` in blocks marked `console`. "% not run: why", or the same as a
comment of HTML, above a block leaves it out. Pages are named by their place in docs/: "guides/phone.md", "../README.md".
"""

import re
import shlex

from tests.support.process import ROOT

DOCS = ROOT / "docs"
# The public modules, in the order of the reference; "" is the package itself.
PUBLIC = ["", *"layers quantizers recipes callbacks schedules data distill deploy tfmot ops bench plot".split()]
# Pages whose program begins from nothing.
_GUIDES = "phone microcontrollers custom_layers runtime kernels own_quantizer".split()
GUIDES = ["quick_start.md", *(f"guides/{name}.md" for name in _GUIDES)]
# Pages whose commands tests/from_a_clone.py runs, in its order.
FOLLOWED = [*GUIDES, "command_line.md", "../examples/README.md", "guides/tfmot.md", "../README.md"]
BLOCK = re.compile(
    r"^(?:(?:%|<!--) not run: (?P<reason>.*?)(?: -->)?\n)?```(?P<kind>python|console|bash)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# Lines that a reader types, wherever they stand.
_TYPED = re.compile(r"^\s*(?:\$ )?((?:[A-Z_]+=\S+ )*(?:adb|cd|cmake|git|keras-lowbit|make|pip|python|xxd) .*)$")


def _blocks(page, *kinds):
    """The text of the page, and its blocks of these kinds that are run."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return text, [found for found in BLOCK.finditer(text) if found["kind"] in kinds and found["reason"] is None]


def program(page):
    """The blocks of a page as one text, line by line where they stand in the page."""
    text, blocks = _blocks(page, "python")
    lines = [""] * (text.count("\n") + 1)
    for found in blocks:
        start = text.count("\n", 0, found.start("text"))
        code = found["text"].splitlines()
        lines[start : start + len(code)] = code
    return "\n".join(lines)


def typed(block):
    """The commands of a block, each as a line."""
    lines = block["text"].splitlines()
    if block["kind"] == "bash":
        return [line for line in lines if line.strip()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def commands(page):
    """What the page tells the reader to type, each command as a line."""
    return [line for found in _blocks(page, "console", "bash")[1] for line in typed(found)]


def left_out(page):
    """The commands of a page that are not run, each with the reason."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = [block for block in BLOCK.finditer(text) if block["kind"] != "python" and block["reason"] is not None]
    return {line: block["reason"] for block in found for line in typed(block)}


def hidden(page):
    """What looks like a command and stands in a block of another kind, where no test would see it."""
    text = BLOCK.sub("", (DOCS / page).read_text(encoding="utf-8"))
    fenced = re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:^ {4}\S.*\n)+", text, re.MULTILINE)
    return [line for block in [*fenced, *indented] for line in block.splitlines() if _TYPED.match(line)]


def own_commands(page):
    """Those of `keras-lowbit`, as words."""
    return [shlex.split(line, comments=True) for line in commands(page) if line.startswith("keras-lowbit ")]


def run_page(page, **names):
    """Runs a page; an error names its line. Returns all names that it leaves."""
    names["__name__"] = "page"
    exec(compile(program(page), DOCS / page, "exec"), names)
    return names
