"""One network of each family of architectures beside TensorFlow's own full-integer conversion, on the same data.

Our file is in integers where TensorFlow's is, verified, and no more than 1 dB further from the float model.
"""

import warnings

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

import keras_lowbit as klb
from tests.support.family_zoo import FAMILIES, made

pytestmark = pytest.mark.slow
WORSE_DB = 1.0


def tensorflow_int8(model, data):
    """Bytes of TensorFlow's post-training conversion, integers inside and float32 at the ends."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([sample[None]] for sample in data)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter.convert()


def float_operators(content):
    """How many operators of a file compute in float."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    found = 0
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            kind = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            types = {graph.tensors[index].type for index in operator.outputs if index >= 0}
            found += kind not in ("QUANTIZE", "DEQUANTIZE") and schema.TensorType.FLOAT32 in types
    return found


def outputs(content, data):
    """The file's float outputs, one array for each, in the order of the file."""
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    found = []
    for sample in data:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], sample[None])
        interpreter.invoke()
        found.append([interpreter.get_tensor(detail["index"])[0] for detail in interpreter.get_output_details()])
    return [np.stack(part) for part in zip(*found, strict=True)]


def decibels(wanted, found):
    """Signal to noise of the output that is this one: of several of one shape the nearest."""
    errors = [np.mean((wanted.astype(np.float64) - got) ** 2) for got in found if got.shape == wanted.shape]
    return 10 * np.log10(np.mean(wanted.astype(np.float64) ** 2) / (min(errors) + 1e-30))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_worse_than_tensorflows_own_conversion(name, tmp_path):
    model, data = made(name)
    wanted = [np.asarray(part) for part in keras.tree.flatten(model(data))]
    quantized, _ = klb.quantize_model(model, "int8")
    klb.calibrate(quantized, data, verbose=0)
    report = klb.export_litert(quantized, tmp_path / "ours.tflite", io="float32")
    assert klb.verify(quantized, tmp_path / "ours.tflite", data[:4], reference=model).ok
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's own, about names and statistics of its converter
        theirs = tensorflow_int8(model, data)
    ours = (tmp_path / "ours.tflite").read_bytes()
    print(f"{name}: operators in float: {float_operators(ours)}, in TensorFlow's file {float_operators(theirs)}")
    assert float_operators(ours) == 0, report.float_fallbacks
    found = [outputs(content, data) for content in (ours, theirs)]
    for place, want in enumerate(wanted):
        ours, tensorflow = (decibels(want, parts) for parts in found)
        print(f"{name} output {place}: {ours:.1f} dB, TensorFlow's file {tensorflow:.1f} dB")
        assert ours > tensorflow - WORSE_DB
