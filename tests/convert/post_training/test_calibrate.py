"""Ranges from data: every kind of data, every method against NumPy, and how `fit` goes on from them."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit.convert.post_training import observers
from keras_lowbit.convert.post_training.calibrate import activation_hosts
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.recipes import Recipe
from tests.support import model_zoo
from tests.support.model_zoo import inputs_of, randomize, run

L = keras.layers
RNG = np.random.default_rng(11)
ROWS = RNG.normal(size=(40, 6)).astype("float32")
A8 = klb.recipes.get("int8")


def one_layer():
    """Row -> range -> float dense -> range: both ranges can be computed by hand."""
    row = keras.Input((6,), name="row")
    model = randomize(keras.Model(row, L.Dense(3, name="head")(row)))
    copy, _ = klb.quantize_model(model, Recipe("a8", (), "activation"))
    return model, copy


def quietly(model, data, **options):
    return klb.calibrate(model, data, verbose=0, **options)


def state(model):
    return {
        path: {name: float(keras.ops.convert_to_numpy(keras.ops.copy(value))) for name, value in host.state.items()}
        for path, host in activation_hosts(model).items()
    }


def test_ranges_are_the_extremes_of_the_float_activations():
    model, copy = one_layer()
    (outputs,) = run(model, ROWS)
    found = quietly(copy, ROWS, batch_size=7)
    assert found["row_range/output_quantizer"] == (ROWS.min(), ROWS.max())
    # The same float32 products, in batches of another size.
    np.testing.assert_allclose(found["head_range/output_quantizer"], (outputs.min(), outputs.max()), rtol=1e-5)
    assert {values["count"] for values in state(copy).values()} == {6.0}
    for path, (low, high) in found.items():
        assert (state(copy)[path]["minimum"], state(copy)[path]["maximum"]) == (low, high)


def test_weights_are_quantized_while_it_looks_and_activations_are_not():
    row = keras.Input((6,), name="row")
    model = randomize(keras.Model(row, L.Dense(3, name="head")(row)))
    copy, _ = klb.quantize_model(model, A8, overrides={"head": "binary"})
    want = ROWS @ klb.quantized_weights(copy)["head"].real + model.get_layer("head").bias.numpy()
    for _ in range(2):  # the second time there are ranges already
        low, high = quietly(copy, ROWS)["head_range/output_quantizer"]
        np.testing.assert_allclose((low, high), (want.min(), want.max()), rtol=1e-5)


def _dataset():
    return tf.data.Dataset.from_tensor_slices((ROWS, np.arange(40))).batch(16)


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return ROWS[10 * index : 10 * index + 10], np.zeros(10)


@pytest.mark.parametrize(
    ("make", "batches"),
    [
        (lambda: ROWS, 2),
        (lambda: tf.constant(ROWS), 2),
        (lambda: ROWS.astype("float64"), 2),
        (_dataset, 3),
        (lambda: _dataset().map(lambda x, y: x), 3),
        (Sequence, 4),
        (lambda: ((ROWS[i : i + 8], None) for i in range(0, 40, 8)), 5),
        (lambda: lambda: (ROWS[i : i + 8] for i in range(0, 40, 8)), 5),
    ],
    ids="array tensor float64 dataset unlabeled pydataset generator function".split(),
)
def test_every_kind_of_data_gives_the_same_ranges_labels_dropped(make, batches):
    _, copy = one_layer()
    found = quietly(copy, make())
    assert found["row_range/output_quantizer"] == (ROWS.min(), ROWS.max())
    assert {values["count"] for values in state(copy).values()} == {float(batches)}


@pytest.mark.parametrize("name", ["many_ends", "dicts"])
def test_several_inputs(name):
    copy, _ = klb.quantize_model(randomize(model_zoo.MODELS[name]()), A8)
    inputs = inputs_of(copy, count=20)
    found = quietly(copy, inputs, batch_size=8)
    for tensor, part in zip(copy.inputs, keras.tree.flatten(inputs), strict=True):
        assert found[f"{tensor.name}_range/output_quantizer"] == (part.min(), part.max())
    data = tf.data.Dataset.from_tensor_slices(inputs if isinstance(inputs, dict) else (tuple(inputs), np.zeros(20)))
    if isinstance(inputs, list):
        data = data.map(lambda x, y: ({"left": x[0], "right": x[1]}, y))
    assert quietly(copy, data.batch(8)) == found


def test_steps_end_an_endless_generator():
    def endless():
        while True:
            yield ROWS[:4]

    _, copy = one_layer()
    assert quietly(copy, endless(), steps=3)["row_range/output_quantizer"] == (ROWS[:4].min(), ROWS[:4].max())
    assert {values["count"] for values in state(copy).values()} == {3.0}


def test_progress_bar_counts_batches_and_ends_its_line(monkeypatch, capsys):
    _, copy = one_layer()
    klb.calibrate(copy, ROWS)
    assert capsys.readouterr().out == ""  # not for a file
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for data, total in [(ROWS, "2/2"), ((ROWS for _ in range(3)), "3/")]:
        klb.calibrate(copy, data)
        printed = capsys.readouterr().out
        assert total in printed
        assert printed.endswith("\n")
    quietly(copy, ROWS)
    assert capsys.readouterr().out == ""


def long_tailed():
    values = RNG.standard_t(2, size=(4000, 6)).astype("float32")
    values[0, 0], values[3999, 5] = -300.0, 900.0
    return values


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentile_is_numpys_to_the_width_of_a_bin(percentile):
    _, copy = one_layer()
    values = RNG.gamma(2.0, 1.0, size=(4000, 6)).astype("float32") - 1
    low, high = quietly(copy, values, calibration="percentile", percentile=percentile)["row_range/output_quantizer"]
    want = np.percentile(values.astype(np.float64), [100 - percentile, percentile], method="inverted_cdf")
    bin_width = 2.0 ** np.ceil(np.log2(np.abs(values).max())) / 2048
    np.testing.assert_allclose((low, high), want, atol=2 * bin_width)


def test_percentile_100_is_the_extremes():
    _, copy = one_layer()
    values = long_tailed()
    found = quietly(copy, values, calibration="percentile", percentile=100.0)["row_range/output_quantizer"]
    assert found == (values.min(), values.max())


def squared_error(values, low, high, bits=8):
    """Of values on the grid over [low, high], in float64."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / (2**bits - 1)
    lowest = np.round(low / step)
    return float(np.mean((np.clip(np.round(values / step), lowest, lowest + 2**bits - 1) * step - values) ** 2))


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("draw", [lambda: RNG.laplace(size=6000), lambda: np.maximum(RNG.normal(size=6000), 0)])
def test_mse_is_as_good_as_a_search_over_the_values_themselves(bits, draw):
    values = draw().astype("float32").astype(np.float64)
    observer = observers.make_observer("mse", bits, 99.99)
    for part in np.split(values, 6):
        observer.see(part)
    got = squared_error(values, *observer.range(), bits)
    best = min(squared_error(values, values.min() * r, values.max() * r, bits) for r in np.linspace(0.3, 1, 71))
    # The search runs on 4096 bins in place of the 6000 values.
    assert got <= 1.02 * best
    assert got <= squared_error(values, values.min(), values.max(), bits) * (1 + 1e-6)


@pytest.mark.parametrize("scales", [(1, 1), (1, 100), (100, 1), (1e-20, 1), (0, 1), (0, 0)])
def test_histograms_do_not_depend_on_the_order_of_wide_and_narrow_batches(scales):
    parts = [scale * RNG.normal(size=500) for scale in scales]
    for method in ("percentile", "mse"):
        ranges = []
        for order in (parts, parts[::-1]):
            observer = observers.make_observer(method, 8, 99.0)
            for part in order:
                observer.see(part)
            assert observer.counts.sum() == 1000
            ranges.append(observer.range())
        span = max(np.abs(parts).max(), 1e-30)
        # A histogram that was widened has binned its first values more coarsely on the way.
        np.testing.assert_allclose(ranges[0], ranges[1], atol=span / 512)


def test_methods_nest():
    _, copy = one_layer()
    values = long_tailed()
    widths = {
        method: np.ptp(quietly(copy, values, calibration=method)["row_range/output_quantizer"])
        for method in ("max", "percentile", "mse")
    }
    assert widths["percentile"] < widths["max"]
    assert widths["mse"] < widths["max"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"calibration": "entropy"}, "calibration='entropy'; choose one of 'max', 'percentile', 'mse'"),
        ({"percentile": 50.0}, "percentile=50.0; give a number in"),
        ({"percentile": 101}, "percentile=101; give a number in"),
        ({"batch_size": 0}, "batch_size must be a positive integer below 2.31, got 0"),
        ({"steps": 0}, "steps must be a positive integer below 2.31, got 0"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        quietly(one_layer()[1], ROWS, **options)


@pytest.mark.parametrize(
    "data", [ROWS[:0], [], iter(()), tf.data.Dataset.from_tensor_slices(ROWS[:0]).batch(4)], ids=type
)
def test_empty_data_is_an_error_and_changes_nothing(data):
    _, copy = one_layer()
    before = state(copy)
    with pytest.raises(ValueError, match="No data"):
        quietly(copy, data)
    assert state(copy) == before


def test_nan_inputs_are_named():
    with pytest.raises(ValueError, match="batch 1 are not all finite"):
        quietly(one_layer()[1], np.concatenate([ROWS, np.full((1, 6), np.nan, "float32")]))


def test_activations_that_overflow_are_named_and_ranges_stay():
    _, copy = one_layer()
    copy.get_layer("head").kernel.assign(np.full((6, 3), 3e38, "float32"))
    before = state(copy)
    with pytest.raises(ValueError, match="activations at range 'head_range/output_quantizer' hold NaN or infinite"):
        quietly(copy, np.abs(ROWS) + 1)
    assert state(copy) == before
    assert all(host.watch is None for _, host in klb.layers.hosts(copy))  # and it runs as before
    copy(ROWS)


def test_a_calibration_that_fails_leaves_trained_thresholds_alone():
    row = keras.Input((4,))
    model, _ = klb.quantize_model(keras.Model(row, L.Dense(3)(L.Dense(5, activation="relu")(row))), "fat")
    rows = np.random.default_rng(9).normal(size=(8, 4)).astype("float32")
    klb.calibrate(model, rows, verbose=0)
    for _, host in klb.layers.hosts(model):
        for variable in host.learned:
            variable.assign(0.9 * to_numpy(variable))
    before = [to_numpy(variable) for variable in model.variables]
    rows[-1] = np.nan
    with pytest.raises(ValueError, match="batch 1"):
        klb.calibrate(model, rows, batch_size=4, verbose=0)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value, err_msg=variable.path)
    klb.calibrate(model, rows[:4], verbose=0)
    assert any(np.any(to_numpy(v) != value) for v, value in zip(model.variables, before, strict=True))


def test_a_model_without_ranges_is_told_why():
    model, _ = klb.quantize_model(one_layer()[0], A8.replace(activations=None))
    with pytest.raises(ValueError, match=r"has no activation ranges to calibrate. Quantize it with a recipe"):
        quietly(model, ROWS)


def test_a_second_calibration_replaces_the_first_frozen_or_not():
    _, copy = one_layer()
    quietly(copy, 5 * ROWS)
    klb.freeze_ranges(copy)
    found = quietly(copy, ROWS)
    assert found["row_range/output_quantizer"] == (ROWS.min(), ROWS.max())
    assert {values["frozen"] for values in state(copy).values()} == {1.0}


def fit(model, rows, epochs=1):
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    model.fit(rows, np.zeros((len(rows), 3), "float32"), batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return state(model)["row_range/output_quantizer"]


def averaged(low, high, count, batches, momentum=0.99):
    """The moving average of the ranges of batches, as `ActivationRange` documents it."""
    for batch in batches:
        keep = min(momentum, (1 + count) / (10 + count)) if count else 0.0
        low, high = keep * low + (1 - keep) * batch.min(), keep * high + (1 - keep) * batch.max()
        count += 1
    return low, high, count


def test_fit_counts_as_calibration():
    _, copy = one_layer()
    got = fit(copy, ROWS)
    low, high, count = averaged(0.0, 0.0, 0, np.split(ROWS, 5))
    assert (got["minimum"], got["maximum"]) == (pytest.approx(low, rel=1e-5), pytest.approx(high, rel=1e-5))
    assert got["count"] == count == 5
    klb.freeze_ranges(copy)


def test_fit_goes_on_from_the_calibrated_range():
    _, copy = one_layer()
    quietly(copy, 10 * ROWS, batch_size=10)
    got = fit(copy, ROWS)
    low, high, count = averaged(10 * ROWS.min(), 10 * ROWS.max(), 4, np.split(ROWS, 5))
    assert (got["minimum"], got["maximum"]) == (pytest.approx(low, rel=1e-5), pytest.approx(high, rel=1e-5))
    assert got["count"] == count


def test_frozen_ranges_stay_through_fit_until_thawed():
    _, copy = one_layer()
    quietly(copy, 10 * ROWS)
    klb.freeze_ranges(copy)
    before = state(copy)
    fit(copy, ROWS)
    assert state(copy) == before
    klb.freeze_ranges(copy, frozen=False)
    assert fit(copy, ROWS)["maximum"] < before["row_range/output_quantizer"]["maximum"]


def test_equal_names_in_two_nested_models_are_two_ranges():
    row = keras.Input((6,))
    features = row
    for name in ("a", "b"):
        inner = keras.Sequential([keras.Input((6,)), L.Dense(6, activation="relu", name="dense")], name=name)
        features = inner(features)
    copy, _ = klb.quantize_model(randomize(keras.Model(row, features)), A8)
    found = quietly(copy, ROWS)
    assert list(found)[1:] == ["a/dense_range/output_quantizer", "b/dense_range/output_quantizer"]
    assert found["a/dense_range/output_quantizer"] != found["b/dense_range/output_quantizer"]
    klb.freeze_ranges(copy)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.start = klb.layers.QuantActivation(name="start")
        self.blocks = [
            klb.layers.QuantDense(6, kernel_quantizer="ternary", output_quantizer="activation", name="block")
        ]
        self.blocks += [klb.layers.QuantDense(3, kernel_quantizer="binary", name="block")]

    def call(self, inputs, training=None):
        features = self.start(inputs, training=training)
        for block in self.blocks:
            features = block(features, training=training)
        return features


def test_subclassed_models_calibrate_and_name_layers_that_share_a_name():
    model = Subclassed()
    model(ROWS)
    assert list(quietly(model, ROWS)) == ["start/output_quantizer", "block/output_quantizer"]
    assert list(klb.quantized_weights(model)) == ["block", "block_1"]


def test_a_range_that_nothing_calls_is_named():
    model = Subclassed()
    model.spare = klb.layers.QuantActivation(name="spare")
    model.spare.build((None, 6))
    model(ROWS)
    with pytest.raises(ValueError, match="range 'spare/output_quantizer' saw no values"):
        quietly(model, ROWS)
