"""keras-lowbit bench runtime: times a ternary network on the integer runtime, TensorFlow's float32 and LiteRT's int8.

    keras-lowbit bench runtime --threads 1 --threads 2 --output runtime.json
    keras-lowbit bench runtime --network MobileNetV2

ResNet-50, or another network, at 224x224, batch 1, random weights (they do not change the time): the Keras model as a
tf.function, the same model ternary as an int8 .tflite file on XNNPACK, and as a SavedModel of `deploy.Runtime`. With
several thread counts the runtime and some large layers are also compared with themselves on one thread.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import flags

from keras_lowbit import deploy
from keras_lowbit.bench import kernels
from keras_lowbit.bench.machine import machine
from keras_lowbit.bench.output import define_output, define_repeats, write_report
from keras_lowbit.bench.workers import interleaved_workers
from keras_lowbit.convert import calibrate, quantize_model, reestimate_batch_norms
from keras_lowbit.keras_graph.depth import read_model
from keras_lowbit.tables import table

FLAGS = flags.FlagValues()
define_output(FLAGS)
define_repeats(FLAGS, 20, "network")
flags.DEFINE_multi_integer("threads", [1], "thread count of all three", lower_bound=1, flag_values=FLAGS)
NETWORKS = ("ResNet50", "MobileNetV2")
flags.DEFINE_enum("network", NETWORKS[0], NETWORKS, "network of keras.applications", flag_values=FLAGS)

KINDS = ("runtime", "tf_float32", "litert_int8")
LAYERS = (
    kernels.Shape("ResNet-50", 56, 1, 64, 256),
    kernels.Shape("ResNet-50", 28, 3, 128, 128),
    kernels.Shape("ResNet-50", 14, 1, 1024, 256),
    kernels.Shape("ResNet-50", 7, 3, 512, 512),
    kernels.Shape("dense", 0, 1, 9216, 4096),
)
FILES = {"runtime": "served", "tf_float32": "float.keras", "litert_int8": "int8.tflite"}


def prepare(model: keras.Model, folder: str | os.PathLike[str], recipe: str = "twn", seed: int = 0) -> dict[str, Any]:
    """Writes the three forms of a float model into a folder; their bytes of weights.

    Batch norms and ranges are estimated on random images, so that no layer saturates: in the float model too.
    """
    import tensorflow as tf

    images = np.random.default_rng(seed).uniform(-1, 1, (4, *model.input_shape[1:])).astype(np.float32)
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers):
        reestimate_batch_norms(model, images, batch_size=4, check=False)
    quantized, _ = quantize_model(model, recipe)
    calibrate(quantized, images, batch_size=4)
    run = deploy.Runtime(deploy.lower(quantized))
    target = Path(folder)
    model.save(target / FILES["tf_float32"])
    deploy.export_litert(quantized, target / FILES["litert_int8"], weights="int8")
    tf.saved_model.save(run, str(target / FILES["runtime"]))
    return {
        "kernel": run.kernel,
        "weight_bytes": {
            "runtime": run.weight_bytes,
            "tf_float32": 4 * model.count_params(),
            "litert_int8": (target / FILES["litert_int8"]).stat().st_size,
        },
    }


def runs_of(threads: int, folder: str, layers: Sequence[kernels.Shape]) -> dict[str, Callable[[], Any]]:
    """What one worker process runs, by name."""
    import tensorflow as tf

    runs = {"runtime": _served(folder), "tf_float32": _float(folder), "litert_int8": _litert(folder, threads)}
    for run in runs.values():
        run()  # TensorFlow optimizes a graph at its first call; the copies of a layer below it would merge into one
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    rng = np.random.default_rng(0)
    for shape in layers:
        codes = rng.integers(-1, 2, (shape.window, shape.window, shape.inputs, shape.outputs)).astype(np.int8)
        runs[str(shape)] = kernels.own(shape, codes)
    return runs


def _served(folder: str) -> Callable[[], Any]:
    import tensorflow as tf

    from keras_lowbit import ops

    if ops.active_kernel() != "tf_fallback":
        ops.load()
    module = tf.saved_model.load(str(Path(folder, FILES["runtime"])))
    call = next(f for f in module.__call__.concrete_functions if _takes_codes(f))
    spec = call.structured_input_signature[0][0]
    images = tf.constant(np.random.default_rng(1).integers(-128, 128, (1, *spec.shape[1:])).astype(np.int8))
    return lambda: (call(images), module)[0]  # the module lives as long as its function


def _takes_codes(function: Any) -> bool:
    """Whether a served function takes one int8 tensor; others take reals, or inputs in a list or dict."""
    return getattr(function.structured_input_signature[0][0], "dtype", None) == "int8"


def _float(folder: str) -> Callable[[], Any]:
    import tensorflow as tf

    model = read_model(Path(folder, FILES["tf_float32"]), compile=False)
    images = tf.random.stateless_uniform((1, *model.input_shape[1:]), (0, 1), -1.0, 1.0)
    call = tf.function(lambda x: model(x, training=False)).get_concrete_function(images)
    return lambda: call(images)


def _litert(folder: str, threads: int) -> Callable[[], Any]:
    from keras_lowbit.deploy.interpreters import make_interpreter

    interpreter = make_interpreter("xnnpack", threads, model_path=str(Path(folder, FILES["litert_int8"])))
    detail = interpreter.get_input_details()[0]
    interpreter.set_tensor(detail["index"], np.random.default_rng(1).integers(-128, 128, detail["shape"], np.int8))
    return interpreter.invoke


def measure(
    model: keras.Model,
    threads: Sequence[int] = (1,),
    repeats: int = 20,
    milliseconds: float = 60.0,
    layers: Sequence[kernels.Shape] = LAYERS,
) -> dict[str, Any]:
    """All figures of one model: medians, and each ratio's median, 10th and 90th percentile.

    rows: by thread count, how many times as fast the runtime is as each peer.   scaling: how many times as fast the
    runtime and single layers are as on the first thread count.
    """
    import tensorflow as tf

    shapes = tuple(layers) if len(threads) > 1 else ()
    with tempfile.TemporaryDirectory() as folder:
        about = prepare(model, folder)
        times = interleaved_workers(runs_of, threads, repeats, milliseconds, folder=folder, layers=shapes)
    about = {**machine(), "tensorflow": tf.__version__, "repeats": repeats, "model": model.name, **about, **_ceiling()}
    first = threads[0]
    scaled = ["runtime", *(str(shape) for shape in shapes)]
    return {
        "machine": about,
        "rows": [_row(times, count) for count in threads],
        "scaling": [
            {"what": name, "threads": count, "times": _spread(times[first, name] / times[count, name])}
            for count in threads[1:]
            for name in scaled
        ],
    }


def _ceiling() -> dict[str, Any]:
    """int8 products of one thread at most, and by which instruction; None without the library."""
    from keras_lowbit import ops

    found = ops.ceilings()
    gmacs = found and found.products and round(found.products, 1)
    return {"peak_gmacs": gmacs, "peak_instruction": found and found.instruction}


def _row(times: dict[tuple[int, str], np.ndarray], threads: int) -> dict[str, Any]:
    row: dict[str, Any] = {"threads": threads}
    for kind in KINDS:
        row[f"{kind}_ms"] = float(f"{np.median(times[threads, kind]):.4g}")
        if kind != "runtime":
            row[f"times_{kind}"] = _spread(times[threads, kind] / times[threads, "runtime"])
    return row


def _spread(ratios: np.ndarray) -> list[float]:
    """Median, 10th and 90th percentile."""
    low, middle, high = np.percentile(ratios, [10, 50, 90])
    return [float(f"{value:.4g}") for value in (middle, low, high)]


def markdown(report: dict[str, Any]) -> str:
    """The tables of docs/benchmarks.md."""
    about = report["machine"]
    lines = ["| threads | runtime ms | x TensorFlow float32 | x LiteRT int8 |", "|---|---|---|---|"]
    for row in report["rows"]:
        ratios = ["{:.2f} ({:.2f} to {:.2f})".format(*row[f"times_{kind}"]) for kind in KINDS[1:]]
        lines.append(f"| {row['threads']} | {row['runtime_ms']:.2f} | {ratios[0]} | {ratios[1]} |")
    if report["scaling"]:
        lines += ["", "| | threads | x one thread |", "|---|---|---|"]
    for row in report["scaling"]:
        lines.append(f"| {row['what']} | {row['threads']} | {'{:.2f} ({:.2f} to {:.2f})'.format(*row['times'])} |")
    lines += [
        "",
        f"{about['model']}, {about['cpu']}, {about['cores']} cores, ISA target {about['kernel']}; {_peer(about)}.",
    ]
    return "\n".join(lines)


def _peer(about: dict[str, Any]) -> str:
    """What LiteRT can use, and this machine's ceiling for int8 products where the library measured it."""
    peak = (
        about["peak_gmacs"]
        and f", of which one thread reaches {about['peak_gmacs']} GMAC/s of {about['peak_instruction']}"
    )
    return f"LiteRT {about['ai-edge-litert']} can use {about['litert_instructions']}{peak or ''}"


def run(values: Any) -> int:
    """Measures a network, prints tables and writes the JSON."""
    keras.utils.set_random_seed(0)
    report = measure(getattr(keras.applications, values.network)(weights=None), values.threads, values.repeats)
    heads = ("threads", *(f"{kind} ms" for kind in KINDS))
    print(table(heads, [(row["threads"], *(row[f"{kind}_ms"] for kind in KINDS)) for row in report["rows"]]))
    print(markdown(report))
    write_report(values.output, report)
    return 0
