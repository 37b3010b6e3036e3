"""Small integer graphs, one for each operation, and LiteRT to run them."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from keras_lowbit.deploy.graph import GraphBuilder, Range

GRID, OUT, SHAPE = Range(0.05, 3), Range(0.11, -7), (7, 9, 8)
REFERENCE = OpResolverType.BUILTIN_REF
RESOLVERS = {
    "xnnpack": OpResolverType.AUTO,
    "reference": REFERENCE,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
}


def codes(*shape, low=-127, high=127, seed=1):
    return np.random.default_rng(seed).integers(low, high + 1, shape).astype(np.int8)


def scales(n):
    return np.random.default_rng(2).uniform(1e-3, 4e-3, n).astype(np.float32)


def biases(n):
    return np.random.default_rng(3).integers(-3000, 3000, n)


def weights(*shape, channels):
    return codes(*shape), scales(channels), biases(channels), OUT


def run(content, inputs, resolver=REFERENCE):
    """Outputs and the interpreter. inputs: arrays in the order of the file's inputs."""
    interpreter = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()], interpreter


def model_of(content):
    return schema.ModelT.InitFromPackedBuf(content)


def tensors_of(content):
    return {t.name.decode(): t for t in model_of(content).subgraphs[0].tensors}


def graph_of(make, shape=SHAPE, metadata=None):
    b = GraphBuilder(metadata)
    b.input("x", shape, range=GRID)
    return b.build([make(b)])


def second(b, shape=SHAPE, grid=None):
    return b.input("z", shape, range=grid or Range(0.07, -100))


OPERATIONS = {
    **{
        f"conv2d {a}": lambda b, a=a: b.conv2d("x", *weights(3, 3, 8, 5, channels=5), "y", (2, 1), "same", activation=a)
        for a in (None, "relu", "relu6")
    },
    "conv2d groups": lambda b: b.conv2d("x", *weights(3, 3, 4, 6, channels=6), "y", groups=2),
    "conv2d dilation": lambda b: b.conv2d("x", *weights(3, 2, 8, 6, channels=6), "y", dilation=(2, 3)),
    "conv2d explicit": lambda b: b.conv2d("x", *weights(3, 3, 8, 6, channels=6), "y", (2, 2), ((1, 0), (2, 1))),
    "conv2d no bias": lambda b: b.conv2d("x", codes(3, 3, 8, 6), scales(6), None, OUT, "y"),
    "conv2d one channel": lambda b: b.conv2d("x", *weights(3, 3, 8, 1, channels=1), "y"),
    "depthwise": lambda b: b.depthwise_conv2d(
        "x", *weights(3, 3, 8, 1, channels=8), "y", padding="same", activation="relu6"
    ),
    "depthwise multiplier": lambda b: b.depthwise_conv2d("x", *weights(3, 3, 8, 2, channels=16), "y", (2, 2)),
    "depthwise dilation": lambda b: b.depthwise_conv2d("x", *weights(3, 3, 8, 1, channels=8), "y", dilation=(2, 2)),
    **{
        f"transpose_conv {p} {a}": lambda b, p=p, a=a: b.transpose_conv(
            "x", *weights(3, 2, 5, 8, channels=5), "y", (2, 2), p, activation=a
        )
        for p, a in (("same", None), ("valid", "relu"), ("same", "relu6"))
    },
    "transpose_conv size": lambda b: b.transpose_conv(
        "x", *weights(3, 3, 5, 8, channels=5), "y", (2, 2), "same", (13, 17)
    ),
    "transpose_conv gaps": lambda b: b.transpose_conv("x", *weights(2, 2, 5, 8, channels=5), "y", (2, 3), "same"),
    "dense": lambda b: b.fully_connected(b.mean("x", GRID, "m"), *weights(8, 5, channels=5), "y"),
    "dense 4-d": lambda b: b.fully_connected("x", *weights(8, 5, channels=5), "y", activation="relu"),
    **{
        f"{op} {kind}": lambda b, op=op, other=other: getattr(b, op)("x", other(b), OUT, "y", activation="relu")
        for op in ("add", "sub", "mul")
        for kind, other in {
            "tensors": second,
            "broadcast": lambda b: second(b, (1, 1, 8)),
            "constant": lambda b: b.constant("c", codes(8), 0.03, 4),
            "scalar": lambda b: b.constant("c", codes(1), 0.03, 4),
        }.items()
    },
    "sub from constant": lambda b: b.sub(b.constant("c", codes(8), 0.03, 4), "x", OUT, "y"),
    "mul up": lambda b: b.mul("x", "x", Range(0.001, 0), "y"),
    **{
        f"{op} {kind}": lambda b, op=op, other=other: b.operation(op, ("x", other(b)), "y")
        for op in ("maximum", "minimum")
        for kind, other in {
            "tensors": lambda b: second(b, grid=GRID),
            "broadcast": lambda b: second(b, (1, 1, 8), GRID),
            "constant": lambda b: b.constant("c", codes(8), *GRID),
            "scalar": lambda b: b.constant("c", codes(1), *GRID),
        }.items()
    },
    "concatenation": lambda b: b.concatenation(["x", second(b, (7, 9, 3), GRID), "x"], "y"),
    "concatenation rows": lambda b: b.concatenation(["x", second(b, (2, 9, 8), GRID)], "y", 1),
    "max_pool2d": lambda b: b.max_pool2d("x", "y", (2, 3), activation="relu"),
    "max_pool2d same": lambda b: b.max_pool2d("x", "y", (3, 3), (2, 2), "same"),
    "average_pool2d": lambda b: b.average_pool2d("x", "y", (2, 3)),
    "average_pool2d same": lambda b: b.average_pool2d("x", "y", (3, 3), (2, 2), "same"),
    "mean": lambda b: b.mean("x", OUT, "y"),
    "mean kept": lambda b: b.mean("x", OUT, "y", keepdims=True),
    "mean channels": lambda b: b.mean("x", OUT, "y", (3,)),
    "pad": lambda b: b.pad("x", "y", [(1, 2), (0, 3), (1, 0)]),
    "reshape": lambda b: b.reshape("x", "y", (-1, 8)),
    "transpose": lambda b: b.transpose("x", "y", (0, 3, 1, 2)),
    "strided_slice": lambda b: b.strided_slice("x", "y", (1, 0, 2), (None, -1, 8), (2, 1, 3)),
    **{
        f"resize_{kind} {half} {corners}": lambda b, kind=kind, half=half, corners=corners: getattr(
            b, f"resize_{kind}"
        )("x", "y", (14, 5), half, corners)
        for kind in ("nearest", "bilinear")
        for half, corners in ((True, False), (False, False), (False, True))
    },
    "softmax": lambda b: b.softmax("x", "y"),
    "logistic": lambda b: b.logistic("x", "y"),
    "tanh": lambda b: b.tanh("x", "y"),
    "relu": lambda b: b.relu("x", OUT, "y"),
    "relu6": lambda b: b.relu6("x", OUT, "y"),
    "leaky_relu": lambda b: b.leaky_relu("x", OUT, "y", 0.1),
    "hard_swish": lambda b: b.hard_swish("x", OUT, "y"),
    "quantize": lambda b: b.quantize("x", OUT, "y"),
    "dequantize": lambda b: b.dequantize("x", "y"),
}
