"""MirroredStrategy on two logical CPUs, in a process of its own: every replica holds the same state."""

import json

import pytest

from tests.support.process import run_python

TRAIN = """
import json
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from keras_lowbit import callbacks, layers
from keras_lowbit.quantizers import Binary, Stochastic, Ternary

keras.utils.set_random_seed(3)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def network(depthwise):
    inputs = keras.Input((6, 6, 2))
    hidden = layers.QuantActivation()(inputs)
    hidden = layers.QuantConv2D(4, 3, kernel_quantizer=Stochastic(Ternary()), output_quantizer="activation")(hidden)
    if depthwise:
        hidden = layers.QuantDepthwiseConv2D(3, kernel_quantizer="uniform", output_quantizer="activation")(hidden)
    hidden = keras.layers.Flatten()(hidden)
    model = keras.Model(inputs, layers.QuantDense(3, kernel_quantizer=Stochastic(Binary(), seed=5))(hidden))
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    return model


def replicas(variable):
    return [value.numpy() for value in strategy.experimental_local_results(variable.value)]


def train(depthwise, samples):
    with strategy.scope():
        model = network(depthwise)
    rng, steps = np.random.default_rng(0), []
    images, targets = (rng.normal(size=(samples, *shape)).astype("float32") for shape in ((6, 6, 2), (3,)))
    look = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: steps.append(int(layers.to_numpy(model.optimizer.iterations)))
    )
    listeners = [callbacks.RatioSchedule(), callbacks.FreezeRanges(6), look]
    history = model.fit(images, targets, batch_size=8, epochs=8, verbose=0, callbacks=listeners).history
    seeds = [host.seed_generator.state for _, host in layers.hosts(model) if host.seed_generator is not None]
    state = [*model.weights, *model.optimizer.variables, *seeds]
    return {
        "state": {v.path: [np.ravel(value).astype(float).tolist() for value in replicas(v)] for v in state},
        "seeds": [seed.path for seed in seeds],
        "history": history,
        "steps": steps,
    }


# 17 = 8 + 8 + 1: in the last step one replica has nothing to do. (Not with a depthwise convolution, whose
# gradient is undefined memory for an empty batch, in stock layers too: TF 2.21.)
print(json.dumps({"even": train(True, 24), "uneven": train(False, 17)}))
"""


@pytest.fixture(scope="module")
def reports():
    # oneDNN's convolutions fail on the empty batch of the last step, those of stock layers too (TF 2.21).
    return json.loads(run_python(TRAIN, TF_ENABLE_ONEDNN_OPTS="0").splitlines()[-1])


@pytest.fixture(params=["even", "uneven"])
def report(request, reports):
    return reports[request.param]


@pytest.mark.slow
def test_every_variable_has_the_same_value_on_both_replicas(report):
    for path, values in report["state"].items():
        assert len(values) == 2, path
        assert values[0] == values[1], path


@pytest.mark.slow
def test_nothing_is_infinite_or_untouched(report):
    assert all(abs(number) < 1e9 for values in report["state"].values() for number in values[0])
    ranges = {path: values[0][0] for path, values in report["state"].items() if path.endswith("/maximum")}
    assert len(ranges) >= 2
    assert all(0 < value < 100 for value in ranges.values())
    # 8 epochs of 3 steps, one draw each, on each replica: the two must not draw twice or differ.
    assert [report["state"][path][0][1] for path in report["seeds"]] == [24, 24]


@pytest.mark.slow
def test_the_schedule_reaches_all_replicas(report):
    assert report["history"]["ratio"] == [0.5, 0.5, 0.75, 0.75, 0.875, 0.875, 1.0, 1.0]
    assert {values[0][0] for path, values in report["state"].items() if path.endswith("/ratio")} == {1.0}
    assert report["steps"] == [0, 3] * 4
    assert {values[0][0] for path, values in report["state"].items() if path.endswith("/frozen")} == {1.0}
