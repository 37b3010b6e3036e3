"""Running a model call by call: the same outputs as the model, and nothing kept longer than it is needed."""

import keras
import numpy as np

import keras_lowbit as klb
from keras_lowbit.keras_graph.calls import calls_of, run_calls
from keras_lowbit.keras_graph.copies import Copies, clone_model

L = keras.layers
RNG = np.random.default_rng(8)


def network():
    """A shared layer, a nested model that runs twice, a value with several readers, two outputs."""
    inside = keras.Input((4,), name="inside")
    block = keras.Model(inside, L.ReLU(name="relu")(L.Dense(4, name="dense")(inside)), name="block")
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    shared = L.Dense(4, name="shared")
    early = shared(left)
    joined = L.Add(name="add")([block(early), block(shared(right))])
    return keras.Model([left, right], [L.Dense(2, name="head")(joined), early])


def arrays(count=3):
    return [keras.ops.convert_to_tensor(RNG.normal(size=(count, 4)).astype("float32")) for _ in range(2)]


def test_running_the_calls_is_running_the_model():
    model, inputs = network(), arrays()
    for inline in (False, True):
        for got, want in zip(calls_of(model, inline).run(inputs), model(inputs), strict=True):
            np.testing.assert_array_equal(got, want)


def test_uses_are_counted_inside_nested_models_too():
    model = network()
    block = model.get_layer("block")
    for inline in (False, True):
        graph = calls_of(model, inline)
        assert graph.uses(block.get_layer("dense")) == graph.uses(model.get_layer("shared")) == 2
        assert graph.uses(model.get_layer("head")) == 1
        assert graph.uses(L.Dense(1)) == 0
    assert calls_of(model).uses(block) == 2


def test_compute_stands_in_for_the_calls_and_sees_every_value_it_reads():
    graph, seen = calls_of(network(), inline=True), []

    def compute(call, values):
        seen.append((call.path, [float(values[key]) for key in call.inputs]))
        return [sum(values[key] for key in call.inputs) + 1.0]

    outputs = graph.run([0.0, 10.0], compute)
    assert [call.path for call in graph.calls] == [path for path, _ in seen]
    assert [float(value) for value in outputs] == [18.0, 1.0]


def test_values_live_until_their_last_reader_and_sets_of_values_side_by_side():
    graph = calls_of(network(), inline=True)
    samples = [dict(zip(graph.inputs, arrays(), strict=True)) for _ in range(2)]
    alone = [graph.run([values[key] for key in graph.inputs]) for values in samples]
    most, order = [], []

    def before(call):
        order.append(call.path)
        most.append(max(len(values) for values in samples))
        for values in samples:
            assert set(call.inputs) <= set(values)

    run_calls(graph.calls, samples, before=before, keep=graph.outputs)
    assert order == [call.path for call in graph.calls]
    assert max(most) <= 3
    for values, wanted in zip(samples, alone, strict=True):
        assert set(values) == set(graph.outputs)
        for key, want in zip(graph.outputs, wanted, strict=True):
            np.testing.assert_array_equal(values[key], want)


def test_copies_are_made_once_so_that_what_is_shared_stays_shared():
    model, inputs, copies = network(), arrays(), Copies()

    def compute(call, values):
        if call.name == "block":
            clone = copies.get(call.operation, lambda: clone_model(call.operation, compute))
            return call.run(values, clone)
        return copies.call(call, values)[0]

    copy = clone_model(model, compute)
    assert not {id(layer) for layer in copy._flatten_layers()} & {id(layer) for layer in model._flatten_layers()}
    assert len(copy.weights) == len(model.weights)
    for got, want in zip(copy(inputs), model(inputs), strict=True):
        np.testing.assert_array_equal(got, want)


class Augments(L.Layer):
    """In training unless it is told otherwise, as augmentation layers of Keras 3.16 are."""

    def call(self, inputs, training=True):
        return inputs + 100.0 if training else inputs


def test_every_walk_says_that_it_is_inference():
    row = keras.Input((4,), name="row")
    hidden = L.BatchNormalization(name="norm")(Augments(name="augments")(row))
    model = keras.Model(row, L.Dense(2, name="head")(L.Dropout(0.5, name="drop")(hidden, training=True)))
    x = arrays()[0]
    wanted = keras.ops.convert_to_numpy(x)
    seen: dict = {}

    def compute(call, values):
        results = call.run(values)
        seen[call.path] = results[0]
        return results

    calls_of(model).run([x], compute)
    for name in ("augments", "drop"):
        np.testing.assert_allclose(seen[name], wanted, atol=2e-3)  # the batch norm's epsilon
    for function in (klb.fold_batch_norms, lambda m: klb.quantize_model(m, "int8")[0]):
        copy = function(model)
        assert len(copy.layers) >= 4
    ranges = klb.calibrate(copy, wanted, verbose=0)
    assert np.abs(list(ranges.values())).max() < 50
    klb.reestimate_batch_norms(model, wanted, verbose=0, check=False)
    assert np.abs(np.asarray(model.get_layer("norm").moving_mean)).max() < 10
