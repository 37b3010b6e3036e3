"""INQ from a float network to a verified file: as its users write it, on pruned networks, under every optimizer."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit import callbacks
from keras_lowbit.callbacks import freeze_portion
from keras_lowbit.distill import losses
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.quantizers import Incremental, PowerOfTwo, Ternary
from tests.support.model_zoo import run
from tests.support.pages import DOCS

kl = keras.layers
RNG = np.random.default_rng(51)
IMAGES = RNG.normal(size=(48, 8, 8, 3)).astype("float32")
LABELS = RNG.integers(0, 5, 48)

PAGE = DOCS / "methods" / "inq.md"
SNIPPET = """
recipe = klb.recipes.get("inq-5")
quantized, report = klb.quantize_model(model, recipe)
quantized.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
quantized.fit(images, labels, epochs=16, callbacks=recipe.callbacks(epochs=16))
klb.reestimate_batch_norms(quantized, images, labels=labels, batch_size=64)
klb.calibrate(quantized, images, batch_size=64)
klb.export_litert(quantized, "inq5.tflite")
klb.quantizers.Incremental(klb.quantizers.Ternary(), partition="random")
"""


def float_network(width=8, ending="softmax"):
    """A 3x3 convolution, a pointwise and a depthwise one, batch norms, a classifier."""
    keras.utils.set_random_seed(6)
    inputs = keras.Input((8, 8, 3))
    hidden = kl.Conv2D(width, 3, use_bias=False, name="conv")(inputs)
    hidden = kl.ReLU()(kl.BatchNormalization()(hidden))
    hidden = kl.Conv2D(2 * width, 1, use_bias=False, name="point")(hidden)
    hidden = kl.ReLU()(kl.BatchNormalization()(hidden))
    hidden = kl.DepthwiseConv2D(3, name="deep")(hidden)
    return keras.Model(inputs, kl.Dense(5, ending, name="head")(kl.Flatten()(hidden)), name="small")


def test_the_documentation_shows_it():
    page = PAGE.read_text(encoding="utf-8")
    assert SNIPPET in page
    plan = re.search(r"`(recipe\.replace\(plan=.*int8_exact.*)`", page).group(1)
    exact = eval(plan, {"klb": klb, "recipe": klb.recipes.get("inq-5")})
    assert exact.plan[0].kernel == Incremental(PowerOfTwo(5, int8_exact=True))


@pytest.mark.filterwarnings(
    "ignore:reestimate_batch_norms left"
)  # the labels are drawn: nothing helps their loss for sure
def test_it_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"klb": klb, "model": float_network(), "images": IMAGES, "labels": LABELS}
    with pytest.warns(UserWarning, match="layers with codes beyond 127: .* altered to fit int8"):
        exec(SNIPPET, names)
    quantized = names["quantized"]
    for path, layer in klb.convert.weights.quantized_layers(quantized).items():
        assert to_numpy(layer.kernel_host.state["mask"]).all(), path
        magnitudes = np.unique(np.abs(klb.quantized_weights(quantized)[path].real))
        assert set(np.log2(magnitudes[magnitudes > 0]) % 1) == {0.0}
        assert magnitudes.max() <= 2.0**7 * magnitudes[magnitudes > 0].min()
    parity = klb.verify(quantized, "inq5.tflite", IMAGES)
    assert parity.ok, parity
    assert parity.overflows


def test_taught_by_the_float_network_as_the_documentation_says():
    page = PAGE.read_text(encoding="utf-8")
    mapped, loss = (re.search(f"`({start}[^`]*)`", page).group(1) for start in ("data\\.map", "losses\\.get"))
    model = float_network(ending=None)
    klb.reestimate_batch_norms(model, IMAGES, verbose=0)  # as a trained network's are
    model.get_layer("head").kernel.assign(20 * model.get_layer("head").kernel)
    names = {"data": tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(16), "model": model, "losses": losses}
    wanted, distance = run(model, IMAGES)[0], eval(loss, names)

    def after(epochs):
        recipe = klb.recipes.get("inq-3-mse")
        quantized, _ = klb.quantize_model(model, recipe)
        quantized.compile(keras.optimizers.Adam(0.01), distance, jit_compile=False)
        if epochs:
            steps = recipe.callbacks(epochs=epochs)
            quantized.fit(eval(mapped, names), epochs=epochs, callbacks=steps, shuffle=False, verbose=0)
        klb.calibrate(quantized, IMAGES, verbose=0)
        klb.reestimate_batch_norms(quantized, IMAGES, check=False, verbose=0)
        return float(distance(wanted, run(quantized, IMAGES)[0]))

    assert after(12) < 0.5 * after(0)


# ------------------------------------------------------------------------------------------------ fewer bits are exact


@pytest.fixture(scope="module", params=[2, 3, 4])
def frozen(request):
    """(bits, model with every weight on the grid)."""
    quantized, _ = klb.quantize_model(float_network(), f"inq-{request.param}")
    for index, layer in enumerate(callbacks.partition.incremental_layers(quantized)):
        freeze_portion(layer, 1.0, np.random.default_rng(index))
    klb.calibrate(quantized, IMAGES, verbose=0)
    klb.reestimate_batch_norms(quantized, IMAGES, check=False, verbose=0)
    klb.calibrate(quantized, IMAGES, verbose=0)
    return request.param, quantized


@pytest.mark.parametrize("weights", ["int8", "int4", "int2"])
def test_two_to_four_bits_export_exactly_and_pack_where_they_fit(frozen, weights, tmp_path):
    bits, model = frozen
    report = klb.export_litert(model, tmp_path / "m.tflite", weights=weights, overflow="error")
    assert report.overflows == {}
    kinds = {row.name: row.weight_type for row in report.rows}
    fits = {2: "int2", 3: "int4", 4: "int8"}[bits]  # codes -1..1, -2..2 and -8..8; int4 ends at +7
    smallest = max(fits, weights, key=lambda kind: int(kind.removeprefix("int")))
    assert (kinds["point"], kinds["head"]) == (smallest, smallest)
    widest = "int4" if smallest == "int2" else smallest  # LiteRT has no int2 in CONV_2D and DEPTHWISE_CONV_2D
    assert (kinds["conv"], kinds["deep"]) == (widest, widest)
    parity = klb.verify(model, tmp_path / "m.tflite", IMAGES[:8])
    assert parity.ok, parity
    assert parity.codes_equal
    assert parity.overflows == {}


def test_the_codes_are_those_of_the_grid(frozen):
    bits, model = frozen
    for path, weights in klb.quantized_weights(model).items():
        assert weights.codes.dtype == np.int8
        assert set(np.abs(np.unique(weights.codes))) <= {0, *(2**k for k in range(2 ** (bits - 2)))}, path


# ------------------------------------------------------------------------------------------------ pruned networks


def prune(model):
    """Half the weights of every kernel, the smallest, become 0. Returns where, by layer."""
    zeros = {}
    for layer in model.layers:
        if getattr(layer, "kernel", None) is not None:
            kernel = to_numpy(layer.kernel)
            kernel[np.abs(kernel) <= np.median(np.abs(kernel))] = 0
            layer.kernel.assign(kernel)
            zeros[layer.name] = kernel == 0
    return zeros


class Counts(keras.callbacks.Callback):
    """Number of frozen weights of every layer at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        layers = callbacks.partition.incremental_layers(self.model)
        self.seen.append({layer.name: int(to_numpy(layer.kernel_host.state["mask"]).sum()) for layer in layers})


def test_a_pruned_network_keeps_its_zeros_and_partitions_the_rest(tmp_path):
    model = float_network()
    zeros = prune(model)
    recipe = klb.recipes.get("inq-5")
    quantized, _ = klb.quantize_model(model, recipe)
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.05)
    quantized.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    counts = Counts()
    end = callbacks.ReestimateBatchNorms(IMAGES, check=False)
    quantized.fit(IMAGES, LABELS, epochs=7, verbose=0, callbacks=[*recipe.callbacks(epochs=7), counts, end])
    for epoch, portion in enumerate([0.5, 0.5, 0.75, 0.75, 0.875, 0.875, 1.0]):
        for name, frozen in counts.seen[epoch].items():
            gone = int(zeros[name].sum())
            assert frozen == gone + round(portion * (zeros[name].size - gone)), (name, epoch)
    found = klb.storage(quantized)
    for layer in found.layers:
        real = klb.quantized_weights(quantized)[layer.path].real
        assert np.signbit(real[zeros[layer.path]]).sum() == 0
        assert not real[zeros[layer.path]].any()
        assert layer.pruned == zeros[layer.path].sum() == pytest.approx(layer.weights / 2, abs=1)
        assert layer.zeros >= layer.pruned
    assert found.total.ratio_alone == 6.4
    assert 32 / 3 <= found.total.ratio < 10.8  # 1 + 4 / 2 bits a weight, a little less for the zeros that INQ adds
    assert f"{found.total.ratio:.4g}" in str(found).splitlines()[-3]
    klb.calibrate(quantized, IMAGES, verbose=0)
    with pytest.warns(UserWarning, match="altered to fit int8"):
        klb.export_litert(quantized, tmp_path / "m.tflite")
    assert klb.verify(quantized, tmp_path / "m.tflite", IMAGES[:8]).ok


# ------------------------------------------------------------------------------------------------ frozen bits


ROWS = RNG.normal(size=(1200, 6)).astype("float32")
CLASSES = RNG.integers(0, 3, 1200)
OPTIMIZERS = {
    "sgd+momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "ema": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=7),
    "mixed precision": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
}


def dense_network(optimizer, precision, jit_compile):
    keras.utils.set_random_seed(8)
    inputs = keras.Input((6,))
    options = {"dtype": precision} if precision else {}
    kernels = [Incremental(PowerOfTwo(5)), Incremental(Ternary(), "random")]
    hidden = klb.layers.QuantDense(16, "tanh", kernel_quantizer=kernels[0], name="one", **options)(inputs)
    model = keras.Model(inputs, klb.layers.QuantDense(3, kernel_quantizer=kernels[1], name="two", **options)(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, auto_scale_loss=True, jit_compile=jit_compile)
    return model


def frozen_bits(model):
    """Bit patterns of the frozen weights in the forward pass, and where they are."""
    found = []
    for name in ("one", "two"):
        layer = model.get_layer(name)
        frozen = to_numpy(layer.kernel_host.state["mask"]) > 0
        values = to_numpy(layer.quantized_kernel(True))
        found.append((frozen, values.view(f"u{values.itemsize}")[frozen]))
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hundreds_of_steps_move_no_frozen_bit_and_saving_in_between_changes_nothing(name, tmp_path):
    """75 steps that fill the slots; half frozen; 150 steps; saved and loaded; 150 more on both."""
    precision = "mixed_float16" if name == "mixed precision" else None
    model = dense_network(OPTIMIZERS[name](), precision, jit_compile="auto" if name == "adam" else False)
    train = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(ROWS[:600], CLASSES[:600], **train)
    for index, layer in enumerate(("one", "two")):
        freeze_portion(model.get_layer(layer), 0.5, np.random.default_rng(index))
    before, free = frozen_bits(model), to_numpy(model.get_layer("one").kernel)
    model.fit(ROWS, CLASSES, **train)
    model.save(tmp_path / "half.keras")
    loaded = keras.saving.load_model(tmp_path / "half.keras")
    for one in (model, loaded):
        one.fit(ROWS, CLASSES, **train)
        for (mask, bits), (mask_now, bits_now) in zip(before, frozen_bits(one), strict=True):
            np.testing.assert_array_equal(mask, mask_now)
            np.testing.assert_array_equal(bits, bits_now)
    moved = to_numpy(model.get_layer("one").kernel) != free
    assert moved[~before[0][0]].all()
    if name != "mixed precision":  # Keras drops the optimizer's state there unless the process sets the policy
        for left, right in zip(model.variables, loaded.variables, strict=True):
            np.testing.assert_array_equal(to_numpy(left), to_numpy(right), err_msg=left.path)
