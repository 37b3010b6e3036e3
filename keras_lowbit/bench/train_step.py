"""keras-lowbit bench train_step: time of a training step, ours and TFMOT's default 8-bit QAT, as ratios to the float step.

    keras-lowbit bench train_step --recipe int8 --output train_step.json

Needs the extra `tfmot`. Ours runs in Keras 3 and in TFMOT. All models are the same ResNet-20 (CIFAR-10, projection
shortcuts) with the same data, interleaved in one run on one thread. The clock counts the processor time of this process,
so that other work on the machine disturbs little; --clock wall counts seconds.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from keras_lowbit import recipes
from keras_lowbit.bench.machine import machine
from keras_lowbit.bench.output import check_flag, define_output, define_repeats, write_report
from keras_lowbit.bench.timing import interleaved
from keras_lowbit.convert import quantize_model
from keras_lowbit.tables import table

FLOAT = "float"
CLOCKS = {"process": time.process_time, "wall": time.perf_counter}

FLAGS = flags.FlagValues()
define_output(FLAGS)
define_repeats(FLAGS, 15, "step")
flags.DEFINE_multi_string("recipe", ["int8", "sq-twn"], "recipe to time", flag_values=FLAGS)
check_flag(FLAGS, "recipe", lambda names: [recipes.get(name) for name in names])
flags.DEFINE_integer("batch_size", 64, "images of a step", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_bool("xla", True, "time the models compiled by XLA too", flag_values=FLAGS)
flags.DEFINE_integer("threads", 1, "threads of TensorFlow; 0 for all", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_enum("clock", "process", list(CLOCKS), "processor time of this process, or seconds", flag_values=FLAGS)
flags.DEFINE_string("note", "", "what else the machine was doing", flag_values=FLAGS)


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """One model's step. Milliseconds: median, 10th and 90th percentile. ratio: median over the repeats of its time
    divided by that of the float model of the same front end in the same repeat.
    """

    front_end: str
    model: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    ratio: float


def resnet20(kit: Any) -> Any:
    """ResNet-20 for 32x32 RGB and 10 classes in `kit`, which is `keras` or `tf_keras`: logits out, projection shortcuts."""
    layers = kit.layers

    def conv_bn(features: Any, width: int, size: int, stride: int) -> Any:
        features = layers.Conv2D(width, size, stride, padding="same", use_bias=False)(features)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(features)

    inputs = kit.Input((32, 32, 3))
    features = layers.ReLU()(conv_bn(inputs, 16, 3, 1))
    for width, stride in ((16, 1), (16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1)):
        main = layers.ReLU()(conv_bn(features, width, 3, stride))
        main = conv_bn(main, width, 3, 1)
        shortcut = features if stride == 1 else conv_bn(features, width, 1, 2)
        features = layers.ReLU()(layers.Add()([main, shortcut]))
    return kit.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(features)))


def keras3_models(names: Sequence[str]) -> dict[str, Any]:
    """Float, and with each recipe's weights alone and with its 8-bit activations."""
    models = {FLOAT: resnet20(keras)}
    for name in names:
        recipe = recipes.get(name)
        models[f"{name}, weights"] = quantize_model(resnet20(keras), recipe.replace(activations=None))[0]
        models[f"{name}, weights and activations"] = quantize_model(resnet20(keras), recipe)[0]
    return models


def tf_keras_models(names: Sequence[str]) -> dict[str, Any]:
    """The same through TFMOT, and TFMOT's own default."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    from keras_lowbit import tfmot as klt

    default = "TFMOT default 8 bits, weights and activations"
    models = {FLOAT: resnet20(tf_keras), default: tfmot.quantization.keras.quantize_model(resnet20(tf_keras))}
    for name in names:
        recipe = recipes.get(name)
        models[f"{name}, weights"] = klt.quantize_model(resnet20(tf_keras), recipe.replace(activations=None))
        models[f"{name}, weights and activations"] = klt.quantize_model(resnet20(tf_keras), recipe)
    return models


def step_of(model: Any, kit: Any, batch_size: int, jit_compile: bool | None) -> Callable[[], None]:
    """A training step (SGD with momentum, cross entropy) on one fixed batch, ready to be timed."""
    loss = kit.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kit.optimizers.SGD(0.01, momentum=0.9), loss, jit_compile=jit_compile)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch_size, 32, 32, 3)).astype(np.float32)
    labels = rng.integers(0, 10, batch_size)
    return lambda: model.train_on_batch(images, labels)


def train_steps(
    names: Sequence[str] = ("int8", "sq-twn"),
    batch_size: int = 64,
    repeats: int = 15,
    xla: bool = True,
    clock: str = "process",
) -> list[TrainStep]:
    """Time every model, interleaved. names: recipes.   xla: Keras 3 compiled by XLA too, which is its default."""
    import tf_keras

    groups: dict[str, dict[str, Callable[[], None]]] = {}
    for front_end, jit_compile in (("Keras 3, XLA", True), ("Keras 3, no XLA", False)):
        if xla or not jit_compile:
            models = keras3_models(names)
            groups[front_end] = {name: step_of(m, keras, batch_size, jit_compile) for name, m in models.items()}
    models = tf_keras_models(names)
    groups["tf_keras"] = {name: step_of(model, tf_keras, batch_size, None) for name, model in models.items()}
    labels = [(front_end, name) for front_end, steps in groups.items() for name in steps]
    times = interleaved([groups[front_end][name] for front_end, name in labels], repeats, warmup=2, clock=CLOCKS[clock])
    return [_row(labels, times, index) for index in range(len(labels))]


def _row(labels: list[tuple[str, str]], times: np.ndarray, index: int) -> TrainStep:
    front_end, name = labels[index]
    ratio = np.median(times[index] / times[labels.index((front_end, FLOAT))])
    low, median, high = (round(float(value), 2) for value in np.percentile(times[index], (10, 50, 90)))
    return TrainStep(front_end, name, median, low, high, round(float(ratio), 3))


def run(values: Any) -> int:
    """Measures, prints the table and writes it as JSON."""
    tf.config.threading.set_intra_op_parallelism_threads(values.threads)
    tf.config.threading.set_inter_op_parallelism_threads(values.threads)
    rows = train_steps(values.recipe, values.batch_size, values.repeats, values.xla, values.clock)
    print(table([field.name for field in dataclasses.fields(TrainStep)], [dataclasses.astuple(row) for row in rows]))
    packages = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization")
    conditions = {name: values[name].value for name in ("batch_size", "repeats", "threads", "clock", "note")}
    about = {"machine": machine() | {name: version(name) for name in packages}, **conditions}
    write_report(values.output, {**about, "rows": [dataclasses.asdict(row) for row in rows]})
    return 0
