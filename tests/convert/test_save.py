"""Quantized models saved and loaded again elsewhere, with nothing but `import keras_lowbit`."""

import keras
import numpy as np

import keras_lowbit as klb
from tests.support import model_zoo
from tests.support.model_zoo import MODELS, inputs_of, randomize
from tests.support.process import run_python

_RELOAD = """
import sys
import keras
import numpy as np
import keras_lowbit

for folder in sys.argv[1:]:
    model = keras.saving.load_model(folder + "/model.keras")
    model.jit_compile = folder == sys.argv[1]
    model.run_eagerly = folder != sys.argv[1]
    stored = np.load(folder + "/data.npz")
    parts = [stored[f"in{index}"] for index in range(len(model.inputs))]
    inputs = keras.tree.pack_sequence_as(model.input, parts)
    outputs = keras.tree.flatten(model.predict(inputs, verbose=0))
    for index, output in enumerate(outputs):
        np.testing.assert_array_equal(output, stored[f"out{index}"], err_msg=folder)
    print(model.name, len(outputs))
"""


def _write(model, folder, compiled):
    folder.mkdir()
    inputs = inputs_of(model)
    model.save(folder / "model.keras")
    model.jit_compile, model.run_eagerly = compiled, not compiled
    parts = {f"in{index}": part for index, part in enumerate(keras.tree.flatten(inputs))}
    outputs = keras.tree.flatten(model.predict(inputs, verbose=0))
    np.savez(folder / "data.npz", **parts, **{f"out{index}": part for index, part in enumerate(outputs)})


def test_saved_models_predict_the_same_bits_in_a_process_that_knows_no_custom_scope(tmp_path):
    folders = []
    for name, make in MODELS.items():
        model = randomize(make())
        recipe = "sq-twn" if len(folders) % 2 else "int8"
        copy, _ = klb.quantize_model(model, recipe)
        klb.calibrate(copy, inputs_of(copy), verbose=0)
        # XLA, the default of predict, for one of them; eager is quicker.
        _write(copy, tmp_path / name, compiled=not folders)
        folders.append(tmp_path / name)
    lines = run_python(_RELOAD, *folders).splitlines()
    assert [line.split()[0] for line in lines if line.split()[-1].isdigit()] == [MODELS[name]().name for name in MODELS]


def test_a_loaded_model_can_be_quantized_and_calibrated_again(tmp_path):
    copy, _ = klb.quantize_model(randomize(model_zoo.nested_twice()), "int8")
    inputs = inputs_of(copy)
    ranges = klb.calibrate(copy, inputs, verbose=0)
    copy.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert klb.calibrate(loaded, inputs, verbose=0) == ranges
    again, _ = klb.quantize_model(loaded, "int8")
    assert klb.calibrate(again, inputs, verbose=0) == ranges
    assert list(klb.quantized_weights(again)) == list(klb.quantized_weights(copy))
