"""The documentation: the reference has every public name, and the programs in the pages run. Sphinx is not needed here;
`make docs` builds the pages."""

import ast
import os
import re
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit.cli import main
from tests import from_a_clone
from tests.support.pages import (
    DOCS,
    FOLLOWED,
    GUIDES,
    PUBLIC,
    commands,
    hidden,
    left_out,
    own_commands,
    program,
    run_page,
)
from tests.support.process import ROOT

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


# These begin with a trained network and data of the reader's.
PIECES = [
    *(
        f"methods/{name}.md"
        for name in ("sq", "clustered", "fat", "corrections", "learned_steps", "reconstruction", "trained_ternary")
    ),
    *("index.md", "troubleshooting.md", "guides/reports.md"),
]
ELSEWHERE = ["guides/tfmot.md", "methods/inq.md"]  # tests/tfmot/test_docs.py, tests/recipes/test_inq.py


def test_every_page_with_a_program_is_run():
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if "_build" not in page.parts}
    assert {page for page in pages if program(page).strip()} == {*GUIDES, *PIECES, *ELSEWHERE}


def pages():
    """Every page of the repository, by its place in docs/."""
    places = ("*.md", "docs/**/*.md", "colab/*.md", "custom_ops/*.md", "examples/*.md", "studies/*/*.md")
    found = [os.path.relpath(path, DOCS) for place in places for path in ROOT.glob(place)]
    return sorted({page for page in found if not page.startswith("_build")})


def test_every_command_is_run_from_a_fresh_clone_or_has_its_reason():
    found = pages()
    assert {page for page in found if commands(page)} == {page for page in FOLLOWED if commands(page)}
    assert {page: hidden(page) for page in found if hidden(page)} == {}
    reasons = [reason for page in found for reason in left_out(page).values()]
    assert min(map(len, reasons)) > 10
    assert sum(len(commands(page)) for page in found) > 20


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES)
def test_a_guide_runs_as_it_stands(page, tmp_path, monkeypatch):
    """Its program, then what it tells the reader to type."""
    monkeypatch.chdir(tmp_path)
    run_page(page)
    assert [words for words in own_commands(page) if main(words) != 0] == []


@pytest.fixture(scope="module")
def network():
    """A small network and images that it knows something about."""
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).normal(size=(96, 8, 8, 3)).astype("float32")
    labels = (images.mean((1, 2, 3)) > 0).astype("int32")
    layers = keras.layers
    inputs = features = keras.Input((8, 8, 3), name="image")
    features = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(features)
    features = layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.5)(features))
    features = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(features)
    features = layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.5)(features))
    features = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 1)(features))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax", name="digit")(features))
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(images, labels, epochs=10, verbose=0)
    return model, images, labels


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(did not help|no epoch was better):UserWarning")  # the data are drawn
@pytest.mark.filterwarnings(
    "ignore:Even though the `tf.config:UserWarning"
)  # eager: tracing takes longer than the steps
@pytest.mark.parametrize("page", PIECES)
def test_the_programs_of_a_page_run(page, network, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    model, images, labels = network
    tf.config.run_functions_eagerly(True)
    request.addfinalizer(lambda: tf.config.run_functions_eagerly(False))
    names = run_page(page, keras=keras, np=np, klb=klb, model=model, images=images, labels=labels)
    for file in tmp_path.glob("*.tflite"):
        parity = klb.verify(names["quantized"], file, images[:4])
        assert parity.max_layer_steps <= 1, parity


def test_the_page_on_the_command_line_has_every_command():
    page = (DOCS / "command_line.md").read_text(encoding="utf-8")
    tree = ast.parse((ROOT / "keras_lowbit" / "cli" / "app.py").read_text(encoding="utf-8"))
    tables = {getattr(node.target, "id", ""): node.value for node in tree.body if isinstance(node, ast.AnnAssign)}
    commands = [ast.literal_eval(key) for key in tables["COMMANDS"].keys]
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) == sorted(commands)


class Written:
    """Stands in for the programs that a stranger starts: says which, and succeeds but for what contains `fails`."""

    def __init__(self, fails):
        self.fails, self.lines = fails, []

    def __call__(self, line, cwd=None, **options):
        self.lines.append((line, cwd))
        return subprocess.CompletedProcess(line, int(self.fails in str(line)))


@pytest.mark.parametrize("fails", ["doctor", "nothing at all"])
def test_a_stranger_types_every_line_in_its_place(fails, tmp_path, monkeypatch, capsys):
    typed = Written(fails)
    monkeypatch.setattr(subprocess, "run", typed)
    monkeypatch.setattr("sys.argv", ["from_a_clone", "quick_start.md", "command_line.md"])
    assert from_a_clone.main() == int(fails == "doctor")
    lines = [(line.split("#")[0].strip(), Path(place).name) for line, place in typed.lines if isinstance(line, str)]
    installs = [('pip install ".[demo]"', "keras_lowbit"), ('pip install ".[demo,report]"', "keras_lowbit")]
    assert lines[:3] == [*installs, ("python page.py", "quick_start_md")]
    places = dict(lines)
    assert places["keras-lowbit doctor"] == "quick_start_md"
    assert places["keras-lowbit demo"] == "command_line_md"
    assert places["keras-lowbit compare m.keras m.tflite --data photos/"] == "demo_output"
    assert ("1 failed" if fails == "doctor" else "0 failed") in capsys.readouterr().out
