"""Runs a script in a Python process of its own: another backend, other devices, or nothing but two imports."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# For processes on the JAX backend, where XLA compiles everything: a third less time, the same functions.
JAX = {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_backend_optimization_level=0"}


def run_python(script, *arguments, **environment):
    """Standard output of `script` (source text); fails with its standard error."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-6000:]}"
    return result.stdout
