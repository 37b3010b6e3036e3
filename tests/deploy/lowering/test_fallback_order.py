"""Float fallback: the order of a call's inputs and outputs, results that are one value, and the same bytes at each export."""

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

import keras_lowbit as klb
from keras_lowbit.deploy.interpreters import open_interpreter
from keras_lowbit.deploy.lowering.float_convert import convert_to_float
from keras_lowbit.keras_graph.calls import layers_of
from tests.support.fallback_models import deployed
from tests.support.process import run_python


def run_float_subgraph(content, values):
    """First element of each output, the inputs being filled with one value each."""
    interpreter, _ = open_interpreter(model_content=content, reference=True)
    for detail, value in zip(interpreter.get_input_details(), values, strict=True):
        interpreter.set_tensor(detail["index"], np.full(detail["shape"], value, np.float32))
    interpreter.invoke()
    return [float(interpreter.get_tensor(detail["index"]).flat[0]) for detail in interpreter.get_output_details()]


@pytest.mark.parametrize("counted", [0, 8, 9])
def test_two_inputs_keep_their_order_whatever_names_keras_gives(counted):
    keras.backend.clear_session()
    for _ in range(counted):
        keras.Input((1,))
    content = convert_to_float(lambda a, b: [ops.subtract(a, 2 * b)], [(4,), (4,)], "a piece")
    assert run_float_subgraph(content, [1, 10]) == [-19]


def test_outputs_keep_their_order():
    content = convert_to_float(lambda a: [a + 1.0, a * 3.0, a - 5.0], [(4,)], "a piece")
    assert run_float_subgraph(content, [10]) == [11, 30, 5]


def test_a_dozen_ends_are_in_numeric_order():
    def piece(*values):
        return [sum(place * value for place, value in enumerate(values))] + [value * 2.0 for value in values]

    given = list(range(1, 13))
    content = convert_to_float(piece, [(2,)] * 12, "a piece")
    assert run_float_subgraph(content, given) == [sum(p * v for p, v in enumerate(given))] + [2 * v for v in given]


def test_an_input_that_is_not_read_keeps_its_place():
    assert run_float_subgraph(convert_to_float(lambda a, b, c: [a - c], [(4,)] * 3, "a piece"), [1, 7, 3]) == [-2]


JAX = """
from tests.deploy.lowering.test_fallback_order import convert_to_float, run_float_subgraph
print(run_float_subgraph(convert_to_float(lambda a, b: [a - 2 * b, a + b, b], [(4,), (4,)], "a piece"), [1, 10]))
"""


def test_the_order_is_kept_on_the_jax_backend_too():
    printed = run_python(JAX, KERAS_BACKEND="jax")
    assert printed.splitlines()[-1] == "[-19.0, 11.0, 10.0]"


class Film(kl.Layer):
    """x * gain + shift, its tensors given by keyword."""

    def call(self, x, gain, shift):
        return x * gain + shift


class Passing(kl.Layer):
    """Its inputs in another order, and a result twice."""

    def call(self, x, y):
        return y, x - 2 * y, x, x - 2 * y


class Branches(kl.Layer):
    """Two results of three layers of its own, whose names Keras counts up."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = [kl.Dense(3, kernel_initializer=keras.initializers.RandomNormal(seed=i)) for i in range(3)]

    def build(self, shape):
        for layer in self.inner:
            layer.build(shape)
        super().build(shape)

    def call(self, x):
        a, b, c = (layer(x) for layer in self.inner)
        return a - 2 * b, ops.tanh(c)


def denses(x, count):
    return [kl.Dense(4, name=f"d{i}")(x) for i in range(count)]


def film(x):
    a, b, c = denses(x, 3)
    return Film(name="piece")(a, gain=b, shift=c)


def split(x):
    a, b = ops.split(denses(x, 1)[0], 2, axis=-1)
    return kl.Subtract(name="s")([a, kl.ReLU(name="p")(b)])


def branches(x):
    return kl.Concatenate(name="c")(Branches(name="piece")(denses(x, 1)[0]))


def passing(x):
    return kl.Concatenate(name="c")(list(Passing(name="piece")(*denses(x, 2))))


def nothing_but_a_cast(x):
    return ops.cast(denses(x, 1)[0], "float32")


def recurrent(x, unroll=True):
    steps = kl.Reshape((4, 3), name="r")(x)
    last, hidden, carry = kl.LSTM(3, unroll=unroll, return_state=True, name="lstm")(steps)  # last and hidden are one
    return kl.Concatenate(name="c")([hidden, carry, last])


@pytest.mark.parametrize("body", [film, split, branches, passing, nothing_but_a_cast, recurrent])
def test_float_subgraphs_with_several_ends_compute_what_keras_does(body, tmp_path):
    model, images = deployed(body, tmp_path / "m.tflite", 12, ["lstm"] if body is recurrent else [])
    parity = klb.verify(model, tmp_path / "m.tflite", images)
    assert parity.ok
    assert parity.max_output_steps <= 2


def test_a_loop_of_many_steps_is_refused_with_the_way_out(tmp_path):
    """Up to 64 run in float, one behind the other."""
    model = keras.Sequential([keras.Input((65, 2)), kl.Bidirectional(kl.LSTM(2), name="both")])
    quantized, _ = klb.quantize_model(model)
    klb.calibrate(quantized, np.ones((2, 65, 2), "float32"), verbose=0)
    with pytest.raises(
        ValueError, match=r"'both' \(Bidirectional\) runs 65 steps in a loop, .* up to 64 .* shorter sequences"
    ):
        klb.export_litert(quantized, tmp_path / "m.tflite")
    both = quantized.get_layer("both")
    assert not both.forward_layer.unroll  # the model is as it was
    assert not both.backward_layer.unroll


class Halving(kl.Layer):
    """A loop of the user's own, of as many steps as the values need."""

    def call(self, x):
        [halved] = ops.while_loop(lambda y: ops.max(ops.abs(y)) > 1, lambda y: [y / 2], [x])
        return ops.reshape(halved, (-1, 12))


def test_other_control_flow_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'halving' has 3 subgraphs, .* leave control flow out"):
        deployed(lambda x: Halving(name="halving")(x), tmp_path / "m.tflite", 12)


def test_what_looks_values_up_is_refused_with_the_way_out(tmp_path):
    ids = keras.Input((3,), dtype="int32", name="ids")
    model = keras.Model(ids, kl.Dense(2)(kl.CategoryEncoding(5)(kl.Hashing(5, name="hash")(ids))))
    with pytest.warns(UserWarning, match="run it in front of the model"):
        quantized, _ = klb.quantize_model(model)
    klb.calibrate(quantized, np.ones((2, 3), "int32"), verbose=0)
    with pytest.raises(ValueError, match=r"'hash' \(Hashing\): .* run it in front of the model"):
        klb.export_litert(quantized, tmp_path / "m.tflite")


def test_another_export_of_the_same_model_is_the_same_file(tmp_path):
    model, _ = deployed(film, tmp_path / "first.tflite", 12)
    for _ in range(7):
        ops.abs(keras.Input((1,)))
    klb.export_litert(model, tmp_path / "second.tflite")
    assert (tmp_path / "first.tflite").read_bytes() == (tmp_path / "second.tflite").read_bytes()


def test_the_names_of_a_layers_own_layers_do_not_matter(tmp_path):
    """A model loaded in another process: the inner layers are dense_8 to dense_10 here, dense to dense_2 there."""
    keras.backend.clear_session()
    first, _ = deployed(branches, tmp_path / "first.tflite", 12)
    keras.backend.clear_session()
    for _ in range(8):
        kl.Dense(1)
    second, images = deployed(branches, tmp_path / "second.tflite", 12)
    assert sorted(inner_names(first)) == inner_names(first)
    assert sorted(inner_names(second)) != inner_names(second)
    assert (tmp_path / "first.tflite").read_bytes() == (tmp_path / "second.tflite").read_bytes()
    assert klb.verify(second, tmp_path / "first.tflite", images).ok


def inner_names(model):
    return [layer.name for _, layer in layers_of(model) if type(layer) is kl.Dense]


def test_an_export_leaves_all_names_as_they_were(tmp_path):
    model, _ = deployed(branches, tmp_path / "m.tflite", 12)
    before = [path for path, _ in layers_of(model)]
    klb.export_litert(model, tmp_path / "m.tflite")
    assert [path for path, _ in layers_of(model)] == before
