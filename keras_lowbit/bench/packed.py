"""keras-lowbit bench packed: measures int8, int4 and int2 weights of dense layers and 1x1 convolutions here, for
weights="auto".

    keras-lowbit bench packed --output latencies.json
    klb.export_litert(model, "q.tflite", weights=klb.deploy.LatencyTable.load("latencies.json"))

int8 is what an int8 file has (CONV_2D for a 1x1 convolution, FULLY_CONNECTED for a dense layer), int4 and int2 are
FULLY_CONNECTED with packed weights. One layer a file, XNNPACK delegate, interleaved repeats, medians.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from keras_lowbit.bench.machine import machine
from keras_lowbit.bench.output import define_output, define_repeats
from keras_lowbit.bench.timing import calls_for, interleaved
from keras_lowbit.deploy.graph import GraphBuilder, IntegerGraph, Range
from keras_lowbit.deploy.interpreters import make_interpreter
from keras_lowbit.deploy.litert import writer as litert
from keras_lowbit.deploy.litert.format_choice import LatencyTable, LayerLatency
from keras_lowbit.files import atomic_write

FLAGS = flags.FlagValues()
define_output(FLAGS)
define_repeats(FLAGS, 40, "layer")
flags.DEFINE_integer("threads", 1, "threads of LiteRT", lower_bound=1, flag_values=FLAGS)

# (pixels, input channels, output channels): classifiers, and the pointwise layers of MobileNets at 224 px.
SHAPES = (
    *((1, 64, 64), (1, 256, 256), (1, 1024, 1024), (1, 1280, 1000), (1, 4096, 1024)),
    *((49, 160, 960), (49, 960, 160), (49, 320, 1280), (196, 64, 384), (196, 384, 96), (196, 256, 256)),
    *((784, 32, 192), (784, 192, 64), (3136, 24, 144), (3136, 144, 24), (12544, 16, 96), (12544, 32, 16)),
)
KINDS = ("int8", "int4", "int2")


def layer(pixels: int, inputs: int, outputs: int) -> IntegerGraph:
    """A graph of one layer with codes in -1..1: a dense layer for one pixel, else a 1x1 convolution."""
    rng, builder = np.random.default_rng(0), GraphBuilder()
    codes = rng.integers(-1, 2, (1, 1, inputs, outputs)).astype(np.int8)
    scales, bias, grid = np.full(outputs, 0.02, np.float32), rng.integers(-500, 500, outputs), Range(0.05, 3)
    if pixels == 1:
        x = builder.input("x", (inputs,), range=grid)
        return builder.build([builder.fully_connected(x, codes[0, 0], scales, bias, Range(0.1, 0), "y")])
    side = int(np.sqrt(pixels))
    x = builder.input("x", (side, pixels // side, inputs), range=grid)
    return builder.build([builder.conv2d(x, codes, scales, bias, Range(0.1, 0), "y")])


def measure(
    shapes: Sequence[tuple[int, int, int]] = SHAPES, repeats: int = 40, threads: int = 1, milliseconds: float = 2.0
) -> LatencyTable:
    """The table of these shapes. milliseconds: each of the repeats runs a layer for about so long."""
    rows = []
    for shape in shapes:
        graph, runs = layer(*shape), []
        for kind in KINDS:
            interpreter = make_interpreter("xnnpack", threads, model_content=litert.to_bytes(graph, weights=kind)[0])
            runs.append(interpreter.invoke)
        inner = [calls_for(run, milliseconds) for run in runs]
        medians = np.median(interleaved(runs, repeats, 3, inner), axis=1)
        rows.append(LayerLatency(*shape, *(round(float(value), 6) for value in medians)))
    return LatencyTable(tuple(rows), {**machine(), "threads": threads, "repeats": repeats})


def run(values: Any) -> int:
    """Measures, prints the rows and writes the table."""
    found = measure(repeats=values.repeats, threads=values.threads)
    for row in found.rows:
        ratios = ", ".join(f"{kind} {row.ratio(kind):.2f}" for kind in KINDS[1:])
        print(
            f"{row.pixels:>6} pixels {row.inputs:>5} -> {row.outputs:<5} int8 {row.int8:8.4f} ms, times int8: {ratios}"
        )
    atomic_write(values.output, found.to_json().encode())
    return 0
