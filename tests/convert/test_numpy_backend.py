"""On Keras' NumPy backend, which cannot train, models are converted and exported, and what needs gradients says so."""

import json

from tests.support.process import run_python

CONVERT = """
import json, sys, warnings
warnings.simplefilter("ignore", UserWarning)  # NumPy has no gradients, Keras says
import keras, numpy as np, keras_lowbit as klb
assert keras.backend.backend() == "numpy"
L, found = keras.layers, {}
images = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype("float32")
layers = [L.Conv2D(4, 3, use_bias=False), L.BatchNormalization(), L.ReLU(), L.Flatten(), L.Dense(2)]
model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
folded = klb.fold_batch_norms(model)
for recipe in ("int8", "fat", "dfp-2w8a-n4"):
    quantized, _ = klb.quantize_model(folded, recipe)
    klb.calibrate(quantized, images, verbose=0)
    klb.correct_biases(quantized, folded, images, verbose=0)
    path = f"{sys.argv[1]}/{recipe}.tflite"
    klb.export_litert(quantized, path)
    found[recipe] = bool(klb.verify(quantized, path, images).ok)
try:
    klb.distill(quantized, folded, images, verbose=0)
except NotImplementedError as error:
    found["distill"] = str(error)
print(json.dumps(found))
"""


def test_conversion_and_export_run_and_distill_says_what_it_needs(tmp_path):
    found = json.loads(run_python(CONVERT, tmp_path, KERAS_BACKEND="numpy").splitlines()[-1])
    assert found.pop("distill").startswith("Keras' NumPy backend has no gradients")
    assert found == {"int8": True, "fat": True, "dfp-2w8a-n4": True}
