"""What importing does to a process: the library alone nothing, its front end what TFMOT does; two methods in one model."""

import numpy as np
import pytest

from tests.support.process import run_python

CLEAN = """
import os, sys
before = dict(os.environ)
assert "TF_USE_LEGACY_KERAS" not in before
import keras_lowbit, keras_lowbit.bench.train_step
from keras_lowbit.callbacks import RatioSchedule
new = {key for key in os.environ if os.environ.get(key) != before.get(key)}
assert not {key for key in new if "KERAS" in key}, new
for name in ("tf_keras", "tensorflow_model_optimization", "keras_lowbit.tfmot"):
    assert name not in sys.modules, name
import tensorflow as tf, keras
assert tf.keras.__version__.startswith("3."), tf.keras.__version__
assert tf.keras.layers.Dense is keras.layers.Dense
print("clean")
"""

BOTH = """
import os
import keras_lowbit.tfmot
import keras, numpy as np, keras_lowbit as klb, tensorflow as tf, tf_keras
assert tf.keras.layers.Dense is tf_keras.layers.Dense  # TFMOT's import changed the meaning of tf.keras ...
x = keras.Input((6, 6, 3))  # ... and of nothing that the library uses: a float subgraph goes through TensorFlow's converter
y = keras.layers.Dense(3)(keras.layers.Flatten()(keras.layers.Activation("elu")(keras.layers.Conv2D(4, 3)(x))))
model, _ = klb.quantize_model(keras.Model(x, y), "int8")
images = np.random.default_rng(0).random((8, 6, 6, 3), dtype="float32")
klb.calibrate(model, images)
klb.export_litert(model, os.environ["OUT_FILE"])
assert klb.verify(model, os.environ["OUT_FILE"], images).max_layer_steps <= 1
print("both")
"""

BACKEND = """
try:
    import keras_lowbit.tfmot
except ImportError as error:
    print(error)
"""


def lines(script, monkeypatch, **environment):
    monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    return run_python(script, **environment).strip().splitlines()


def test_importing_the_library_leaves_environment_and_tf_keras_alone(monkeypatch):
    assert lines(CLEAN, monkeypatch)[-1] == "clean"


def test_both_front_ends_work_in_one_process(monkeypatch, tmp_path):
    assert lines(BOTH, monkeypatch, OUT_FILE=str(tmp_path / "m.tflite"))[-1] == "both"


def test_another_backend_is_refused_in_words(monkeypatch):
    pytest.importorskip("jax")
    assert "computes with TensorFlow, but Keras runs on 'jax'" in lines(BACKEND, monkeypatch, KERAS_BACKEND="jax")[-1]


# Five-bit powers of two reach 128, which does not fit int8: export says what became of them.
@pytest.mark.filterwarnings("ignore:.*codes beyond 127:UserWarning")
def test_layers_of_two_methods_train_together_and_export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images, labels = rng.random((64, 32, 32, 3), dtype="float32"), rng.integers(0, 10, 64)

    import tensorflow_model_optimization as tfmot
    import tf_keras

    import keras_lowbit as klb
    import keras_lowbit.tfmot as klt

    annotate = tfmot.quantization.keras.quantize_annotate_layer
    model = tf_keras.Sequential(
        [
            tf_keras.layers.Input((32, 32, 3)),
            annotate(tf_keras.layers.Conv2D(16, 3), klt.SQQuantizeConfig("ternary")),
            tf_keras.layers.ReLU(),
            tf_keras.layers.Flatten(),
            annotate(tf_keras.layers.Dense(10), klt.INQQuantizeConfig(bits=5)),
        ]
    )
    with klt.scope():
        model = tfmot.quantization.keras.quantize_apply(model)
    model.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images, labels, epochs=4, callbacks=klt.callbacks.for_model(model, epochs=4), verbose=0)
    klb.export_litert(klt.to_keras3(model), "m.tflite")

    twin = klt.to_keras3(model)
    report = klb.verify(twin, "m.tflite", images[:4])
    assert report.max_layer_steps <= 1
    # The input's range is TFMOT's own here, equal up to rounding: a value in a thousand may land one step away.
    assert (np.asarray(twin(images)) == np.asarray(model(images))).mean() > 0.99
    convolution, dense = (
        np.unique(q.codes) for q in klb.quantized_weights(twin).values()
    )  # names count up in a process
    assert set(convolution) <= {-1, 0, 1}
    assert all(code == 0 or abs(int(code)) & (abs(int(code)) - 1) == 0 for code in dense)
