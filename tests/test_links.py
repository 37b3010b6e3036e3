"""Every link of the documentation leads somewhere: between pages and their headings, to files of the repository, and to sites
that are known. The sites themselves are asked by `make linkcheck`, with a network.
"""

import json
import re
import subprocess
from urllib.parse import urlsplit

import pytest

from tests.support.process import ROOT

# Sites that the documentation and the sources name. A new one is added here on purpose, after `make linkcheck`.
HOSTS = {
    *("ai.google.dev", "coral.ai", "developer.axis.com", "github.com", "json-schema.org", "keepachangelog.com"),
    "www.tensorflow.org",
}
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(<?([^()<>\s]*(?:\([^()]*\)[^()<>\s]*)*)>?(?: \"[^\"]*\")?\)")
ADDRESS = re.compile(r"\b\w+://[^\s\"'`<>()\[\]{}\\]+")
CODE = re.compile(r"^(?P<fence>`{3,}).*?^(?P=fence)`*$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,3} (.+)$", re.MULTILINE)  # `myst_heading_anchors` in docs/conf.py: three levels
FENCED = re.compile(r"^```\{(?:include|literalinclude|figure|image)\} (\S+)$", re.MULTILINE)
# Made when the site is built: docs/_ext/figures.py draws the one, docs/conf.py copies the other.
MADE = re.compile(r"docs/_static/figures/(?P<figure>\w+)\.svg|docs/notebooks/(?P<notebook>\w+)\.ipynb")
SCHEMES = ("http://", "https://")


def tracked(*patterns):
    """Files of the repository that fit; none where it is not a checkout of Git."""
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=False)
    names = [name for name in listed.stdout.split("\0") if name]
    return sorted(ROOT / name for name in names if (ROOT / name).exists())


def prose(path):
    """The text of a page without its code, or of the Markdown cells of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return CODE.sub("", text)


def anchors(path):
    """What `#...` may name in a page: its headings as GitHub and MyST spell them."""
    text = re.sub(r"^(`{3,}).*?^\1`*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in HEADING.findall(text)}


def broken(path, files=None):
    """The links of a page that lead to no file of the repository, or to no heading of the page that they name."""
    found, files = [], files or FILES
    for link in [*LINK.findall(prose(path)), *FENCED.findall(path.read_text(encoding="utf-8"))]:
        if link.startswith(SCHEMES):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not is_there(target, files) or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


def is_there(target, files):
    """A tracked file, a folder of some, or what the build of the site makes from one."""
    if any(target == file or target in file.parents for file in files):
        return True
    made = MADE.fullmatch(target.relative_to(ROOT).as_posix()) if target.is_relative_to(ROOT) else None
    if made is None:
        return False
    source = (ROOT / "docs" / "_ext" / "figures.py").read_text(encoding="utf-8")
    notebook = ROOT / "colab" / f"{made['notebook']}.ipynb"
    return notebook.exists() if made["notebook"] else f"def {made['figure']}(" in source


def ill_formed(address):
    """What is wrong with an address outside, or nothing."""
    parts = urlsplit(address)
    if parts.scheme != "https":
        return "is not https"
    if parts.hostname not in HOSTS:
        return "is of a host that HOSTS in tests/test_links.py lacks"
    return "" if parts.netloc == parts.hostname else "has a port or a user"


FILES = tracked()
PAGES = [path for path in FILES if path.suffix in (".md", ".ipynb")]
PROGRAMS = ("keras_lowbit", "examples", "studies", "docs")
SOURCES = [path for path in FILES if path.suffix in (".py", ".json") and path.relative_to(ROOT).parts[0] in PROGRAMS]
pytestmark = pytest.mark.skipif(not FILES, reason="not a git checkout: what belongs to the repository is not known")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page):
    assert broken(page) == []


def test_addresses_outside_are_https_of_known_hosts():
    texts = {path: path.read_text(encoding="utf-8") for path in [*PAGES, *SOURCES]}
    addresses = {address.rstrip(".,;:") for text in texts.values() for address in ADDRESS.findall(text)}
    assert {address: ill_formed(address) for address in addresses if ill_formed(address)} == {}
    assert {urlsplit(address).hostname for address in addresses} == HOSTS  # none that no page names any more


def test_the_readme_the_guides_and_the_notebooks_are_among_them():
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert names >= {"README.md", "docs/quick_start.md", "docs/guides/phone.md", "custom_ops/README.md"}
    assert sum(name.startswith("colab/") for name in names) == 6
    assert sum(len(LINK.findall(prose(page))) for page in PAGES) > 100


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](there.md#two-words-here), [b](#own), [c](folder)\n## Own", []),
        ("[a](missing.md)", ["missing.md"]),
        ("[a](there.md#one)", ["there.md#one"]),
        ("[a](#nowhere) `[b](missing.md)`\n```text\n[c](missing.md)\n```", ["#nowhere"]),
        ("![a picture](missing.png)\n```{include} missing.md\n```", ["missing.png", "missing.md"]),
        ("[a [b]](missing.md 'x')", []),  # not a link in this notation
    ],
)
def test_what_leads_nowhere_is_found(text, expected, tmp_path):
    for name, content in {
        "page.md": text,
        "there.md": "# Two words, *here*\n```\n# one\n```\n",
        "folder/x.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert broken(tmp_path / "page.md", sorted(tmp_path.rglob("*.*"))) == expected


@pytest.mark.parametrize(
    ("address", "wrong"),
    [
        ("https://github.com/a/b#c", False),
        ("http://github.com/a", True),
        ("https://gihtub.com/a", True),
        ("https://github.com:80/a", True),
        ("ftp://github.com/a", True),
    ],
)
def test_what_is_ill_formed_is_found(address, wrong):
    assert bool(ill_formed(address)) == wrong


def test_the_anchors_are_those_of_the_site():
    configuration = (ROOT / "docs" / "conf.py").read_text(encoding="utf-8")
    assert "myst_heading_anchors = 3" in configuration
