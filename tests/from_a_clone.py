"""The path of a stranger: clones this repository, installs it as the pages say, and follows the pages in that environment.

    python -m tests.from_a_clone                      # half an hour and more: TensorFlow is installed anew
    python -m tests.from_a_clone --python .venv/bin/python      # in an environment that has it: nothing is installed
    python -m tests.from_a_clone ../README.md guides/phone.md   # some pages, named by their place in docs/

The lines that install (`pip install ...`) are run in the clone, first. Then each page gets a folder: its program runs there,
and each of its commands, as they stand. Programs of examples/ are started in the clone. A table at the end has every line with
its seconds; the exit status is 1 if one failed. tests/test_docs.py holds that every command of the documentation is run here,
or has its reason beside it.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from studies.ten_minutes.run import OWN
from tests.support.pages import FOLLOWED, commands, program
from tests.support.process import ROOT

IN_CLONE = ("pip install ", "python examples/", "make ")  # what begins so is typed in the clone
# What the README's program begins with, and then its commands: a model, pictures and labels of the reader's own.
BEFORE = {"../README.md": "import numpy as np\nimages = np.random.uniform(-1, 1, (32, 96, 96, 3)).astype('float32')\n"
          "labels = np.arange(32) % 10\n"}  # fmt: skip
MATERIAL = {"../README.md": OWN}


class Stranger:
    """Somebody with a clone, an environment and a folder; `rows` has what was typed: page, line, exit status, seconds."""

    def __init__(self, folder, python):
        self.folder, self.clone, self.rows = folder, folder / "keras_lowbit", []
        subprocess.run(["git", "clone", "--quiet", ROOT, self.clone], check=True)
        self.installs = python is None
        if self.installs:
            python = folder / "venv" / "bin" / "python"
            subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
        self.environment = {**variables, "PATH": f"{Path(python).absolute().parent}{os.pathsep}{os.environ['PATH']}"}

    def type(self, page, line, place):
        """Runs one line in a folder, and writes down how it went."""
        begun = time.perf_counter()
        done = subprocess.run(line, shell=True, cwd=place, env=self.environment, check=False)
        self.rows.append((page, line, done.returncode, time.perf_counter() - begun))
        print(f"{page}: {line}: {'ok' if done.returncode == 0 else f'exit status {done.returncode}'}", flush=True)

    def install(self, pages):
        """Each line of these pages that installs, once."""
        lines = {}
        for page in pages:
            lines |= {line: page for line in commands(page) if line.startswith("pip install ") and line not in lines}
        for line, page in lines.items() if self.installs else ():
            self.type(page, line, self.clone)

    def follow(self, page):
        """The program of a page, then its commands; `cd` leads to another folder for those behind it."""
        place = self.folder / page.replace("/", "_").replace(".", "_")
        place.mkdir()
        for name, text in {
            "material.py": MATERIAL.get(page, ""),
            "page.py": BEFORE.get(page, "") + program(page),
        }.items():
            if text.strip():
                (place / name).write_text(text, encoding="utf-8")
                self.type(page, f"python {name}", place)
        for line in commands(page):
            if line.startswith("cd "):
                place = place / shlex.split(line)[1]
            elif not line.startswith("pip install "):
                self.type(page, line, self.clone if line.startswith(IN_CLONE) else place)


def main():
    """Every page; whether a line failed decides the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="of an environment with keras_lowbit; by default one is made from the clone")
    parser.add_argument("pages", nargs="*", default=FOLLOWED, help="such as guides/phone.md; by default all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        stranger = Stranger(Path(made), options.python)
        stranger.install(options.pages)
        for page in options.pages:
            stranger.follow(page)
    print("\nseconds  status  line")
    for page, line, status, seconds in stranger.rows:
        print(f"{seconds:7.0f}  {'ok' if status == 0 else status:>6}  {page}: {line}")
    failed = sum(status != 0 for _, _, status, _ in stranger.rows)
    print(f"{len(stranger.rows)} lines of {len(options.pages)} pages, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
