"""keras-lowbit bench packed: measures int8, int4 and int2 weights of dense layers and convolutions here, for
weights="auto".

    keras-lowbit bench packed --output latencies.json
    klb.export_litert(model, "q.tflite", weights=klb.deploy.LatencyTable.load("latencies.json"))

int8 is what an int8 file has (CONV_2D for a 1x1 convolution, FULLY_CONNECTED for a dense layer), int4 and int2 are
FULLY_CONNECTED with packed weights; other convolutions and depthwise ones have int4 alone. One layer a file, XNNPACK
delegate, interleaved repeats, medians.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from keras_lowbit.bench.machine import machine
from keras_lowbit.bench.output import define_output, define_repeats
from keras_lowbit.bench.timing import calls_for, interleaved
from keras_lowbit.deploy.graph import GraphBuilder, IntegerGraph, Range
from keras_lowbit.deploy.interpreters import make_interpreter
from keras_lowbit.deploy.litert import writer as litert
from keras_lowbit.deploy.litert.format_choice import LatencyTable, LayerLatency
from keras_lowbit.deploy.litert.target import named_target
from keras_lowbit.files import atomic_write

FLAGS = flags.FlagValues()
define_output(FLAGS)
define_repeats(FLAGS, 40, "layer")
flags.DEFINE_integer("threads", 1, "threads of LiteRT", lower_bound=1, flag_values=FLAGS)


class Shape(NamedTuple):
    """One layer, by the fields of `LayerLatency`. outputs: of a depthwise convolution those for each input."""

    pixels: int
    inputs: int
    outputs: int
    op: str = "FULLY_CONNECTED"
    taps: int = 1
    groups: int = 1

    @property
    def kinds(self) -> tuple[str, ...]:
        """The formats that weights of the layer go into, int8 first."""
        return named_target("litert").weights_of(self.op)[::-1]


# Classifiers, and the pointwise layers of MobileNets at 224 px.
DENSE = (
    *((1, 64, 64), (1, 256, 256), (1, 1024, 1024), (1, 1280, 1000), (1, 4096, 1024)),
    *((49, 160, 960), (49, 960, 160), (49, 320, 1280), (196, 64, 384), (196, 384, 96), (196, 256, 256)),
    *((784, 32, 192), (784, 192, 64), (3136, 24, 144), (3136, 144, 24), (12544, 16, 96), (12544, 32, 16)),
)
# Of ResNets, first layers and small images; with groups; depthwise.
CONVOLUTIONS = (
    *(
        (3136, 64, 64, 9),
        (784, 128, 128, 9),
        (196, 256, 256, 9),
        (49, 512, 512, 9),
        (12544, 3, 32, 9),
        (1024, 16, 16, 9),
    ),
    *((256, 32, 32, 9), (64, 64, 64, 9), (196, 64, 64, 25), (784, 127, 256, 1), (3136, 33, 64, 1)),
)
GROUPED = ((784, 8, 128, 9, 16), (196, 32, 128, 9, 4), (196, 4, 128, 9, 32))
DEPTHWISE = ((12544, 32, 1, 9), (3136, 144, 1, 9), (196, 384, 1, 9), (49, 960, 1, 9), (196, 384, 1, 25))
SHAPES = (
    *(Shape(*sizes) for sizes in DENSE),
    *(Shape(*sizes[:3], "CONV_2D", *sizes[3:]) for sizes in (*CONVOLUTIONS, *GROUPED)),
    *(Shape(*sizes[:3], "DEPTHWISE_CONV_2D", *sizes[3:]) for sizes in DEPTHWISE),
)


def layer(shape: Shape) -> IntegerGraph:
    """A graph of one layer with codes in -1..1: a dense layer for one pixel, else a convolution."""
    rng, builder, size = np.random.default_rng(0), GraphBuilder(), int(np.sqrt(shape.taps))
    codes = rng.integers(-1, 2, (size, size, shape.inputs, shape.outputs)).astype(np.int8)
    depthwise = shape.op == "DEPTHWISE_CONV_2D"
    channels = shape.outputs * (shape.inputs if depthwise else 1)
    weights = (np.full(channels, 0.02, np.float32), rng.integers(-500, 500, channels), Range(0.1, 0), "y")
    if shape.pixels == 1:
        x = builder.input("x", (shape.inputs,), range=_GRID)
        return builder.build([builder.fully_connected(x, codes[0, 0], *weights)])
    side = int(np.sqrt(shape.pixels))
    x = builder.input("x", (side, shape.pixels // side, shape.inputs * shape.groups), range=_GRID)
    if depthwise:
        return builder.build([builder.depthwise_conv2d(x, codes, *weights, padding="same")])
    return builder.build([builder.conv2d(x, codes, *weights, padding="same", groups=shape.groups)])


_GRID = Range(0.05, 3)


def measure(
    shapes: Sequence[Shape] = SHAPES, repeats: int = 40, threads: int = 1, milliseconds: float = 2.0
) -> LatencyTable:
    """The table of these shapes. milliseconds: each of the repeats runs a layer for about so long."""
    rows = []
    for shape in shapes:
        graph, runs = layer(shape), []
        for kind in shape.kinds:
            interpreter = make_interpreter("xnnpack", threads, model_content=litert.to_bytes(graph, weights=kind)[0])
            runs.append(interpreter.invoke)
        inner = [calls_for(run, milliseconds) for run in runs]
        medians = np.median(interleaved(runs, repeats, 3, inner), axis=1)
        times: dict[str, Any] = {kind: round(float(value), 6) for kind, value in zip(shape.kinds, medians, strict=True)}
        rows.append(LayerLatency(**shape._asdict(), **times))
    return LatencyTable(tuple(rows), {**machine(), "threads": threads, "repeats": repeats})


def run(values: Any) -> int:
    """Measures, prints the rows and writes the table."""
    found = measure(repeats=values.repeats, threads=values.threads)
    for row in found.rows:
        kinds = [kind for kind in ("int4", "int2") if getattr(row, kind)]
        ratios = ", ".join(f"{kind} {row.ratio(kind):.2f}" for kind in kinds)
        print(f"{row.op:<18} {row!s:<32} int8 {row.int8:8.4f} ms, times int8: {ratios}")
    atomic_write(values.output, found.to_json().encode())
    return 0
