"""Docstrings: which public objects there are, what the docstring of one leaves out, and running its example."""

import ast
import doctest
import importlib
import inspect
import io
import re
import textwrap

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# "name: text" of an argument, "name, other: text" of several; "check=False: text" of one value.
_ENTRY = re.compile(r"(\w+(?:=\w+)?(?:(?:,? and |, )\w+)*): ")


def public_objects(*modules):
    """Name -> function or class, of what these modules offer; what several have once."""
    found, seen = {}, set()
    for module in map(importlib.import_module, modules):
        defined = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", [name for name in defined if name[0] != "_"]):
            value = getattr(module, name)
            if (inspect.isclass(value) or inspect.isfunction(value)) and id(value) not in seen:
                seen.add(id(value))
                found[f"{module.__name__}.{name}"] = value
    return found


def run_example(value, names):
    """Runs the examples in the docstring of a function or class, which may use `names` alone; what went wrong, in words.
    AssertionError if there are none."""
    value = inspect.unwrap(value)
    test = doctest.DocTestParser().get_doctest(inspect.cleandoc(value.__doc__), dict(names), value.__name__, None, None)
    assert test.examples, f"{value.__module__}.{value.__name__} has no example (>>>) in its docstring"
    said = io.StringIO()
    doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(test, out=said.write)
    return said.getvalue()


def arguments(value):
    """The names that whoever calls a function, or makes an object of a class, can give; those of Keras' own left out."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    try:
        found = inspect.signature(value).parameters.values()
    except ValueError:  # an exception has no signature
        return []
    return [found.name for found in found if found.kind not in kinds]


def raised(value):
    """Names of the ValueErrors and TypeErrors that a function, or the making of an object, raises itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(value)))).body[0]
    making = ("__init__", "__post_init__", "__new__")
    functions = (
        [tree]
        if isinstance(tree, ast.FunctionDef)
        else [part for part in tree.body if getattr(part, "name", "") in making]
    )
    calls = [node.exc for part in functions for node in ast.walk(part) if isinstance(node, ast.Raise)]
    return {getattr(call.func, "id", "") for call in calls if isinstance(call, ast.Call)} & {"ValueError", "TypeError"}


def gaps(value):
    """What the docstring of a function or class does not say: arguments without ``name: text``, what is returned, what is
    raised."""
    text = inspect.cleandoc(inspect.unwrap(value).__doc__)
    pieces = [piece.strip() for piece in re.split(r"\n|   ", text)]
    lists = [found[1] for found in map(_ENTRY.match, pieces) if found]
    named = {name.split("=")[0] for names in lists for name in re.split(r",? and |, ", names)}
    said = named | set(re.findall(r"`(\w+)`", text))  # or in a sentence
    missing = [f"{name}: is not described" for name in arguments(value) if name not in said]
    result = inspect.signature(value).return_annotation if inspect.isfunction(value) else None
    if result not in (None, "None", inspect.Signature.empty) and not re.search(r"\b(Returns?|Yields)\b", text):
        missing.append("what it returns")
    return missing + [f"when it raises {name}" for name in sorted(raised(value)) if name not in text]
