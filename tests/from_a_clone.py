"""The path of a stranger: clones this repository, installs it as the README says, and follows the pages in that environment.

    python -m tests.from_a_clone                      # ten minutes and more: TensorFlow is installed anew
    python -m tests.from_a_clone --python .venv/bin/python      # in an environment that has it

Each page whose program begins from nothing gets a folder: its program runs there, then each of its commands, as they stand.
The exit status is 1 if one fails. The tests run the same programs, and commands of `keras-lowbit`, in their own process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.pages import GUIDES, commands, program
from tests.support.process import ROOT

# Tools of the reader's, and what `clone` has done already.
OTHERS = ("pip ", "adb ", "xxd ", "cd ")


def clone(folder, python):
    """The environment of a fresh clone: its bin folder."""
    checkout = folder / "keras_lowbit"
    subprocess.run(["git", "clone", "--quiet", ROOT, checkout], check=True)
    if python is None:
        python = folder / "venv" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"{checkout}[demo,report]"], check=True)
    return Path(python).absolute().parent


def follow(page, folder, environment):
    """Runs the page; what failed."""
    folder.mkdir(parents=True)
    (folder / "page.py").write_text(program(page), encoding="utf-8")
    lines = [line for line in commands(page) if not line.startswith(OTHERS)]
    failed = []
    for line in ["python page.py", *lines]:
        status = subprocess.run(line, shell=True, cwd=folder, env=environment, check=False).returncode
        print(f"{page}: {line}: {'ok' if status == 0 else f'exit status {status}'}", flush=True)
        failed += [line] if status else []
    return failed


def main():
    """Every page; how many lines failed decides the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--python", help="of an environment with keras_lowbit in it; by default one is made from the clone"
    )
    parser.add_argument("pages", nargs="*", default=GUIDES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        bin_folder = clone(folder, options.python)
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment = {**variables, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
        failed = {page: follow(page, folder / Path(page).stem, environment) for page in options.pages}
    return int(any(failed.values()))


if __name__ == "__main__":
    raise SystemExit(main())
