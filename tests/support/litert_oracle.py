"""LiteRT's own interpreter as the oracle: every tensor of an integer graph, by name."""

import warnings

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from keras_lowbit.deploy.graph.tensors import CODES
from keras_lowbit.deploy.litert import writer as litert
from keras_lowbit.deploy.litert.format_choice import plan_formats
from keras_lowbit.deploy.litert.weight_formats import as_written
from keras_lowbit.deploy.reference.interpreter import trace

REFERENCE = OpResolverType.BUILTIN_REF


def run_litert(content, inputs, resolver=REFERENCE):
    """name -> array for every tensor of a .tflite file; inputs by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # preserving all tensors is what we are here for
        interpreter = Interpreter(
            model_content=content,
            num_threads=1,
            experimental_op_resolver_type=resolver,
            experimental_preserve_all_tensors=True,
        )
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], inputs[detail["name"]])
    interpreter.invoke()
    return {d["name"]: interpreter.get_tensor(d["index"]) for d in interpreter.get_tensor_details() if d["name"]}


def differing_elements(graph, inputs, weights="int8"):
    """name -> number of elements in which the NumPy reference and LiteRT's reference kernels differ."""
    batch = len(next(iter(inputs.values())))
    codes = {name: kind for name in graph.inputs if (kind := graph.tensors[name].dtype) in CODES}  # not bytes
    content, _ = litert.to_bytes(graph, weights=weights, io=codes, batch_size=batch)
    ours = trace(as_written(graph, plan_formats(graph, weights)), inputs)
    theirs = run_litert(content, inputs)
    assert all(ours[n].shape == theirs[n].shape and ours[n].dtype == theirs[n].dtype for n in ours)
    return {n: int(np.count_nonzero(ours[n] != theirs[n])) for n in ours}


def float_model(builtin, shapes, out_shape):
    """Bytes of a float .tflite with one operator, for subgraphs. builtin: a BuiltinOperator name without options."""
    graph = schema.SubGraphT()
    graph.tensors = [_float_tensor(f"t{i}", s) for i, s in enumerate([*shapes, out_shape])]
    graph.inputs, graph.outputs = list(range(len(shapes))), [len(shapes)]
    operator, code = schema.OperatorT(), schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, builtin)
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
    operator.inputs, operator.outputs = graph.inputs, graph.outputs
    graph.operators = [operator]
    return pack(graph, [code])


def _float_tensor(name, shape):
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type = name, list(shape), schema.TensorType.FLOAT32
    return tensor


def pack(graph, codes):
    """A .tflite file of one subgraph."""
    import flatbuffers

    model = schema.ModelT()
    model.version, model.subgraphs, model.operatorCodes, model.buffers = 3, [graph], codes, [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
