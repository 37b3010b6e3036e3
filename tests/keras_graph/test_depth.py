"""Deep models are built and read, whatever Python's limit of recursion is, and that limit is as it was afterwards."""

import sys
import threading

import keras
import pytest

from keras_lowbit.keras_graph.calls import calls_of
from keras_lowbit.keras_graph.copies import Copies
from keras_lowbit.keras_graph.depth import build_model, nodes_behind, read_model, recursion_for, true_of_all
from tests.support.recursion import frames_left

FRAMES, CALLS = 100, 150


def chain(calls):
    """The two ends of a chain of calls."""
    start = tensor = keras.Input((2,), name="x")
    for _ in range(calls):
        tensor = keras.layers.ReLU()(tensor)
    return start, tensor


def reaches(depth):
    """Whether so many calls may stand inside one another."""
    try:
        return depth == 0 or reaches(depth - 1)
    except RecursionError:
        return False


def test_there_are_frames_inside_and_not_behind():
    with frames_left(100):
        before = sys.getrecursionlimit()
        assert not reaches(200)
        with recursion_for(150):
            assert reaches(200)
            with recursion_for(300):
                assert reaches(500)
            assert not reaches(500)
        assert not reaches(200)
        assert sys.getrecursionlimit() == before


def test_an_error_inside_puts_the_limit_back():
    before = sys.getrecursionlimit()
    with pytest.raises(ValueError, match="inside"), recursion_for(100):
        raise ValueError("inside")
    assert sys.getrecursionlimit() == before


def test_threads_keep_their_frames_when_others_leave():
    before, entered, leave = sys.getrecursionlimit(), threading.Event(), threading.Event()

    def other():
        with recursion_for(200):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(60)
    with recursion_for(300):
        assert sys.getrecursionlimit() >= before + 300
        leave.set()
        thread.join()
        assert sys.getrecursionlimit() == before + 300
    assert sys.getrecursionlimit() == before


@pytest.mark.parametrize("theirs", [700, 5000])
def test_a_limit_that_someone_sets_meanwhile_stays(theirs):
    before = sys.getrecursionlimit()
    try:
        with recursion_for(150):
            sys.setrecursionlimit(theirs)
            with recursion_for(100):
                assert sys.getrecursionlimit() == theirs + 250
            assert sys.getrecursionlimit() == theirs + 150
            sys.setrecursionlimit(theirs)
        assert sys.getrecursionlimit() == theirs
        with recursion_for(50):
            assert sys.getrecursionlimit() == theirs + 50
        assert sys.getrecursionlimit() == theirs
    finally:
        sys.setrecursionlimit(before)


def test_a_deep_model_is_built_where_keras_fails():
    start, end = chain(CALLS)
    with frames_left(FRAMES):
        with pytest.raises(RecursionError):
            keras.Model(start, end)
        model = build_model({"x": start}, [end], name="deep")
    assert (model.name, len(model.layers), list(model.input)) == ("deep", CALLS + 1, ["x"])


def test_a_deep_model_is_read_where_keras_fails(tmp_path):
    build_model(*chain(CALLS)).save(tmp_path / "deep.keras")
    with frames_left(FRAMES):
        with pytest.raises(RecursionError):
            keras.saving.load_model(tmp_path / "deep.keras")
        assert len(read_model(tmp_path / "deep.keras", compile=False).layers) == CALLS + 1


def test_a_deep_sequential_inside_a_layer_is_copied():
    model = keras.Sequential([keras.Input((2,)), *(keras.layers.ReLU() for _ in range(CALLS))])
    holder = keras.layers.TimeDistributed(model)
    start = keras.Input((3, 2))
    graph = calls_of(keras.Model(start, holder(start)))
    with frames_left(FRAMES):
        (copy,), error = Copies().call(graph.calls[0], {graph.inputs[0]: start})
    assert error is None
    assert copy.shape == (None, 3, 2)


def test_nodes_end_at_what_is_known():
    _, middle = chain(2)
    tensor = keras.layers.Add()([keras.layers.ReLU()(middle), middle])
    assert [type(node.operation).__name__ for node in nodes_behind(tensor, [middle])] == ["Add", "ReLU"]
    assert len(nodes_behind([tensor, middle])) == 5
    assert nodes_behind(3) == []


def test_what_decides_may_lie_deep_and_come_several_times():
    asked = []

    def step(number):
        asked.append(number)
        return [number + 1, number + 1, number + 2] if number < 5000 else True

    assert true_of_all(0, step)
    assert len(asked) == len(set(asked)) == 5002


@pytest.mark.parametrize(("last", "holds"), [(True, True), (False, False), ([], False), ((), False), ([0], True)])
def test_nothing_that_decides_is_no(last, holds):
    assert true_of_all(0, lambda number: [1, 2] if number == 0 else (last if number == 1 else True)) is holds
