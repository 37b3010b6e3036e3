"""The steps of the runner on TensorFlow and JAX: the same losses from the same list and the same data."""

import importlib.util
import json

import numpy as np
import pytest

from tests.support.process import JAX, run_python

TEN_STEPS = """
import dataclasses, json, pathlib, sys
import numpy as np
import keras
from studies.runner import batches, networks, training
from studies.runner.runs import DEFAULTS, Run

rng = np.random.default_rng(0)
data = rng.integers(0, 256, (48, 32, 32, 3)).astype(np.uint8), rng.integers(0, 10, 48)
report = {}
for method in sys.argv[1:]:
    what = {} if method == "float" else {"recipe": method}
    settings = DEFAULTS | {"precision": "float32", "batch_size": 4, "learning_rate": 0.01}
    run = Run("tiny", method, 1, 5, what, settings)
    model = networks.build(run, pathlib.Path())
    model.compile(networks.optimizer_of(run, model, 12))
    backend = training.backend()
    steps = backend.Steps(model, networks.loss_of(run), data)
    losses, right = steps.run(batches.draw_epoch(48, 4, 5, 0).first(10))
    logits = backend.predictor(model)(data[0][:4])
    report[method] = {"losses": losses.tolist(), "right": right.tolist(), "logits": logits.tolist()}
print(json.dumps(report))
"""


@pytest.mark.slow(20)
def test_ten_steps_have_the_same_losses_on_tensorflow_and_jax():
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed (pip install keras_lowbit[test])")
    reports = [
        json.loads(run_python(TEN_STEPS, "float", "twn", **environment).splitlines()[-1])
        for environment in (JAX, {"KERAS_BACKEND": "tensorflow"})
    ]
    for method in ("float", "twn"):
        jax, tensorflow = (report[method] for report in reports)
        assert len(jax["losses"]) == 10
        assert np.ptp(jax["losses"]) > 0.1
        # Sums in another order, and ten steps that build on each other.
        np.testing.assert_allclose(jax["losses"], tensorflow["losses"], rtol=1e-5)
        np.testing.assert_array_equal(jax["right"], tensorflow["right"])
        np.testing.assert_allclose(jax["logits"], tensorflow["logits"], atol=1e-3)
