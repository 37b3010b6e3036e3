"""The same layers, schedule and callbacks on the JAX backend of Keras, in a process of its own."""

import importlib.util
import json

import pytest

from tests.support.process import JAX, OTHERS_ASIDE, run_python

if importlib.util.find_spec("jax") is None:
    pytest.skip("jax is not installed (pip install keras_lowbit[test])", allow_module_level=True)

TRAIN = """
import json, pathlib, sys
import keras, numpy as np
from tests.support.events import read_events
from tests.support.layer_zoo import ZOO
from keras_lowbit import callbacks, layers
from keras_lowbit.layers import to_numpy
from keras_lowbit.quantizers import ActivationRange, Binary, Stochastic, Ternary, Uniform

assert keras.backend.backend() == "jax"
folder, rng, report = pathlib.Path(sys.argv[1]), np.random.default_rng(0), {}
axes_of = {"depthwise": (2, 3), "transpose": (2,)}
for name, (make, stock, shape) in ZOO.items():
    layer, stock, values = make(kernel_quantizer=Ternary()), stock(), rng.normal(size=(3, *shape)).astype("float32")
    layer(values), stock.build(values.shape)
    stock.kernel.assign(Ternary().encode(layer.kernel, {}, axes_of.get(name.split()[0], (-1,))).real)
    report[name] = float(np.abs(np.asarray(layer(values)) - np.asarray(stock(values))).max())

keras.utils.set_random_seed(3)
inputs = keras.Input((8, 8, 2))
hidden = layers.QuantActivation()(inputs)
hidden = layers.QuantConv2D(4, 3, kernel_quantizer=Stochastic(Ternary()), output_quantizer="activation")(hidden)
hidden = layers.QuantDepthwiseConv2D(3, kernel_quantizer=Uniform(4, calibration="mse"), output_quantizer="activation")(hidden)
hidden = layers.QuantConv2DTranspose(4, 2, kernel_quantizer=Stochastic(Binary(), "element"))(hidden)
hidden = keras.layers.Flatten()(hidden)
model = keras.Model(inputs, layers.QuantDense(3, kernel_quantizer=Stochastic(Binary()))(hidden))
model.compile(keras.optimizers.Nadam(0.01), "mse")
images, targets = rng.normal(size=(16, 8, 8, 2)).astype("float32"), rng.normal(size=(16, 3)).astype("float32")
before = [to_numpy(weight) for weight in model.trainable_weights]
steps = []
look = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: steps.append(int(model.optimizer.iterations.value)))
events = callbacks.QuantizationSummaries(folder / "logs", every=8)
listeners = [callbacks.RatioSchedule(), callbacks.FreezeRanges(6), look, events]
report["history"] = model.fit(images, targets, batch_size=4, epochs=8, verbose=0, callbacks=listeners).history
report["steps"] = steps
found, _ = read_events(folder / "logs")
report["events"] = {tag: [float(value) for value in found[tag].values()] for tag in ("ratio", "flips")}
report["moved"] = [bool(np.any(to_numpy(now) != old)) for now, old in zip(model.trainable_weights, before)]
report["ranges"] = {path: float(host.state["count"].value) for path, host in layers.hosts(model) if "count" in host.state}
seeds = lambda model: [to_numpy(host.seed_generator.state).tolist() for _, host in layers.hosts(model) if host.seed_generator]
report["seeds"] = seeds(model)

# Ratio 0 and 1 under one compiled step are exact on JAX too.
quantizer, kernel = Stochastic(Ternary()), rng.normal(size=(3, 3, 2, 8)).astype("float32")
for ratio, want in ((0.0, kernel), (1.0, np.asarray(Ternary()(kernel, {}, (-1,))))):
    state = {"ratio": keras.ops.convert_to_tensor(ratio), "seed": keras.random.SeedGenerator(1)}
    report[f"ratio {ratio}"] = bool(np.array_equal(np.asarray(quantizer(kernel, state, (-1,), True)), want))

model.save(folder / "jax.keras")
again = keras.saving.load_model(folder / "jax.keras")
report["reloaded"] = bool(np.array_equal(model.predict(images, verbose=0), again.predict(images, verbose=0)))
report["reloaded seeds"] = seeds(again) == seeds(model)
for network in (model, again):
    network.train_on_batch(images[:4], targets[:4])
report["trained on"] = bool(np.array_equal(model.predict(images, verbose=0), again.predict(images, verbose=0)))

image = rng.normal(size=(2, 4, 8, 8)).astype("float32")
options = {"data_format": "channels_first", "padding": "same"}
first = layers.QuantConv2D(6, 3, bias_quantizer=Uniform(8, "tensor"), **options)
plain = keras.layers.Conv2D(6, 3, **options)
first(image), plain.build(image.shape)
first.bias.assign(rng.normal(size=6))
plain.kernel.assign(first.kernel), plain.bias.assign(first.bias_host.encode(first.bias).real)
report["channels first"] = float(np.abs(np.asarray(first(image)) - np.asarray(plain(image))).max())
np.savez(folder / "jax.npz", images=images, outputs=model.predict(images, verbose=0))
model.save(folder / "jax.keras")
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("jax")


@pytest.fixture(scope="module")
def report(folder):
    return json.loads(run_python(TRAIN, folder, **JAX | {"absent": OTHERS_ASIDE}).splitlines()[-1])


@pytest.mark.slow
def test_every_layer_is_the_stock_layer_with_the_quantized_kernel(report):
    names = [name for name in report if name.split()[0] in {"conv1d", "conv2d", "depthwise", "transpose", "dense"}]
    assert len(names) == 13
    assert {name: report[name] for name in names} == dict.fromkeys(names, 0.0)
    assert report["channels first"] == 0.0


@pytest.mark.slow
def test_the_schedule_drives_a_compiled_fit(report):
    assert report["history"]["ratio"] == [0.5, 0.5, 0.75, 0.75, 0.875, 0.875, 1.0, 1.0]
    assert report["steps"] == [0, 4] * 4
    assert all(report["moved"])
    assert set(report["ranges"].values()) == {24.0}  # six epochs of four steps, then frozen
    assert [seed[1] for seed in report["seeds"]] == [32, 32, 32]
    assert report["history"]["loss"][-1] < report["history"]["loss"][0]


@pytest.mark.slow
def test_event_files_are_written_on_this_backend_too(report):
    assert report["events"]["ratio"] == report["history"]["ratio"]
    assert report["events"]["flips"] == pytest.approx(report["history"]["flip_rate"])


@pytest.mark.slow
@pytest.mark.parametrize("ratio", ["0.0", "1.0"])
def test_ratios_0_and_1_are_exact(report, ratio):
    assert report[f"ratio {ratio}"]


@pytest.mark.slow
def test_a_reloaded_model_has_the_same_bits(report):
    assert report["reloaded"]
    assert report["reloaded seeds"]
    assert report["trained on"]


@pytest.mark.slow
def test_a_file_written_on_jax_loads_on_tensorflow(report, folder):
    import keras
    import numpy as np

    model, data = keras.saving.load_model(folder / "jax.keras"), np.load(folder / "jax.npz")
    # Other convolution kernels, so other sums: a value next to a rounding tie may move one of 255 steps.
    difference = np.abs(model.predict(data["images"], verbose=0) - data["outputs"])
    assert np.median(difference) < 1e-5 * np.abs(data["outputs"]).max()
    assert difference.max() < 0.05 * np.abs(data["outputs"]).max()
