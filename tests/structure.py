"""Rules about the sources of a package, checked by reading them: nothing of it is imported.

Each check returns a list of violations, "file:line: what is wrong"; the tests hold that it is empty for keras_lowbit,
and that it is not for toy packages that break the rule.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# Data flows to the right and nothing imports from its right.
ORDER = (
    *(
        "arguments",
        "files",
        "sealed",
        "tables",
        "figures",
        "keras_graph",
        "numerics",
        "quantizers",
        "schedules",
        "data",
        "guard",
        "layers",
        "callbacks",
        "distill",
        "recipes",
    ),
    *("convert", "tfmot", "ops", "deploy", "sensitivity", "bench", "plot", "report", "cli"),
)
# The same inside the packages that have rooms: folders and files directly under them.
ROOMS = {
    "deploy": (
        *("interpreters", "graph", "packed", "lowering", "reference", "litert", "runtime", "verification"),
        *("multiplications", "pack", "export", "storage", "summary"),
    ),
    "deploy/graph": (
        *("tensors", "float_subgraph", "operations", "diagram", "former_files", "serialize", "integer_graph"),
        *("builder_base", "builder"),
    ),
    "convert": (
        *(
            "analysis",
            "unwrap",
            "byte_inputs",
            "channels_last",
            "expansion",
            "reports",
            "separable",
            "choice",
            "nest",
            "layer_factory",
            "range_inserter",
            "rewriter",
        ),
        *("quantize_model", "weights", "post_training"),
    ),
}
KERAS_ONLY = ("numerics", "quantizers", "schedules", "layers")
TENSORFLOW = ("tensorflow", "tf_keras", "tensorflow_model_optimization", "ai_edge_litert")
TEST_FRAMEWORKS = ("pytest", "unittest", "hypothesis", "doctest", "_pytest")
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400
GENERATED = ("metadata_schema_py_generated.py",)  # flatc writes it from the .fbs beside it: nobody reads or edits it


def sources(package: Path) -> Iterator[tuple[Path, ast.Module]]:
    """Every Python file of a package with its syntax tree, in a fixed order."""
    for path in sorted(package.rglob("*.py")):
        yield path, _parsed(path.read_text(encoding="utf-8"), str(path))


@cache
def _parsed(source: str, filename: str) -> ast.Module:
    """The tree that all checks of a file share: they only read it."""
    return ast.parse(source, filename=filename)


def written(package: Path) -> Iterator[tuple[Path, ast.Module]]:
    """The files among the sources that people write."""
    return ((path, tree) for path, tree in sources(package) if path.name not in GENERATED)


def imports(tree: ast.Module, package: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything a file imports, at its top or inside functions.

    `from a import b` gives "a.b", relative imports are resolved against `path` (relative to the package's folder).
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = [package, *path.with_suffix("").parts]
            base = here[: len(here) - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield node.lineno, argument.value


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def _section(path: Path) -> str:
    """The module or package directly under the root that a file belongs to; "" for the root's own __init__."""
    first = path.parts[0]
    return "" if first in ("__init__.py", "__main__.py") else first.removesuffix(".py")


def _all_imports(folder: Path, package: Path | None = None) -> Iterator[tuple[str, str, str]]:
    """(section, "file:line", full name) of every import in a folder, a package by itself unless one is named."""
    package = package or folder
    for path, tree in sources(folder):
        relative = path.relative_to(folder)
        for line, name in imports(tree, package.name, path.relative_to(package)):
            yield _section(relative), f"{relative.as_posix()}:{line}", name


def order_violations(package: Path, order=ORDER) -> list[str]:
    """Imports from the right of `order`, and sections that `order` does not know.

    The root's __init__ may import everything; so importing the root is for the last section only.
    """
    found = []
    for section, where, name in _all_imports(package):
        parts = name.split(".")
        if section == "" or parts[0] != package.name or (len(parts) == 1 and section == order[-1]):
            continue
        if len(parts) < 2 or parts[1] not in order:
            found.append(f"{where}: imports {name}, which is no section of {' < '.join(order)}")
        elif section in order and order.index(parts[1]) > order.index(section):
            found.append(f"{where}: {section} imports {name}, which comes later in the order")
    known = {*order, ""}
    stray = sorted({_section(path.relative_to(package)) for path, _ in sources(package)} - known)
    return found + [f"{name}: is no section of {' < '.join(order)}" for name in stray]


def room_violations(package: Path, rooms=ROOMS) -> list[str]:
    """As `order_violations` for the rooms of each folder in `rooms`; its own __init__ may import all of them."""
    found = []
    for folder, order in rooms.items():
        prefix = f"{package.name}.{folder.replace('/', '.')}."
        for section, where, name in _all_imports(package / folder, package):
            room = name.removeprefix(prefix).split(".")[0]
            if section == "" or not name.startswith(prefix) or room not in order:
                continue
            if section not in order:
                found.append(f"{folder}/{where}: {section} is no room of {' < '.join(order)}")
            elif order.index(room) > order.index(section):
                found.append(f"{folder}/{where}: {section} imports {name}, which comes later in {' < '.join(order)}")
    return found


def circles(package: Path) -> list[str]:
    """Files that import one another in a circle, "a -> b -> a"; imports inside functions and for types count too.

    A circle means that none of its files can be read, tested or moved without the others. An import inside a function
    only hides it.
    """
    files = {_module(path, package): (path, tree) for path, tree in sources(package)}
    arrows = {
        module: {
            target
            for _, name in imports(tree, package.name, path.relative_to(package))
            if (target := _file_of(name, files)) is not None and target != module
        }
        for module, (path, tree) in files.items()
    }
    return [" -> ".join([*circle, circle[0]]) for circle in _strongly_connected(arrows) if len(circle) > 1]


def _module(path: Path, package: Path) -> str:
    parts = [package.name, *path.relative_to(package).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _file_of(name: str, files) -> str | None:
    """The file that an imported name is in: "a.b.thing" is in a/b/thing.py, else in a/b.py or a/b/__init__.py."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name or None


def _strongly_connected(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Tarjan's components of a graph, each in an order along its arrows as far as there is one."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(arrows[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            place = stack.index(node)
            found.append(stack[place:])
            del stack[place:]

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return found


def framework_violations(package: Path, sections=KERAS_ONLY) -> list[str]:
    """TensorFlow imports in the sections that must train on every Keras backend, and test frameworks anywhere."""
    found = []
    for section, where, name in _all_imports(package):
        root = name.split(".")[0]
        if root in TENSORFLOW and section in sections:
            found.append(f"{where}: {section} imports {name}; use keras.ops and keras.random")
        if root in TEST_FRAMEWORKS:
            found.append(f"{where}: imports the test framework {name}")
    return found


def tf_keras_violations(package: Path) -> list[str]:
    """`tf.keras` in any spelling: importing TFMOT changes what it means for the whole process."""
    found = [
        f"{where}: imports {name}"
        for _, where, name in _all_imports(package)
        if name.startswith(("tensorflow.keras", "tensorflow.python.keras"))
    ]
    for path, tree in sources(package):
        names = {"tf", "tensorflow"}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.asname for alias in node.names if alias.name == "tensorflow" and alias.asname}
            if isinstance(node, ast.Attribute) and node.attr == "keras" and getattr(node.value, "id", "") in names:
                found.append(f"{path.relative_to(package).as_posix()}:{node.lineno}: uses tf.keras; use keras")
    return found


# Functions of keras.ops that fail in some release or on some backend -> what to call in their place.
BROKEN_OPS = {"exp2": "ops.power(2.0, x)"}


def broken_op_violations(package: Path) -> list[str]:
    """Functions of `keras.ops` that not every supported Keras has in working order."""
    return [
        f"{path.relative_to(package).as_posix()}:{node.lineno}: calls ops.{node.attr}; use {BROKEN_OPS[node.attr]}"
        for path, tree in sources(package)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in BROKEN_OPS and ast.unparse(node.value).endswith("ops")
    ]


def deep_model_violations(package: Path, place: str = "keras_graph/depth.py") -> list[str]:
    """Models that Keras builds or reads elsewhere than in the one file that gives it the frames for deep ones."""
    names = ("keras.Model", "keras.saving.load_model", "keras.models.load_model", "keras.models.clone_model")
    return [
        f"{path.relative_to(package).as_posix()}:{node.lineno}: calls {ast.unparse(node.func)}; {place} does it for deep ones"
        for path, tree in sources(package)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names and path != package / place
    ]


def private_imports(package: Path) -> set[str]:
    """ "file name" of every import and use of the private parts of Keras and TensorFlow."""
    found = {
        f"{where.rpartition(':')[0]} {name}"
        for _, where, name in _all_imports(package)
        if name.startswith(("keras.src", "tensorflow.python"))
    }
    for path, tree in sources(package):
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                name = f"{getattr(node.value, 'id', '')}.{node.attr}"
                if name in ("keras.src", "tf.python"):
                    found.add(f"{path.relative_to(package).as_posix()} {name}")
    return found


def docstring_violations(package: Path) -> list[str]:
    """Files, public classes, public functions and public methods without a docstring."""
    found = []
    for path, tree in written(package):
        relative = path.relative_to(package).as_posix()
        if tree.body and ast.get_docstring(tree) is None:
            found.append(f"{relative}:1: no docstring")
        for name, node in _public(tree, ""):
            if ast.get_docstring(node) is None:
                found.append(f"{relative}:{node.lineno}: {name} has no docstring")
    return found


def _public(node, prefix) -> Iterator[tuple[str, ast.AST]]:
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and child.name[0] != "_":
            if not _is_overload(child):
                yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from _public(child, f"{prefix}{child.name}.")


def _is_overload(node) -> bool:
    names = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
    return bool(names & {"overload", "setter"})


def size_violations(package: Path, function_lines=MAX_FUNCTION_LINES, file_lines=MAX_FILE_LINES) -> list[str]:
    """Functions and files that are too long; a docstring does not count as length of its function."""
    found = []
    for path, tree in written(package):
        relative = path.relative_to(package).as_posix()
        total = len(path.read_text(encoding="utf-8").splitlines())
        if total > file_lines:
            found.append(f"{relative}: {total} lines, at most {file_lines}")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1 - _docstring_lines(node)
                if length > function_lines:
                    found.append(f"{relative}:{node.lineno}: {node.name} has {length} lines, at most {function_lines}")
    return found


def _docstring_lines(node) -> int:
    if ast.get_docstring(node) is None:
        return 0
    first = node.body[0]
    return first.end_lineno - first.lineno + 1
