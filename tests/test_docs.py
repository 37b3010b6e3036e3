"""The documentation: the reference has every public name. Sphinx is not needed here; `make docs` builds the pages."""

import ast
import re

import pytest

from tests.support.process import ROOT

DOCS = ROOT / "docs"
PUBLIC = [
    "",
    "layers",
    "quantizers",
    "recipes",
    "callbacks",
    "schedules",
    "data",
    "distill",
    "deploy",
    "tfmot",
    "ops",
    "bench",
    "plot",
]
MODULES = {"bench", "callbacks", "data", "deploy", "layers", "ops", "plot", "quantizers", "recipes", "schedules"}


def public_names(module):
    """`__all__` of a module, or the functions and classes that it defines; its source is read, since importing TFMOT
    changes what `tf.keras` means."""
    path = ROOT / "keras_lowbit" / module
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(node.value))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"}


def named(page):
    """The names that a page of the reference lists."""
    text = page.read_text(encoding="utf-8")
    listed = re.findall(r"^   (\w+)$", text, re.MULTILINE)
    elsewhere = re.findall(r"^- \{py:obj\}`(\w+) <keras_lowbit\.[\w.]+>`$", text, re.MULTILINE)
    return [*listed, *elsewhere]


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module or "keras_lowbit")
def test_the_reference_has_every_public_name_once(module):
    names = sorted(named(DOCS / "reference" / f"{module or 'keras_lowbit'}.md"))
    modules = MODULES if not module else {"callbacks"} if module == "tfmot" else set()
    assert names == sorted(public_names(module) - modules)


def test_every_module_has_a_page_in_the_table_of_contents():
    index = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    pages = re.findall(r"^(\w+)$", index.split("```{toctree}")[1], re.MULTILINE)
    assert pages == [module or "keras_lowbit" for module in PUBLIC]
    assert set(pages) == {page.stem for page in (DOCS / "reference").glob("*.md")} - {"index"}
    assert set(pages) >= MODULES
