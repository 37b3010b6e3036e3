"""Imports TFMOT once for these tests, and undoes what its import does to the environment of subprocesses."""

import os

_before = os.environ.get("TF_USE_LEGACY_KERAS")

import keras_lowbit.tfmot  # noqa: F401  (its import sets the variable)

# Every other test may run in this process: nothing in the library reads tf.keras, the only thing that changes its
# meaning (tests/test_structure.py). Python processes that tests start must not inherit the variable.
if _before is None:
    os.environ.pop("TF_USE_LEGACY_KERAS", None)
else:
    os.environ["TF_USE_LEGACY_KERAS"] = _before
