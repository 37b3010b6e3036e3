"""The examples in docstrings: which public objects there are, and running the example of one."""

import doctest
import importlib
import inspect
import io

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


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
