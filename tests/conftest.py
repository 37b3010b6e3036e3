"""Settings that every test shares: a seed of its own per test, repeatable hypothesis examples, quiet TensorFlow."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import zlib
from pathlib import Path

import hypothesis
import keras
import numpy as np
import pytest

from studies.common.cifar10 import data_folder

# Derandomized: a failure is the same on every machine. No deadline: the first call of an op is slow.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> int:
    """Seeds Python, NumPy, Keras and the module's RNG from the test's own name: no test depends on which ran before it.

    Printed, so pytest shows it with a failure.
    """
    seed = zlib.crc32(request.node.nodeid.encode())
    print(f"keras.utils.set_random_seed({seed})")
    keras.utils.set_random_seed(seed)
    shared = getattr(request.module, "RNG", None)
    if shared is not None:
        shared.bit_generator.state = np.random.default_rng(seed).bit_generator.state
    return seed


@pytest.fixture(scope="session")
def stored_data() -> Path:
    """The folder of the real data sets and pretrained networks; the test is skipped where there is none."""
    try:
        return data_folder()
    except FileNotFoundError as error:
        pytest.skip(str(error))
