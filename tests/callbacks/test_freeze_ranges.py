"""FreezeRanges: activation ranges stop at an epoch, and can be set free again."""

import keras
import pytest

from keras_lowbit import callbacks
from keras_lowbit.layers import freeze_ranges, hosts
from tests.support.recorder import Recorder
from tests.support.training import compiled, fit


def ranges_of(model):
    return [
        [float(host.state[key]) for key in ("minimum", "maximum")]
        for _, host in hosts(model)
        if "minimum" in host.state
    ]


def test_ranges_stop_at_the_given_epoch_and_can_be_released():
    model, recorder = compiled(keras.optimizers.SGD(0.1)), Recorder(ranges_of)
    fit(model, callbacks.FreezeRanges(2), recorder, epochs=4)
    assert recorder.seen[0] != recorder.seen[1] != recorder.seen[2]
    assert recorder.seen[2] == recorder.seen[3] == ranges_of(model)
    assert freeze_ranges(model, frozen=False) == 1
    fit(model, epochs=1)
    assert ranges_of(model) != recorder.seen[3]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: callbacks.FreezeRanges(-1), "0 or more, got epoch=-1"),
        (lambda: fit(compiled("sgd", output=None), callbacks.FreezeRanges(1)), "nothing to freeze"),
        (
            lambda: fit(compiled("sgd"), callbacks.FreezeRanges(0)),
            "have seen no data, the first is 'conv/output_quantizer'",
        ),
    ],
)
def test_wrong_use_says_what_to_do(make, words):
    with pytest.raises(ValueError, match=words):
        make()
