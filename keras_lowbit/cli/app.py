"""Finds the command, reads its flags, runs it.

A command is a module of this package with a docstring (its help), `FLAGS` (an absl `FlagValues` of its own, so
importing a command changes nothing for the process) and `run(flags) -> exit status`. To add one: the module, a line in
`COMMANDS`, a test.
"""

import importlib
import sys
from collections.abc import Sequence

from absl import flags

COMMANDS = {
    "demo": "train, quantize, export and verify a small network on real handwritten digits",
    "doctor": "show whether the compiled ops run here, and why not",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `keras-lowbit`; argv as `sys.argv`, with the program's name first. Returns the exit status.

    0: done; 1: the command ran and found something wrong; 2: the command line or the input is wrong (the reason is on
    standard error).
    """
    arguments = list(sys.argv if argv is None else argv)[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"keras-lowbit: unknown command {name!r}.\n\n{_usage()}", file=sys.stderr)
        return 2
    command = importlib.import_module(f"keras_lowbit.cli.{name}")
    if "-h" in rest or "--help" in rest:
        print(f"{command.__doc__}\nFlags:\n{command.FLAGS.get_help()}")
        return 0
    return _run(name, command, rest)


def _run(name, command, arguments) -> int:
    try:
        left_over = command.FLAGS([f"keras-lowbit {name}", *arguments])[1:]
        if left_over:
            raise flags.Error(f"unexpected {' '.join(left_over)!r}")
        return command.run(command.FLAGS)
    except (flags.Error, OSError, ImportError) as error:
        print(f"keras-lowbit {name}: {error}\nkeras-lowbit {name} --help shows the flags.", file=sys.stderr)
        return 2


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {purpose}" for name, purpose in COMMANDS.items())
    return (
        f"usage: keras-lowbit <command> [flags]\n\ncommands:\n{rows}\n\nkeras-lowbit <command> --help shows its flags."
    )
