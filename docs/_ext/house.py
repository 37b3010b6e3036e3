"""Makes reStructuredText of this library's docstrings, and links of the names in them.

A docstring here is plain text: ``name: text`` at the start of a line, or behind three spaces, is an argument, and its
text goes on in the lines below; `name` is code, or a name of the library; an indented block is code.
"""

import importlib
import inspect
import re
from functools import cache

from sphinx.util.inspect import stringify_signature

MODULES = (
    *("", "layers", "quantizers", "recipes", "callbacks", "schedules", "data"),
    *("distill", "deploy", "tfmot", "ops", "bench", "plot"),
)
NAME = r"[A-Za-z_*][\w.]*(?:=[\w\"']+)?"
NAMES = rf"{NAME}(?:(?:, (?:and )?| and ){NAME})*"
ARGUMENT = re.compile(rf"({NAMES}): (.*)")
# What a line begins with that no longer belongs to the argument above it.
OPENING = re.compile(
    r"(Returns?|Raises?|Yields?|Warns|Gives|Logs|Adds|State|Trained|Gradients?|After|Ours|Others|Differs)\b|.* et al\b"
    r"|(True|False|None)\b"
)


def public_names(module: str) -> list[str]:
    """What a module offers: its `__all__`, or what it defines without an underscore."""
    found = importlib.import_module(module)
    if listed := getattr(found, "__all__", None):
        return list(listed)
    return [
        name for name, value in vars(found).items() if name[0] != "_" and getattr(value, "__module__", "") == module
    ]


@cache
def targets() -> dict[str, str]:
    """Every way to write a public name -> the name that its page has."""
    found: dict[str, str] = {}
    homes: dict[int, str] = {}  # an object of several modules has one page, that of the first
    for part in MODULES:
        module = ".".join(filter(None, ("keras_lowbit", part)))
        for name in public_names(module):
            value = getattr(importlib.import_module(module), name)
            if inspect.ismodule(value):
                continue
            full = f"{module}.{name}"
            home = homes.setdefault(id(value), full)
            true = f"{getattr(value, '__module__', module)}.{getattr(value, '__qualname__', name)}"
            short = ".".join(filter(None, (part, name)))
            for spelling in (full, true, short, f"klb.{short}"):
                found.setdefault(spelling, home)
    return found


def linked(name: str, module: str) -> str:
    """A link where `name` is public, code where it is not."""
    bare = name.removesuffix("()")
    for spelling in (f"{module}.{bare}", bare, f"keras_lowbit.{bare}"):
        if spelling in targets():
            return f":py:obj:`{bare} <{targets()[spelling]}>`"
    return f"``{name}``"


def inline(text: str, module: str) -> str:
    """One line of prose: names become links, what reStructuredText would take for markup is escaped."""
    pieces = re.split(r"(``.+?``|`[^`]+`)", text)
    for place, piece in enumerate(pieces):
        if piece.startswith("``"):
            continue
        if piece.startswith("`") and len(piece) > 1:
            pieces[place] = linked(piece.strip("`"), module)
        else:
            pieces[place] = re.sub(r"([*|\\`]|_(?=\W|$))", r"\\\1", piece)
    return "".join(pieces)


def blocks(lines: list[str]) -> list[list[str]]:
    """Paragraphs: lines between empty ones."""
    found: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [block for block in found if block]


def translated(lines: list[str], module: str) -> list[str]:
    """The whole docstring in reStructuredText."""
    written: list[str] = []
    for block in blocks(lines):
        if block[0].startswith(">>>"):
            written += block
        elif block[0].startswith((" ", "\t")):
            written += [".. code-block:: default", "", *(f"   {line}" for line in block)]
        elif block[0].startswith("* "):
            written += [line[:2] + inline(line[2:], module) for line in block]
        else:
            written += prose(block, module)
        written.append("")
    return written


def prose(block: list[str], module: str) -> list[str]:
    """A paragraph, with its arguments as a list of definitions."""
    written: list[str] = []
    inside = False  # the text of an argument
    for line in block:
        for piece in re.split(rf"(?<=\S) {{3,}}(?={NAMES}:)", line):
            found = ARGUMENT.fullmatch(piece.strip())
            if found and not OPENING.match(piece.strip()):
                names = ", ".join(
                    f"**{name}**".replace("***", "**\\*") for name in re.split(r", (?:and )?| and ", found[1])
                )
                written += ["", names, f"    {inline(found[2], module)}"]
                inside = True
            elif inside and not OPENING.match(piece):
                written.append(f"    {inline(piece.strip(), module)}")
            else:
                written += ([""] if inside or (written and OPENING.match(piece)) else []) + [
                    inline(piece.strip(), module)
                ]
                inside = False
    return written


def process(app, what, name, obj, options, lines) -> None:
    """Hook of autodoc."""
    module = name if what == "module" else name.rsplit(".", 2 if what in ("method", "attribute", "property") else 1)[0]
    lines[:] = translated(lines, module)


def arguments(app, what, name, obj, options, signature, return_annotation):
    """Hook of autodoc: the arguments of a class whose base hides them behind ``*args, **kwargs``, as `Quantizer` does."""
    if what != "class" or not (signature or "").startswith("(*args"):
        return None
    found = inspect.signature(obj)
    return stringify_signature(
        found, show_return_annotation=False, unqualified_typehints=True, short_literals=True
    ), None


def resolve(app, env, node, contnode):
    """A type in a signature is written with the file that defines it: find the page of its public name."""
    target = targets().get(node["reftarget"])
    if target is None or target == node["reftarget"]:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, contnode)


def setup(app) -> dict:
    """Hook of Sphinx."""
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", arguments)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
