"""The notebooks of colab/: every cell runs, in a process and a folder of its own, and every file they write verifies."""

import json

import pytest

from tests.support.process import ROOT, run_python

NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))

CELLS = """
import json, os, sys
import matplotlib
matplotlib.use("Agg")
notebook, folder = sys.argv[1:]
os.chdir(folder)
names = {"__name__": "__main__"}
with open(notebook, encoding="utf-8") as file:
    cells = json.load(file)["cells"]
for cell in cells:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
print("RESULTS", json.dumps(names["results"]))
"""


def test_there_are_some():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_kept(path):
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)


@pytest.mark.slow(60)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_and_every_file_is_the_model(path, tmp_path):
    printed = run_python(CELLS, path, tmp_path, absent=())
    results = json.loads(printed.rsplit("RESULTS", 1)[1])
    assert results
    assert {name for name, (_, _, verified) in results.items() if not verified} == set()
    assert {name for name, (accuracy, _, _) in results.items() if accuracy < 0.9} == set()
    assert {file.stem for file in tmp_path.glob("*.tflite")} == set(results)
