"""Commands of `keras-lowbit`: within this process, which has imported TensorFlow already, or as a shell runs them."""

import json
import subprocess
import sys
from typing import NamedTuple

from keras_lowbit.cli import main
from tests.support.process import ASIDE, ROOT, without


class Result(NamedTuple):
    """Exit status, standard output and standard error of a command."""

    status: int
    out: str
    err: str

    @property
    def fields(self):
        """The output as strict JSON: nothing stands beside it."""

        def refuse(word):
            raise ValueError(f"{word} is no JSON")

        return json.loads(self.out, parse_constant=refuse)

    @property
    def sentences(self):
        """What it says against its input, without warnings and the reference to the help."""
        lines = [line for line in self.err.splitlines() if line.startswith("keras-lowbit ")]
        return [line for line in lines if ": warning: " not in line and not line.endswith("--help shows the flags.")]

    def refused(self, *words):
        """Whether it says one sentence, with these words, and has status 2 and no result."""
        assert (self.status, self.out) == (2, ""), self
        assert "Traceback" not in self.err
        assert len(self.sentences) == 1, self.err
        assert all(word in self.sentences[0] for word in words), self.err
        return True


def caller(capsys):
    """A function that runs a command in this process."""

    def call(*arguments):
        capsys.readouterr()
        status = main(["keras-lowbit", *map(str, arguments)])
        return Result(status, *capsys.readouterr())

    return call


def program(*arguments):
    """`keras-lowbit` as the shell runs it where `ASIDE` is not installed: a process of its own, standard error filtered."""
    script = without(ASIDE) + "import keras_lowbit_command; sys.exit(keras_lowbit_command.main())"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    return Result(found.returncode, found.stdout, found.stderr)
