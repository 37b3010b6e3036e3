"""The C++ program of the guide to phones says what the Python program says.

Needs a compiler, and LiteRT's repository (the folder with litert/c) where LITERT_HEADERS says: no package brings its headers.
"""

import os
import shutil
import subprocess
from pathlib import Path

import ai_edge_litert
import pytest

from tests.support.pages import DOCS, run_page

LIBRARY = Path(ai_edge_litert.__file__).parent


@pytest.fixture
def headers(tmp_path):
    """Folders for -I: LiteRT's, and one of ours with the file that its build would make, of a build with nothing disabled."""
    given = os.environ.get("LITERT_HEADERS")
    if not given or shutil.which("c++") is None:
        pytest.skip("LITERT_HEADERS names no checkout of LiteRT, or there is no C++ compiler")
    made = tmp_path / "made" / "litert" / "build_common" / "build_config.h"
    made.parent.mkdir(parents=True)
    made.touch()
    return [f"-I{given}", f"-I{tmp_path / 'made'}"]


@pytest.mark.slow
def test_the_program_gives_the_label_and_the_score_of_the_interpreter(headers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run_page("guides/phone.md")
    linking = [f"-L{LIBRARY}", "-lLiteRt", f"-Wl,-rpath,{LIBRARY}", "-o", "classify"]
    subprocess.run(["c++", "-std=c++17", *headers, DOCS / "guides" / "classify.cc", *linking], check=True)
    Path("pixels.bin").write_bytes(found["pixels"][:1].tobytes())
    done = subprocess.run(["./classify", "classifier.tflite", "pixels.bin"], capture_output=True, text=True, check=True)
    scores = found["interpreter"].get_tensor(found["scores"]["index"])[0]
    assert done.stdout.splitlines()[-1] == f"{found['names'][scores.argmax()]}: {scores.max():.3f}"
