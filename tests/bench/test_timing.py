"""What all measurements share."""

import os
import threading

import pytest

from keras_lowbit.bench.timing import on_cores


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system keeps no thread on a core")
def test_what_is_compared_stands_on_the_same_cores():
    before, within = os.sched_getaffinity(0), []
    with on_cores(1):
        own = os.sched_getaffinity(0)
        thread = threading.Thread(target=lambda: within.append(os.sched_getaffinity(0)))
        thread.start()
        thread.join()
    assert own == set(sorted(before)[:1])
    assert within == [own]
    assert os.sched_getaffinity(0) == before
