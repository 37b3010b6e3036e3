"""How far LiteRT's fast kernels are from its reference kernels, operation by operation.

Each operation runs alone, on many random grids, weights and inputs that fill the int8 range, through three resolvers:
the reference kernels (which our NumPy reference equals), the optimized built-in kernels, and the XNNPACK delegate.

    python -m studies.resolver_differences.measure            # 15 seconds; writes result.json beside this file

The JSON and the table that is printed hold, for each operation and resolver: elements, how many of them differ (percent),
the largest difference in steps, and the share of rounds in which XNNPACK took the operation.
"""

import argparse
import json
import os
import platform
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from keras_lowbit.deploy.graph import GraphBuilder, IntegerGraph, Range
from keras_lowbit.deploy.litert import writer as litert
from keras_lowbit.deploy.litert.format_choice import plan_formats
from keras_lowbit.deploy.litert.weight_formats import as_written
from keras_lowbit.deploy.reference.interpreter import trace

RESOLVERS = {
    "xnnpack": OpResolverType.BUILTIN,
    "optimized": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}
SHAPE = (14, 14, 16)
Case = Callable[[GraphBuilder, str, np.random.Generator], str]


def grid(random: np.random.Generator, scale: float) -> Range:
    """A grid near `scale` with any zero point."""
    return Range(float(np.float32(scale * 2.0 ** random.uniform(-1, 1))), int(random.integers(-128, 128)))


def layer(kind: str, kernel: tuple[int, ...], channels: int, fan_in: int, low: int = -127, **arguments) -> Case:
    """A layer with random weights whose outputs fill about a third of the int8 range."""

    def build(b: GraphBuilder, x: str, random: np.random.Generator) -> str:
        codes = random.integers(low, -low + 1 if low < -2 else 2, kernel).astype(np.int8)
        scales = random.uniform(0.5, 1.5, channels) * 0.01
        spread = float(np.abs(codes.astype(float)).mean()) * 73 * np.sqrt(fan_in)
        out = grid(random, b.tensor(x).range.scale * 0.01 * spread / 40)
        bias = random.integers(-int(spread), int(spread) + 1, channels)
        return getattr(b, kind)(x, codes, scales, bias, out, "y", **arguments)

    return build


def arithmetic(kind: str) -> Case:
    """Two activations of different grids."""

    def build(b: GraphBuilder, x: str, random: np.random.Generator) -> str:
        scale = b.tensor(x).range.scale
        other = b.input("x2", SHAPE, range=grid(random, scale))
        second = b.tensor(other).range.scale
        return getattr(b, kind)(x, other, grid(random, 128 * scale * second if kind == "mul" else 2 * scale), "y")

    return build


def unary(kind: str, wider: float = 1.0, **arguments) -> Case:
    """One activation to another grid."""

    def build(b: GraphBuilder, x: str, random: np.random.Generator) -> str:
        return getattr(b, kind)(x, grid(random, b.tensor(x).range.scale * wider), "y", **arguments)

    return build


def kept(kind: str, **arguments) -> Case:
    """An operation that chooses its own output grid."""
    return lambda b, x, random: getattr(b, kind)(x, "y", **arguments)


CASES: dict[str, Case] = {
    "conv2d 3x3": layer("conv2d", (3, 3, 16, 24), 24, 144, padding="same"),
    "conv2d 1x1": layer("conv2d", (1, 1, 16, 24), 24, 16),
    "conv2d 3x3, 4 groups": layer("conv2d", (3, 3, 4, 24), 24, 36, padding="same", groups=4),
    "depthwise_conv2d 3x3": layer("depthwise_conv2d", (3, 3, 16, 1), 16, 9, padding="same"),
    "transpose_conv 3x3": layer("transpose_conv", (3, 3, 24, 16), 24, 64, strides=(2, 2), padding="same"),
    "fully_connected": layer("fully_connected", (16, 24), 24, 16),
    "fully_connected, int4": layer("fully_connected", (16, 24), 24, 16, low=-7),
    "fully_connected, int2": layer("fully_connected", (16, 24), 24, 16, low=-2),
    "add": arithmetic("add"),
    "sub": arithmetic("sub"),
    "mul": arithmetic("mul"),
    "max_pool2d": kept("max_pool2d"),
    "average_pool2d, valid": kept("average_pool2d", pool_size=(3, 3)),
    "average_pool2d, same": kept("average_pool2d", pool_size=(3, 3), padding="same"),
    "mean": unary("mean", 0.3, keepdims=True),
    "mean, last axis": unary("mean", 0.3, axes=(3,)),
    "resize_nearest": kept("resize_nearest", size=(28, 28)),
    "resize_bilinear": kept("resize_bilinear", size=(28, 28)),
    "resize_bilinear, 3/2": kept("resize_bilinear", size=(21, 21)),
    "softmax": kept("softmax"),
    "logistic": kept("logistic"),
    "tanh": kept("tanh"),
    "relu": unary("relu"),
    "relu6": unary("relu6"),
    "leaky_relu": unary("leaky_relu", alpha=0.2),
    "hard_swish": unary("hard_swish"),
    "quantize (int8 to int8)": unary("quantize"),
    "concatenation": lambda b, x, random: b.concatenation([x, x], "y"),
    "pad": kept("pad", paddings=[[1, 1], [1, 1], [0, 0]]),
    "reshape": kept("reshape", shape=[-1]),
    "transpose": kept("transpose", perm=[0, 3, 1, 2]),
    "strided_slice": kept("strided_slice", begin=[1, 1, 0], end=[13, 13, 16]),
}


def graph_of(case: Case, random: np.random.Generator) -> IntegerGraph:
    """One operation on its own."""
    builder = GraphBuilder()
    x = builder.input("x", SHAPE, range=grid(random, 0.05))
    return builder.build([case(builder, x, random)])


def run(content: bytes, inputs: dict[str, np.ndarray], resolver: OpResolverType) -> tuple[np.ndarray, bool]:
    """The output, and whether a delegate took the operation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], inputs[detail["name"]])
    interpreter.invoke()
    delegated = any("DELEGATE" in op["op_name"].upper() for op in interpreter._get_ops_details())
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"]), delegated


def measure(name: str, case: Case, rounds: int) -> dict[str, dict[str, float]]:
    """Counts of one operation, by resolver."""
    weights = name.rsplit(" ", 1)[-1] if name.endswith(("int4", "int2")) else "int8"
    counts = {r: {"elements": 0, "differing": 0, "largest_step": 0, "delegated": 0} for r in RESOLVERS}
    for seed in range(rounds):
        random = np.random.default_rng(seed)
        graph = graph_of(case, random)
        inputs = {n: random.integers(-128, 128, (1, *SHAPE), np.int8) for n in graph.inputs}
        content, _ = litert.to_bytes(graph, weights=weights)
        ours = trace(as_written(graph, plan_formats(graph, weights)), inputs)[graph.outputs[0]]
        for resolver, kind in RESOLVERS.items():
            theirs, delegated = run(content, inputs, kind)
            steps = np.abs(theirs.astype(int) - ours)
            count = counts[resolver]
            count["elements"] += steps.size
            count["differing"] += int(np.count_nonzero(steps))
            count["largest_step"] = max(count["largest_step"], int(steps.max()))
            count["delegated"] += delegated / rounds
    for count in counts.values():
        count["percent"] = round(100 * count["differing"] / count["elements"], 3)
        count["delegated"] = round(count["delegated"], 3)
    return counts


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """The results as a Markdown table."""
    lines = ["| operation | reference | optimized | XNNPACK | XNNPACK took it |", "|---|---|---|---|---|"]
    for name, counts in results.items():
        cells = [
            f"{c['percent']:g} %, {c['largest_step']}" if c["differing"] else "0"
            for c in (counts[r] for r in ("reference", "optimized", "xnnpack"))
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {'yes' if counts['xnnpack']['delegated'] == 1 else 'no'} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="random graphs for each operation")
    parser.add_argument("--output", default=str(Path(__file__).with_name("result.json")), help="JSON file to write")
    arguments = parser.parse_args()
    results = {name: measure(name, case, arguments.rounds) for name, case in CASES.items()}
    report = {
        "rounds": arguments.rounds,
        "input_shape": SHAPE,
        "machine": platform.machine(),
        "ai_edge_litert": version("ai-edge-litert"),
        "numpy": np.__version__,
        "operations": results,
    }
    temporary = f"{arguments.output}.part"
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(report, stream, indent=1)
        stream.write("\n")
    os.replace(temporary, arguments.output)
    print(table(results))


if __name__ == "__main__":
    main()
