"""Trained thresholds on the JAX backend of Keras, in a process of its own: the same values and gradients, compiled."""

import importlib.util
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowbit import quantizers
from tests.support.process import JAX, run_python

if importlib.util.find_spec("jax") is None:
    pytest.skip("jax is not installed (pip install keras_lowbit[test])", allow_module_level=True)

CASES = {
    "symmetric": {"name": "adjustable_threshold", "base": {"name": "uniform", "bits": 4}},
    "asymmetric": {"name": "adjustable_threshold", "base": "activation", "mode": "asymmetric"},
    "lsq": {"name": "learned_step", "base": {"name": "uniform", "bits": 4}},
    "tqt": {"name": "learned_power_of_two", "base": "activation"},
}
STATE = {
    "symmetric": {"threshold": np.zeros((1, 5)), "factor": np.linspace(0.4, 1.0, 5)[None]},  # 0.4: outside its limits
    "asymmetric": {"minimum": -1.0, "maximum": 2.0, "count": 1.0, "frozen": 1.0, "left": 0.05, "width": 1.0},
    "lsq": {"threshold": np.full((1, 5), 1.5), "factor": np.linspace(0.5, 1.5, 5)[None]},
    "tqt": {"minimum": -1.0, "maximum": 2.0, "count": 1.0, "frozen": 1.0, "log2_factor": -0.3},
}

TRAIN = """
import json, sys
import jax, keras, numpy as np
import keras_lowbit as klb
from keras_lowbit import quantizers

assert keras.backend.backend() == "jax"
data, folder, report = np.load(sys.argv[1], allow_pickle=True), sys.argv[2], {}
for case, config in json.loads(sys.argv[3]).items():
    quantizer = quantizers.get(config)
    axes = () if quantizer.for_activations else (-1,)
    state = {name: np.float32(value) for name, value in data[case].item().items()}

    def total(real, state):
        return (quantizer(real, state, axes, True) * data["upstream"]).sum()

    on_grid = jax.jit(lambda real, state: quantizer(real, state, axes, True))(data["real"], state)
    d_real, d_state = jax.jit(jax.grad(total, (0, 1)))(data["real"], state)
    np.savez(f"{folder}/{case}.npz", on_grid=on_grid, d_real=d_real, **d_state)

keras.utils.set_random_seed(1)
image = keras.Input((8, 8, 3))
x = keras.layers.Conv2D(4, 3, activation="relu")(image)
model = keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
copy, _ = klb.quantize_model(model, "fat-w4")
images = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
klb.calibrate(copy, images, verbose=0)
targets = model.predict(images, verbose=0)
weights = lambda: {v.path: np.asarray(v.value) for v in copy.weights}
for layer in copy.layers:
    if isinstance(layer, klb.layers.QuantizedLayer):
        layer.kernel.trainable = layer.bias.trainable = False  # as FAT does
        layer.kernel_host.state["factor"].assign(0.55 * np.ones(layer.kernel_host.state["factor"].shape))
before = weights()
copy.compile(keras.optimizers.Adam(1e-2), "mse")
report["loss"] = copy.fit(images, targets, epochs=4, verbose=0).history["loss"]
report["moved"] = [path for path, value in weights().items() if np.any(value != before[path])]
copy.save(f"{folder}/jax.keras")
again = keras.saving.load_model(f"{folder}/jax.keras", compile=False)
report["reloaded"] = bool(np.array_equal(copy.predict(images, verbose=0), again.predict(images, verbose=0)))
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def jax_run(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("jax_thresholds"), np.random.default_rng(3)
    arrays = {"real": rng.normal(size=(40, 5)), "upstream": rng.normal(size=(40, 5))}
    arrays = {name: value.astype("float32") for name, value in arrays.items()}
    np.savez(folder / "in.npz", **arrays, **{case: np.array(state, object) for case, state in STATE.items()})
    text = run_python(TRAIN, folder / "in.npz", folder, json.dumps(CASES), **JAX)
    return folder, arrays, json.loads(text.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_tensorflow(jax_run, case):
    folder, arrays, _ = jax_run
    quantizer, got = quantizers.get(CASES[case]), np.load(folder / f"{case}.npz")
    state = {name: tf.constant(np.float32(value)) for name, value in STATE[case].items()}
    real = tf.constant(arrays["real"])
    with tf.GradientTape() as tape:
        tape.watch([real, *state.values()])
        on_grid = quantizer(real, state, () if quantizer.for_activations else (-1,), True)
    specs = quantizer.state_specs((40, 5), () if quantizer.for_activations else (-1,))
    trained = [name for name in state if specs[name].trainable]
    gradients = tape.gradient(on_grid, [real, *(state[name] for name in trained)], tf.constant(arrays["upstream"]))
    # One part in 2^22: XLA may fuse a product and a sum.
    np.testing.assert_allclose(got["on_grid"], on_grid, rtol=2.0**-22)
    np.testing.assert_array_equal(got["d_real"], gradients[0])
    assert trained
    for name, gradient in zip(trained, gradients[1:], strict=True):
        np.testing.assert_allclose(got[name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_fit_trains_thresholds_and_the_file_reloads(jax_run):
    _, _, report = jax_run
    assert any(path.endswith("/factor") for path in report["moved"])
    assert any(path.endswith("/width") or path.endswith("/left") for path in report["moved"])
    assert not any(path.endswith(("/minimum", "/maximum", "/threshold", "/count")) for path in report["moved"])
    assert report["loss"][-1] < report["loss"][0]
    assert report["reloaded"]


@pytest.mark.slow
def test_a_file_written_on_jax_loads_on_tensorflow(jax_run):
    model = keras.saving.load_model(jax_run[0] / "jax.keras", compile=False)
    assert sum(v.path.endswith("/factor") for v in model.trainable_variables) == 2
