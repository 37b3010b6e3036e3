"""The file that a benchmark writes, looked at before it measures."""

import argparse

from keras_lowbit.files import check_writable


def output_file(path: str) -> str:
    """argparse's type of a file to write: the path, or an error of the command line where it cannot be written."""
    try:
        check_writable(path)
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path
