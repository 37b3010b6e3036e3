"""LiteRT interpreters: which kernels a model runs on."""

import threading
import warnings
from typing import Any

RESOLVERS = {
    "reference": "BUILTIN_REF",
    "built-in": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "xnnpack": "AUTO",
}
_FILTERS = threading.Lock()  # those of warnings belong to the process: two threads would put back each other's
_LACKS_OPERATION = "Didn't find op for builtin opcode"


def make_interpreter(resolver: str, threads: int = 1, keep_all: bool = False, **source: Any) -> Any:
    """A LiteRT interpreter with its tensors allocated.

    resolver: "xnnpack" (the default delegate), "built-in" (optimized kernels) or "reference".
    keep_all: every tensor stays readable.   source: model_path or model_content.
    Raises ValueError, with LiteRT's reason, if it refuses the file.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    try:
        with _FILTERS, warnings.catch_warnings():
            # It warns of the memory that keeping all tensors takes: asked for here.
            warnings.simplefilter("ignore")
            interpreter = Interpreter(
                **source,
                num_threads=threads,
                experimental_op_resolver_type=getattr(OpResolverType, RESOLVERS[resolver]),
                experimental_preserve_all_tensors=keep_all,
            )
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        where = (
            f"{source['model_path']!r}"
            if "model_path" in source
            else f"a model of {len(source['model_content'])} bytes"
        )
        raise ValueError(f"LiteRT ({resolver} kernels) refuses {where}: {error}") from error
    return interpreter


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
