"""`trainable` of a layer holds for the thresholds of its quantizers, whenever it was set."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import QuantActivation
from keras_lowbit.quantizers import ActivationRange, AdjustableThreshold

L = keras.layers
ROWS = np.random.default_rng(51).normal(size=(16, 4)).astype("float32")


def network():
    keras.utils.set_random_seed(3)
    row = keras.Input((4,))
    return keras.Model(row, L.Dense(2, name="head")(L.Dense(3, activation="relu", name="body")(row)))


def quantized(model):
    found, _ = klb.quantize_model(model, "fat")
    klb.calibrate(found, ROWS, verbose=0)
    return found


def frozen_before():
    model = network()
    model.get_layer("body").trainable = False
    return quantized(model)


def frozen_after():
    model = quantized(network())
    model.get_layer("body").trainable = False
    return model


def names(model):
    return [variable.path for variable in model.trainable_variables]


@pytest.mark.parametrize("make", [frozen_before, frozen_after])
def test_a_frozen_layer_keeps_its_kernel_and_thresholds_through_fit_and_reload(make, tmp_path):
    model = make()
    layer = model.get_layer("body")
    before = to_numpy(layer.quantized_kernel())
    model.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
    model.fit(ROWS, ROWS[:, :2], epochs=2, verbose=0)
    np.testing.assert_array_equal(to_numpy(layer.quantized_kernel()), before)
    assert not any(name.startswith("body/") for name in names(model))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert names(again) == names(model)
    layer.trainable = again.get_layer("body").trainable = True
    assert names(again) == names(model)
    assert sum(name.startswith("body/") for name in names(again)) == len(layer.trainable_variables) > 2


def test_a_frozen_range_keeps_its_threshold_until_it_may_learn():
    layer = QuantActivation("relu", quantizer=AdjustableThreshold(ActivationRange()), trainable=False)
    layer.build((None, 4))
    assert layer.trainable_variables == []
    layer.trainable = True
    assert len(layer.trainable_variables) > 0


def test_ranges_of_a_frozen_part_stand_still_and_calibrate_sets_them_all_the_same():
    row = keras.Input((4,))
    base = klb.quantize_model(keras.Model(row, L.Dense(3, activation="relu")(L.Dense(3)(row)), name="base"), "int8")[0]
    klb.calibrate(base, ROWS, verbose=0)
    base.trainable = False
    again = keras.Input((4,))
    model = keras.Model(again, klb.layers.QuantDense(2, output_quantizer="activation", name="head")(base(again)))
    state = [to_numpy(variable) for variable in base.variables]
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(8 * ROWS + 5, ROWS[:, :2], epochs=2, verbose=0)
    for before, after in zip(state, base.variables, strict=True):
        np.testing.assert_array_equal(before, to_numpy(after))
    assert float(model.get_layer("head").output_host.state["count"]) == 2  # of a part that is not frozen
    klb.calibrate(model, 8 * ROWS + 5, verbose=0)
    assert not np.array_equal(state[-3:], [to_numpy(variable) for variable in base.variables[-3:]])
    base.trainable = True
    model.compile("sgd", "mse", run_eagerly=True)
    before = to_numpy(base.layers[1].output_host.state["maximum"])
    model.fit(80 * ROWS, ROWS[:, :2], verbose=0)
    assert to_numpy(base.layers[1].output_host.state["maximum"]) != before


def test_a_part_that_was_frozen_before_gets_ranges_that_are_frozen():
    row = keras.Input((4,))
    base = keras.Model(row, keras.ops.add(L.Dense(3, activation="silu")(row), 1.0), name="base")
    base.trainable = False
    copy = klb.quantize_model(base, "int8")[0]
    assert copy.trainable_variables == []
    assert not any(host.trainable for _, host in klb.layers.hosts(copy))
    model = network()
    model.get_layer("body").trainable = False
    copy = klb.quantize_model(model, "int8")[0]
    flags = {path.split("/")[0]: host.trainable for path, host in klb.layers.hosts(copy)}
    assert [flags[name] for name in ("body", "body_range", "head", "head_range")] == [False, False, True, True]
