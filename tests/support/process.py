"""Runs a script in a Python process of its own: another backend, other devices, or nothing but two imports."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# What Keras and TensorFlow import wherever it is installed: two of six seconds. Other backends of Keras need JAX.
OTHERS_ASIDE = ("matplotlib", "sklearn")
ASIDE = (*OTHERS_ASIDE, "jax")

# For processes on the JAX backend, where XLA compiles everything: a third less time, the same functions. TensorFlow would be
# imported to seed its generator, which nothing there draws from.
JAX = {
    "KERAS_BACKEND": "jax",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "absent": (*OTHERS_ASIDE, "tensorflow"),
}


def without(modules):
    """A line of source text, after which these modules are not installed."""
    return f"import sys; sys.modules.update(dict.fromkeys({modules}))\n"


def run_python(script, *arguments, absent=None, **environment):
    """Standard output of `script` (source text), with the modules `absent` not installed; fails with its standard error."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    if absent is None:
        absent = OTHERS_ASIDE if "KERAS_BACKEND" in environment else ASIDE
    command = [sys.executable, "-c", without(absent) + script, *map(str, arguments)]
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-6000:]}"
    return result.stdout
