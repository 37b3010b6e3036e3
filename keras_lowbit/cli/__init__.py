"""The command line: `keras-lowbit <command>`."""

from keras_lowbit.cli.app import main

__all__ = ["main"]
