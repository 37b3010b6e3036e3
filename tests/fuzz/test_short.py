"""A few damaged files of each kind: none of the five kinds of fault. `python -m tests.fuzz` tries thousands."""

import pytest

from tests.fuzz.run import fuzz


@pytest.mark.slow(40)
def test_damaged_files_are_refused_reported_or_the_same():
    found = fuzz("every", files=200, seed=1)
    assert found["bad"] == []
    assert found["files"] == 200
    assert found["counts"]["refused"] > 100, "the damage is too slight to show anything"
    assert found["counts"]["equal"] > 10, "no damaged file gets as far as to be used"
