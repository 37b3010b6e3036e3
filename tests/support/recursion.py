"""A low limit of recursion, so that a small network is as deep for Python as a large one is otherwise."""

import contextlib
import sys


@contextlib.contextmanager
def frames_left(frames):
    """Inside, that many calls may still stand inside one another; a tracing of TensorFlow takes about a hundred."""
    before, depth, frame = sys.getrecursionlimit(), 0, sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    sys.setrecursionlimit(depth + frames)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
