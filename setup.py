"""The build's one addition to setup.cfg: C++ sources in the package, and the compiled ops where that can be.

A wheel carries custom_ops, so that `python -m keras_lowbit.ops.build` works wherever it is installed. If the environment
that builds it has a C++ compiler and TensorFlow, it also carries the library (and is then a wheel for one platform);
otherwise the build succeeds without it.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def _builder():
    """keras_lowbit/ops/build.py on its own: the package cannot be imported before it is installed."""
    spec = importlib.util.spec_from_file_location("_keras_lowbit_build", ROOT / "keras_lowbit" / "ops" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithOps(build_py):
    """Copies custom_ops into the package and compiles the library, if possible; an editable install uses the checkout."""

    def run(self):
        """As the base class, then the two additions."""
        super().run()
        if self.editable_mode:
            return
        package, builder = Path(self.build_lib) / "keras_lowbit", _builder()

        def not_shipped(_folder, names):
            return [name for name in names if builder.NOT_SHIPPED.search(name)]

        shutil.copytree(ROOT / "custom_ops", package / "custom_ops", ignore=not_shipped, dirs_exist_ok=True)
        try:
            builder.build(package / "ops" / "native")
        except builder.BuildError as error:
            print(f"op library not built, the ops run in plain TensorFlow: {error}", file=sys.stderr)


class OpsDistribution(Distribution):
    """A wheel for one platform where the library can be built, for any otherwise."""

    def has_ext_modules(self):
        """Whether there will be compiled code."""
        return _builder().can_build()


setup(cmdclass={"build_py": BuildWithOps}, distclass=OpsDistribution)
