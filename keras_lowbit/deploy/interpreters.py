"""LiteRT interpreters: which version is installed, and which kernels a model runs on."""

import functools
import importlib.util
import re
import threading
import warnings
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from keras_lowbit.files import name_of, read_whole

_DISTRIBUTIONS = ("ai-edge-litert", "ai-edge-litert-nightly")

RESOLVERS = {
    "reference": "BUILTIN_REF",
    "built-in": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "xnnpack": "AUTO",
}
_FILTERS = threading.Lock()  # those of warnings belong to the process: two threads would put back each other's
_LACKS_OPERATION = "Didn't find op for builtin opcode"


@functools.cache
def litert_version() -> str | None:
    """The version of the LiteRT that `import ai_edge_litert` finds, such as "2.3.0"; None where none is installed."""
    spec = importlib.util.find_spec("ai_edge_litert")
    if spec is None or spec.origin is None:
        return None
    beside = distributions(path=[str(Path(spec.origin).parents[1])])  # of several on the path, the one that is imported
    found = [each.version for each in beside if each.metadata["Name"].lower().replace("_", "-") in _DISTRIBUTIONS]
    return max(found, key=release_of, default=None)


def release_of(version: str) -> tuple[int, int]:
    """(2, 4) of "2.4.0.dev20261026". ValueError for what does not start like a version."""
    match = re.match(r"(\d+)\.(\d+)", version) if isinstance(version, str) else None
    if match is None:
        raise ValueError(f"litert={version!r}: expected the version of a LiteRT release, such as '2.3' or '2.4.0'")
    return int(match[1]), int(match[2])


def make_interpreter(resolver: str, threads: int = 1, keep_all: bool = False, **source: Any) -> Any:
    """A LiteRT interpreter with its tensors allocated.

    resolver: "xnnpack" (the default delegate), "built-in" (optimized kernels) or "reference".
    keep_all: every tensor stays readable.   source: model_path, or model_content, or both for the content of a file.
    Raises ValueError, with LiteRT's reason, if it refuses the file; OSError if there is none.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    where, content = _model(**source)
    try:
        with _FILTERS, warnings.catch_warnings():
            # It warns of the memory that keeping all tensors takes: asked for here.
            warnings.simplefilter("ignore")
            interpreter = Interpreter(
                model_content=content,
                num_threads=threads,
                experimental_op_resolver_type=getattr(OpResolverType, RESOLVERS[resolver]),
                experimental_preserve_all_tensors=keep_all,
            )
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"LiteRT ({resolver} kernels) refuses {where}: {error}") from error
    return interpreter


def _model(model_path: Any = None, model_content: bytes = b"") -> tuple[str, bytes]:
    """What the model is called in messages, and its bytes: LiteRT itself opens only names that are UTF-8."""
    if model_path is None:
        return f"a model of {len(model_content)} bytes", model_content
    return repr(name_of(model_path)), model_content or read_whole(model_path)


def open_interpreter(reference: bool, threads: int = 1, keep_all: bool = False, **source: Any) -> tuple[Any, str]:
    """An interpreter on the reference kernels or the XNNPACK delegate, and the name of what it runs on.

    The reference kernels lack a few float operations (ELU); a file with one of them runs on the built-in kernels.
    """
    resolver = "reference" if reference else "xnnpack"
    try:
        return make_interpreter(resolver, threads, keep_all, **source), resolver
    except ValueError as error:
        if not reference or _LACKS_OPERATION not in str(error):
            raise
        return make_interpreter("built-in", threads, keep_all, **source), "built-in"
