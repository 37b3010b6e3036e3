"""Imports TFMOT once for these tests, and undoes what its import does to the environment of subprocesses."""

import importlib
import os

# TFMOT's import sets the variable. Every other test may run in this process all the same: nothing in the library reads
# tf.keras, the only thing that changes its meaning (tests/test_structure.py). Python processes that tests start must
# not inherit it.
_before = os.environ.get("TF_USE_LEGACY_KERAS")
importlib.import_module("keras_lowbit.tfmot")
if _before is None:
    os.environ.pop("TF_USE_LEGACY_KERAS", None)
else:
    os.environ["TF_USE_LEGACY_KERAS"] = _before
