"""A few damaged files of each kind: none of the five kinds of fault. `python -m tests.fuzz` tries thousands."""

import pytest

from tests.fuzz.run import fuzz


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "files"), [("klb", 150), ("tflite", 40), ("checkpoint", 100), ("keras", 30)])
def test_damaged_files_are_refused_reported_or_the_same(kind, files):
    found = fuzz(kind, files, seed=1)
    assert found["bad"] == []
    assert found["files"] == files
    assert found["counts"].get("refused", 0) > files / 5, "the damage is too slight to show anything"
