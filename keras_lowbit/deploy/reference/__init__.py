"""The integer graph in NumPy: the oracle of every other back end."""

from keras_lowbit.deploy.reference.interpreter import run_reference, trace

__all__ = ["run_reference", "trace"]
