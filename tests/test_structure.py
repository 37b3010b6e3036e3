"""The order of architecture, and the other rules that a reader of the sources relies on."""

from pathlib import Path

import pytest

from tests import structure

PACKAGE = Path(__file__).resolve().parent.parent / "keras_lowbit"

# Private parts of Keras or TensorFlow that are in use, "file name". This list must not grow: what is private may change
# in any release. Shorten it whenever a public way appears.
KNOWN_PRIVATE: set[str] = set()


def test_imports_follow_the_order():
    assert structure.order_violations(PACKAGE) == []


def test_rooms_follow_their_order():
    assert structure.room_violations(PACKAGE) == []


def test_no_files_import_one_another_in_a_circle():
    assert structure.circles(PACKAGE) == []


def test_only_these_reach_the_compiled_ops():
    """CI runs the tests of these, `make pytest-ops`, a second time without a compiler."""
    users = {where.split(":")[0] for _, where, name in structure._all_imports(PACKAGE) if _is_ops(name)}
    files = {"__init__.py", "bench/kernels.py", "bench/runtime.py", "cli/doctor.py", "deploy/pack.py"}
    rooms = {*files, "ops", "deploy/packed", "deploy/runtime"}
    assert [user for user in sorted(users) if not any(user == r or user.startswith(f"{r}/") for r in rooms)] == []


def _is_ops(name):
    return name == "keras_lowbit.ops" or name.startswith("keras_lowbit.ops.")


def test_no_tensorflow_where_every_backend_must_train_and_no_test_framework_anywhere():
    assert structure.framework_violations(PACKAGE) == []


def test_nothing_uses_tf_keras():
    assert structure.tf_keras_violations(PACKAGE) == []


def test_no_broken_function_of_keras_is_called():
    assert structure.broken_op_violations(PACKAGE) == []


def test_keras_builds_and_reads_models_in_one_place():
    assert structure.deep_model_violations(PACKAGE) == []


def test_private_framework_parts_do_not_spread():
    assert structure.private_imports(PACKAGE) - KNOWN_PRIVATE == set()


def test_list_of_private_parts_is_no_longer_than_needed():
    assert KNOWN_PRIVATE - structure.private_imports(PACKAGE) == set()


def test_public_things_have_docstrings():
    assert structure.docstring_violations(PACKAGE) == []


def test_functions_and_files_stay_readable():
    assert structure.size_violations(PACKAGE) == []


def test_there_are_sources_to_check():
    assert len(list(structure.sources(PACKAGE))) > 10


# ---------------------------------------------------------------- the checks themselves, on a package that breaks them


@pytest.fixture
def toy(tmp_path):
    """Returns a function that writes files of a package `toy`, path -> source, and gives its folder."""

    def write(files):
        package = tmp_path / "toy"
        for name, source in files.items():
            path = package / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return package

    return write


@pytest.mark.parametrize(
    "source",
    [
        "import toy.deploy",
        "import toy.deploy.graph as g",
        "from toy import deploy",
        "from toy.deploy.graph import Node",
        "from .. import deploy",
        "from ..deploy import graph",
        "def late():\n    from toy.deploy import graph",
        "if TYPE_CHECKING:\n    from toy.deploy import graph",
        "import importlib\nimportlib.import_module('toy.deploy')",
    ],
)
def test_import_from_the_right_is_found(toy, source):
    found = structure.order_violations(toy({"layers/conv": source}))
    assert len(found) == 1
    assert found[0].startswith("layers/conv.py:")
    assert "later in the order" in found[0]


def test_import_from_the_left_and_from_the_same_section_is_fine(toy):
    package = toy(
        {
            "__init__": "",
            "deploy/lower": "import toy.layers\nfrom . import graph\nfrom .graph import Node",
            "deploy/__init__": "from .lower import lower\nfrom ..layers import conv",
            "schedules": "from toy.numerics import grids",
        }
    )
    assert structure.order_violations(package) == []


def test_relative_import_in_a_package_init_is_resolved_against_that_package(toy):
    found = structure.order_violations(toy({"layers/__init__": "from ..deploy import graph"}))
    assert len(found) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import toy.deploy.litert",
        "from toy.deploy.litert import write",
        "from ..litert import write",
        "def f():\n    from toy.deploy import litert",
    ],
)
def test_arrow_back_up_between_rooms_is_found(toy, source):
    rooms = {"deploy": ("graph", "litert")}
    package = toy({"deploy/graph/a": source, "deploy/litert/b": "from toy.deploy.graph import a"})
    found = structure.room_violations(package, rooms)
    assert len(found) == 1
    assert found[0].startswith("deploy/graph/a.py:")


def test_room_that_the_order_does_not_know_is_found(toy):
    package = toy({"deploy/other/a": "import toy.deploy.graph", "deploy/graph/a": ""})
    assert len(structure.room_violations(package, {"deploy": ("graph",)})) == 1


@pytest.mark.parametrize(
    "back",
    [
        "import toy.a",
        "from toy import a",
        "from toy.a import x",
        "from . import a",
        "def late():\n    from toy.a import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy.a import x",
    ],
)
def test_circle_is_found_however_it_is_hidden(toy, back):
    assert structure.circles(toy({"a": "from toy.b import y", "b": "import toy.c", "c": back})) == [
        "toy.a -> toy.b -> toy.c -> toy.a"
    ]


def test_circle_through_a_package_init_is_found(toy):
    package = toy({"room/__init__": "from toy.room.a import x", "room/a": "from toy.room import b", "room/b": ""})
    assert structure.circles(package) == []
    package = toy({"room/__init__": "from toy.room.a import x", "room/a": "from toy.room import helper"})
    assert structure.circles(package) == ["toy.room -> toy.room.a -> toy.room"]


def test_root_is_for_the_last_section_only(toy):
    assert structure.order_violations(toy({"cli/demo": "import toy as t"})) == []
    assert len(structure.order_violations(toy({"deploy/lower": "def f():\n    import toy"}))) == 1


def test_section_that_the_order_does_not_know_is_found(toy):
    assert structure.order_violations(toy({"helpers": ""})) == [
        "helpers: is no section of " + " < ".join(structure.ORDER),
    ]
    assert len(structure.order_violations(toy({"helpers": "", "layers/conv": "from toy.helpers import x"}))) == 2


@pytest.mark.parametrize("section", structure.KERAS_ONLY)
@pytest.mark.parametrize(
    "source", ["import tensorflow as tf", "def f():\n    from tensorflow import math", "import tf_keras"]
)
def test_tensorflow_in_a_backend_neutral_section_is_found(toy, section, source):
    assert len(structure.framework_violations(toy({section: source}))) == 1


def test_tensorflow_elsewhere_is_fine(toy):
    assert structure.framework_violations(toy({"deploy/files": "import tensorflow as tf\nimport ai_edge_litert"})) == []


@pytest.mark.parametrize("source", ["import pytest", "import unittest.mock", "from hypothesis import given"])
def test_test_framework_in_the_package_is_found(toy, source):
    assert len(structure.framework_violations(toy({"deploy": source}))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import tensorflow as tf\ntf.keras.layers.Dense(1)",
        "import tensorflow as flow\nflow.keras",
        "import tensorflow\ntensorflow.keras.Model",
        "from tensorflow import keras",
        "from tensorflow.keras import layers",
        "import tensorflow.keras",
    ],
)
def test_tf_keras_is_found_in_every_spelling(toy, source):
    assert structure.tf_keras_violations(toy({"deploy": source}))


def test_a_broken_function_is_found(toy):
    files = {"layers": "from keras import ops\nops.exp2(x)", "numerics": "keras.ops.exp2\nnumpy.exp2"}
    assert len(structure.broken_op_violations(toy(files))) == 2


def test_a_model_that_keras_builds_or_reads_is_found(toy):
    files = {"layers": "keras.Model(a, b)\nclass A(keras.Model): pass", "data": "keras.saving.load_model(path)"}
    assert len(structure.deep_model_violations(toy(files))) == 2
    assert structure.deep_model_violations(toy({"data": "", "layers": "keras.Model(a, b)"}), "layers.py") == []


def test_plain_keras_is_fine(toy):
    assert structure.tf_keras_violations(toy({"deploy": "import keras\nkeras.layers.Dense(1)\nself.keras"})) == []


def test_private_keras_is_found(toy):
    package = toy({"layers/a": "from keras.src.layers import Dense", "layers/b": "import keras\nkeras.src.backend.x"})
    found = {"layers/a.py keras.src.layers.Dense", "layers/b.py keras.src"}
    assert structure.private_imports(package) == found


@pytest.mark.parametrize(
    "source",
    [
        "x = 1",
        '"""Doc."""\ndef f(): pass',
        '"""Doc."""\nclass A: pass',
        '"""Doc."""\nclass A:\n  "Doc."\n  def f(self): pass',
    ],
)
def test_missing_docstring_is_found(toy, source):
    assert len(structure.docstring_violations(toy({"data": source}))) == 1


def test_private_things_need_no_docstring(toy):
    source = '"""Doc."""\ndef _f(): pass\nclass _A:\n  def f(self): pass\nclass B:\n  "Doc."\n  def __len__(self): pass'
    assert structure.docstring_violations(toy({"data": source})) == []


def test_long_functions_and_files_are_found(toy):
    body = "    x = 1\n"
    assert len(structure.size_violations(toy({"data": "def f():\n" + body * 60}))) == 1
    assert structure.size_violations(toy({"data": "def f():\n" + body * 59})) == []
    assert structure.size_violations(toy({"data": 'def f():\n    """\n' + "\n" * 30 + '    """\n' + body * 59})) == []
    assert len(structure.size_violations(toy({"data": "x = 1\n" * 401}))) == 1
