"""keras-lowbit bench kernels: times the compiled ops against TensorFlow's float layers and LiteRT's int8 ones.

    keras-lowbit bench kernels --isa x86_avx2 --output kernels.json

Same shapes, one thread on one core, interleaved repeats. Every layer runs on the ternary op (2-bit weights, int8 out), on
our int8 op, as TensorFlow's float32 Conv2D or MatMul, and as an int8 .tflite file on XNNPACK. The last columns set the
ternary op beside this machine's ceilings, which loops in the compiled library measure between the layers: products
against the fastest int8 instruction of the CPU, whoever uses it, weight bytes against memory. `--isa x86_avx2` times our
two ops on that ISA target as well. The last line is this machine's row in docs/benchmarks.md.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from keras_lowbit.bench.machine import machine
from keras_lowbit.bench.output import check_flag, define_output, define_repeats, write_report
from keras_lowbit.bench.timing import calls_for, interleaved, on_cores
from keras_lowbit.numerics import requantization as fp
from keras_lowbit.tables import table


class Shape(NamedTuple):
    """One layer: side of the square image (0: dense), window, input and output channels, stride."""

    network: str
    side: int
    window: int
    inputs: int
    outputs: int
    stride: int = 1

    def __str__(self) -> str:
        if not self.side:
            return f"dense {self.inputs} -> {self.outputs}"
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        return f"{self.side}x{self.side} {self.window}x{self.window} {self.inputs} -> {self.outputs}{stride}"

    @property
    def macs(self) -> int:
        """Multiplications of one image."""
        pixels = (-(-self.side // self.stride)) ** 2 if self.side else 1
        return pixels * self.window**2 * self.inputs * self.outputs


def _stage(side: int, inputs: int, width: int, stride: int) -> list[Shape]:
    """The distinct layers of one stage of ResNet-50: the first block, and what the others repeat."""
    inner, outputs = -(-side // stride), 4 * width
    return [
        Shape("ResNet-50", side, 1, inputs, width, stride),
        Shape("ResNet-50", inner, 3, width, width),
        Shape("ResNet-50", inner, 1, width, outputs),
        Shape("ResNet-50", side, 1, inputs, outputs, stride),
        Shape("ResNet-50", inner, 1, outputs, width),
    ]


RESNET50 = (
    Shape("ResNet-50", 224, 7, 3, 64, 2),
    *_stage(56, 64, 64, 1),
    *_stage(56, 256, 128, 2),
    *_stage(28, 512, 256, 2),
    *_stage(14, 1024, 512, 2),
)
MOBILENET_V2 = tuple(
    Shape("MobileNetV2", side, 1, inputs, outputs)
    for side, inputs, outputs in (
        *((112, 32, 16), (112, 16, 96), (56, 96, 24), (56, 24, 144), (56, 144, 24), (28, 144, 32), (28, 32, 192)),
        *((28, 192, 32), (14, 192, 64), (14, 64, 384), (14, 384, 64), (14, 384, 96), (14, 96, 576), (14, 576, 96)),
        *((7, 576, 160), (7, 160, 960), (7, 960, 160), (7, 960, 320), (7, 320, 1280)),
    )
)
DENSE = tuple(Shape("dense", 0, 1, inputs, 4096) for inputs in (4096, 9216, 25088))
SHAPES = tuple(dict.fromkeys((*RESNET50, *MOBILENET_V2, *DENSE)))
KINDS = ("ternary", "int8", "tf_float32", "litert_int8")
ROOFLINE = ("ternary_gmacs", "share_of_peak", "ternary_weight_gbs", "share_of_bandwidth")


# A call of a tf.function costs some 0.05 ms by itself, as much as a layer: so one call runs a chain of copies of the layer,
# and the LiteRT file is invoked as often. Times are of one copy.
CHAIN, DENSE_CHAIN, EMPTY_CHAIN = 64, 16, 512


def copies(shape: Shape) -> int:
    """Copies of a layer that one timed call runs."""
    return CHAIN if shape.side else DENSE_CHAIN


def runs_of(shape: Shape) -> list[Callable[[], Any]]:
    """Calls of a chain of copies of one layer, in the order of `KINDS`."""
    rng = np.random.default_rng(0)
    size = (shape.window, shape.window, shape.inputs, shape.outputs)
    ternary = rng.integers(-1, 2, size).astype(np.int8)
    codes = rng.integers(-127, 128, size).astype(np.int8)
    return [own(shape, ternary), own(shape, codes), _float(shape, codes), _litert(shape, codes)]


def _image(shape: Shape) -> tuple[int, ...]:
    return (1, shape.side, shape.side, shape.inputs) if shape.side else (1, shape.inputs)


def _codes(shape: Shape) -> np.ndarray:
    return np.random.default_rng(1).integers(-128, 128, _image(shape)).astype(np.int8)


def _chain(operation: Callable[[Any], Any], x: Any, count: int) -> Callable[[], Any]:
    """A traced function that runs an operation so many times, each after the last."""
    import tensorflow as tf

    @tf.function
    def run(x: Any) -> Any:
        result = operation(x)
        for _ in range(count - 1):
            with tf.control_dependencies([result]):
                result = operation(x)
        return result

    concrete = run.get_concrete_function(x)
    return lambda: concrete(x)


def own(shape: Shape, kernel: np.ndarray) -> Callable[[], Any]:
    """Calls of a chain of our layer with that kernel: packed ternary if its codes are, else int8."""
    import tensorflow as tf

    from keras_lowbit import ops
    from keras_lowbit.ops import functions

    pack = ops.pack_kernel if np.abs(kernel).max() <= 1 else ops.pack_int8
    packed = pack(kernel if shape.side else kernel[0, 0])
    arrays = {name: tf.constant(getattr(packed, name)) for name in ("data", "scales", "sums")}
    packed = dataclasses.replace(packed, **arrays)
    factor = fp.quantize_multiplier(np.full(shape.outputs, 1e-3))
    bias, x = tf.zeros(shape.outputs, tf.int32), tf.constant(_codes(shape))
    if not shape.side:
        output = ops.Requantize(factor=np.full(shape.outputs, 1e-3))
        return _chain(lambda x: functions.ternary_dense(x, packed, bias=bias, output=output), x, copies(shape))
    output = ops.Requantize(factor.multiplier, factor.shift)
    return _chain(
        lambda x: functions.clustered_ternary_conv2d(
            x, packed, strides=shape.stride, padding="SAME", bias=bias, output=output
        ),
        x,
        copies(shape),
    )


def _float(shape: Shape, kernel: np.ndarray) -> Callable[[], Any]:
    import tensorflow as tf

    x = tf.constant(_codes(shape), tf.float32)
    weights = tf.constant((kernel if shape.side else kernel[0, 0]).astype(np.float32))
    if shape.side:
        return _chain(lambda x: tf.nn.conv2d(x, weights, shape.stride, "SAME"), x, copies(shape))
    return _chain(lambda x: tf.matmul(x, weights), x, copies(shape))


def _litert(shape: Shape, kernel: np.ndarray) -> Callable[[], Any]:
    from keras_lowbit.deploy.graph import GraphBuilder, Range
    from keras_lowbit.deploy.interpreters import make_interpreter
    from keras_lowbit.deploy.litert import writer as litert

    builder, grid = GraphBuilder(), Range(0.05, 0)
    scales, bias = np.full(shape.outputs, 0.01, np.float32), np.zeros(shape.outputs, np.int32)
    x = builder.input("x", _image(shape)[1:], range=grid)
    if shape.side:
        y = builder.conv2d(x, kernel, scales, bias, Range(0.5, 0), "y", (shape.stride, shape.stride), "same")
    else:
        y = builder.fully_connected(x, kernel[0, 0], scales, bias, Range(0.5, 0), "y")
    content = litert.to_bytes(builder.build([y]), weights="int8")[0]
    interpreter = make_interpreter("xnnpack", 1, model_content=content)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], _codes(shape))

    def run() -> None:
        for _ in range(copies(shape)):
            interpreter.invoke()

    return run


def op_microseconds(repeats: int = 20) -> float:
    """What an op that does nothing costs in a graph: one of ours on a single code, in a chain like the layers'."""
    import tensorflow as tf

    from keras_lowbit.ops import functions

    table = tf.zeros(256, tf.int8)
    run = _chain(lambda x: functions.look_up(x, table), tf.zeros((1, 1), tf.int8), EMPTY_CHAIN)
    base = _chain(lambda x: functions.look_up(x, table), tf.zeros((1, 1), tf.int8), 1)
    long, short = interleaved([run, base], repeats, 2)
    return round(float(np.median(long - short)) / (EMPTY_CHAIN - 1) * 1e3, 2)


def _ratio(samples: np.ndarray) -> list[float]:
    """Median, 10th and 90th percentile."""
    low, middle, high = np.percentile(samples, [10, 50, 90])
    return [round(float(value), 3) for value in (middle, low, high)]


def _row(shape: Shape, repeats: int, milliseconds: float, others: Sequence[str]) -> dict[str, Any]:
    from keras_lowbit import ops

    runs = runs_of(shape)
    inner = [calls_for(run, milliseconds) for run in runs]
    times = interleaved(runs, repeats, 2, inner) / copies(shape)
    row: dict[str, Any] = {**shape._asdict(), "macs": shape.macs}
    for kind, samples in zip(KINDS, times, strict=True):
        row[f"{kind}_ms"] = round(float(np.median(samples)), 5)
        if kind != "ternary":
            row[f"times_{kind}"] = _ratio(samples / times[0])
    for name in others:
        with ops.using_kernel(name):
            ternary, int8 = interleaved(runs[:2], repeats, 1, inner[:2]) / copies(shape)
        row[name] = {"ternary_ms": round(float(np.median(ternary)), 5), "times_int8": _ratio(int8 / ternary)}
    return row | _roofline(row, ops.ceilings())


def _roofline(row: dict[str, Any], ceilings: Any) -> dict[str, Any]:
    """The ternary op's products and weight bytes a second, and the ceilings measured just after; None without the library."""
    gmacs = row["macs"] / row["ternary_ms"] / 1e6
    reads = row["window"] ** 2 * row["inputs"] * row["outputs"] / 4 / row["ternary_ms"] / 1e6
    peak = ceilings and ceilings.products
    return {
        "ternary_gmacs": round(gmacs, 2),
        "peak_gmacs": peak and round(peak, 1),
        "peak_instruction": ceilings and ceilings.instruction,
        "peak_float_gmacs": ceilings and ceilings.floats and round(ceilings.floats, 1),
        "ternary_weight_gbs": round(reads, 2),
        "bandwidth_gbs": ceilings and round(ceilings.reads, 1),
    }


def measure(
    shapes: Sequence[Shape] = SHAPES, repeats: int = 20, milliseconds: float = 25.0, others: Sequence[str] = ()
) -> dict[str, Any]:
    """All figures of these layers; times are medians in milliseconds, with the 10th and 90th percentile of each ratio.

    others: ISA targets on which our two ops are timed as well.
    """
    import tensorflow as tf

    from keras_lowbit import ops

    # It would merge equal copies of a layer into one.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    rows = [_row(shape, repeats, milliseconds, others) for shape in shapes]
    about = {**machine(), "tensorflow": tf.__version__, "kernel": ops.active_kernel(), "threads": 1, "repeats": repeats}
    about["op_microseconds"] = op_microseconds(repeats)
    about["peak_instruction"] = rows[0]["peak_instruction"]
    for name in ("peak_gmacs", "peak_float_gmacs", "bandwidth_gbs"):
        found = [row[name] for row in rows if row[name] is not None]
        about[name] = round(float(np.median(found)), 1) if found else None
    add_shares(rows, about)
    return {"machine": about, "rows": rows, "means": means(rows), "other_isas": _other_means(rows, others)}


def add_shares(rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> None:
    """Each row's shares of the median ceilings. Weights that stand in a cache can be read faster than memory: above 1."""
    for row in rows:
        peak, reads = about["peak_gmacs"], about["bandwidth_gbs"]
        row["share_of_peak"] = peak and round(row["ternary_gmacs"] / peak, 3)
        row["share_of_bandwidth"] = reads and round(row["ternary_weight_gbs"] / reads, 3)


def _other_means(rows: Sequence[dict[str, Any]], others: Sequence[str]) -> dict[str, dict[str, float]]:
    """By ISA target and network: how many times as fast the ternary op is as our int8 op there."""
    found: dict[str, dict[str, float]] = {name: {} for name in others}
    for name in others:
        for network in dict.fromkeys(row["network"] for row in rows):
            ratios = [row[name]["times_int8"][0] for row in rows if row["network"] == network]
            found[name][network] = round(float(np.exp(np.mean(np.log(ratios)))), 3)
    return found


def means(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Geometric mean of each ratio over each network: how many times as fast the ternary op is."""
    found: dict[str, dict[str, float]] = {}
    for network in dict.fromkeys(row["network"] for row in rows):
        for kind in KINDS[1:]:
            ratios = [row[f"times_{kind}"][0] for row in rows if row["network"] == network]
            found.setdefault(network, {})[kind] = round(float(np.exp(np.mean(np.log(ratios)))), 3)
    return found


def markdown(report: dict[str, Any]) -> str:
    """The table of docs/benchmarks.md: geometric means by network, and the machine."""
    about = report["machine"]
    heads = "| layers | x TensorFlow float32 | x LiteRT int8 | x our int8 |\n|---|---|---|---|"
    lines = [
        f"| {network} | {found['tf_float32']:.2f} | {found['litert_int8']:.2f} | {found['int8']:.2f} |"
        for network, found in report["means"].items()
    ]
    for name, found in report["other_isas"].items():
        ratios = ", ".join(f"{network} {ratio:.2f}" for network, ratio in found.items())
        lines += ["", f"On ISA target {name} ternary is so many times as fast as our int8 there: {ratios}."]
    peaks = "none (no compiled library)"
    if about["peak_gmacs"] is not None:
        peaks = (
            f"{about['peak_gmacs']} GMAC/s of {about['peak_instruction']}, {about['peak_float_gmacs']} of float32, memory "
            f"{about['bandwidth_gbs']} GB/s"
        )
    conditions = (
        f"{about['cpu']}, {about['cores']} cores, one thread, ISA target {about['kernel']}, TensorFlow {about['tensorflow']}, "
        f"ai-edge-litert {about['ai-edge-litert']} (can use {about['litert_instructions']}); ceilings: {peaks}; an op that "
        f"does nothing takes "
        f"{about['op_microseconds']} us in a graph."
    )
    return "\n".join([heads, *lines, "", conditions])


def machine_row(report: dict[str, Any], path: str) -> str:
    """This machine's row in the table of docs/benchmarks.md; path: of the JSON."""
    about = report["machine"]
    cells = [
        f"{about['cpu']}, {about['cores']} cores, ISA target {about['kernel']} (`{path}`)",
        about["litert_instructions"],
    ]
    for network in dict.fromkeys(shape.network for shape in SHAPES):
        found = report["means"].get(network)
        cells.append(f"{found['tf_float32']:.2f}, {found['litert_int8']:.2f}" if found else "not measured")
    return f"| {' | '.join(cells)} |"


def _check_isa(names: Sequence[str]) -> None:
    from keras_lowbit import ops

    available = ops.available_kernels()
    unknown = [name for name in names if name not in available]
    if unknown:
        raise ValueError(f"{', '.join(unknown)} does not run here; available: {', '.join(available)}")


FLAGS = flags.FlagValues()
define_output(FLAGS)
define_repeats(FLAGS, 20, "layer")
flags.DEFINE_enum(
    "only", None, list(dict.fromkeys(s.network for s in SHAPES)), "one group of layers", flag_values=FLAGS
)
flags.DEFINE_multi_string("isa", [], "ISA target on which to time our two ops as well", flag_values=FLAGS)
check_flag(FLAGS, "isa", _check_isa)


def run(values: Any) -> int:
    """Measures, prints tables and writes the JSON."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    shapes = [shape for shape in SHAPES if values.only in (None, shape.network)]
    with on_cores(1):
        report = measure(shapes, values.repeats, others=values.isa)
    print(text(report))
    print(markdown(report))
    print(f"\n{machine_row(report, values.output)}")
    write_report(values.output, report)
    return 0


def text(report: dict[str, Any]) -> str:
    """The rows as a table."""
    times = ("ternary ms", "int8", "TF float32", "LiteRT int8")
    heads = ("layer", *times, "GMAC/s", "of peak", "weights GB/s", "of memory")
    cells = [
        (
            str(Shape(*(row[field] for field in Shape._fields))),
            *(row[f"{kind}_ms"] for kind in KINDS),
            *("-" if row[name] is None else row[name] for name in ROOFLINE),
        )
        for row in report["rows"]
    ]
    return table(heads, cells)
