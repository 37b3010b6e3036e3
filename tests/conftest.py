"""Settings that every test shares: a seed of its own per test, repeatable hypothesis examples, quiet TensorFlow.

Keras is imported by the fixtures alone: pytest's own process, which runs no test of `make test`, need not wait for it.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# TensorFlow uses oneDNN by itself on some processors alone; of its kernels only oneDNN's run channels-first convolutions and
# dilated transposed ones on a CPU.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# No test compiles the op library by surprise, or writes into its user's cache.
os.environ.setdefault("KERAS_LOWBIT_BUILD", "0")

import collections
import gc
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

# Derandomized: a failure is the same on every machine. No deadline: the first call of an op is slow.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> int:
    """Seeds Python, NumPy, Keras and the module's RNG from the test's own name: no test depends on which ran before it.

    Printed, so pytest shows it with a failure.
    """
    import keras

    seed = zlib.crc32(request.node.nodeid.encode())
    print(f"keras.utils.set_random_seed({seed})")
    keras.utils.set_random_seed(seed)
    shared = getattr(request.module, "RNG", None)
    if shared is not None:
        shared.bit_generator.state = np.random.default_rng(seed).bit_generator.state
    return seed


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose `slow` tests take longest begin: whole files go to a process of `make test`, and the last should be short."""
    seconds: collections.Counter = collections.Counter()
    for item in items:
        if marker := item.get_closest_marker("slow"):
            seconds[item.path] += marker.args[0] if marker.args else 5
    items.sort(key=lambda item: -seconds[item.path])


def pytest_collection_finish() -> None:
    """What the imports left stays: the garbage collector need not look through TensorFlow again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _free() -> Iterator[None]:
    """Graphs and models of a file, and the names they took, are gone before the next file begins.

    What TensorFlow keeps of them stays for good: the garbage collector need not look through it again after every file.
    """
    import keras

    yield
    if "tf_keras" in sys.modules:
        sys.modules["tf_keras"].backend.clear_session()
    keras.utils.clear_session(free_memory=True)  # collects
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _optimizers_built_before_the_first_step() -> Iterator[None]:
    """Keras makes an optimizer's variables in the first step, and TensorFlow traces twice a function that makes variables."""
    import keras

    make = keras.Model.make_train_function

    def make_once(model, force=False):
        if model.built and getattr(model, "optimizer", None) is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        return make(model, force)

    keras.Model.make_train_function = make_once
    yield
    keras.Model.make_train_function = make


@pytest.fixture(scope="session")
def stored_data() -> Path:
    """The folder of the real data sets and pretrained networks; the test is skipped where there is none."""
    from studies.common.cifar10 import data_folder

    try:
        return data_folder()
    except FileNotFoundError as error:
        pytest.skip(str(error))
