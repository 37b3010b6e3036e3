"""What tests of a few steps share."""

import functools

import keras
import pytest


@pytest.fixture
def step_by_step(monkeypatch):
    """Models run without graphs, whose tracing takes longer than a few steps do."""
    monkeypatch.setattr(keras.Model, "compile", functools.partialmethod(keras.Model.compile, run_eagerly=True))
