import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_lowbit import schedules


def test_the_stages_of_the_paper():
    assert schedules.exponential() == (0.5, 0.75, 0.875, 1.0)
    assert schedules.average() == (0.2, 0.4, 0.6, 0.8, 1.0)
    assert schedules.fine_tune() == (1.0,)


@pytest.mark.parametrize("make", [schedules.exponential, schedules.average])
@pytest.mark.parametrize("stages", range(1, 12))
def test_any_number_of_stages_grows_and_ends_with_exactly_one(make, stages):
    values = make(stages)
    assert len(values) == stages
    assert schedules.ratios(values) == values
    assert values[-1] == 1.0


@pytest.mark.parametrize("name", ["exponential", "average", "fine_tune"])
def test_names_stand_for_the_functions(name):
    assert schedules.ratios(name) == getattr(schedules, name)()


def test_own_ratios_may_start_at_zero():
    assert schedules.ratios([0, 0.3, 1]) == (0.0, 0.3, 1.0)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("exponentail", "Unknown ratio schedule 'exponentail'. Known names: average, exponential, fine_tune"),
        ((), "at least one of them"),
        ((0.5, 1.5), r"fractions of the units in \[0, 1\].* got \(0.5, 1.5\). For 50 % write 0.5"),
        ((50, 75, 100), "For 50 % write 0.5"),
        ((-0.1, 1.0), "got"),
        ((float("nan"), 1.0), "nan"),
        ((0.75, 0.5, 1.0), "must grow"),
        ((0.5, 0.5, 1.0), "drop repeated ones"),
        ((0.5, 0.75), "last ratio must be 1 .*got 0.75.* Append 1.0"),
        (0.5, "a name .* or a sequence of numbers"),
        (("a", 1.0), "a sequence of numbers"),
    ],
)
def test_wrong_schedules_say_what_to_give_instead(schedule, words):
    with pytest.raises((ValueError, TypeError), match=words):
        schedules.ratios(schedule)


@given(st.integers(1, 9), st.integers(0, 200))
def test_stage_k_starts_at_the_floor_of_its_share(stages, more):
    epochs = stages + more
    reached = [schedules.stage_at(epoch, stages, epochs) for epoch in range(epochs)]
    assert reached == sorted(reached)
    assert [reached.index(stage) for stage in range(stages)] == [
        math.floor(stage * epochs / stages) for stage in range(stages)
    ]
    assert reached.count(stages - 1) == max(reached.count(stage) for stage in range(stages))


def test_later_epochs_stay_in_the_last_stage():
    assert schedules.stage_at(10**6, 4, 8) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 4, 3), r"4 stages need at least 4 epochs, got epochs=3.* ratios \(0.5, 0.75, 1.0\)"),
        ((0, 4, 0), r"got epochs=0.* ratios \(1.0,\)"),
        ((-1, 4, 8), "got epoch=-1"),
        ((0, 0, 8), "1 or more, got stages=0"),
        ((0, 2.5, 8), "got stages=2.5"),
    ],
)
def test_impossible_stages_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        schedules.stage_at(*arguments)
