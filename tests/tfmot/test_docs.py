"""The page of the documentation about tf_keras and TFMOT, whose import changes what `tf.keras` means: so it stands here."""

import pytest

from tests.support.pages import run_page


@pytest.mark.slow
def test_the_guide_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page("guides/tfmot.md")
