"""keras-lowbit bench applications: which networks of `keras.applications` become files of integers alone.

    keras-lowbit bench applications --output applications.json
    keras-lowbit bench applications --resume --output applications.json    # rows that the file has stay
    keras-lowbit bench applications --model MobileNetV2 --model ConvNeXtTiny --output some.json

Each network has random weights, is quantized by the recipe "int8", calibrated on one random image and lowered to the integer
graph that a file holds. A row has the nodes of the graph, what of the model computes in float, and the seconds of all of it.
"""

import json
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import flags

from keras_lowbit.bench.machine import machine
from keras_lowbit.bench.output import define_output, write_report
from keras_lowbit.convert.post_training.calibrate import calibrate
from keras_lowbit.convert.quantize_model import quantize_model
from keras_lowbit.deploy.lowering.lower import lower

_SIDE = 224  # pixels of an image where a network takes any
FLAGS = flags.FlagValues()
define_output(FLAGS)
flags.DEFINE_multi_string(
    "model", [], "networks, by their names in keras.applications; all by default", flag_values=FLAGS
)
flags.DEFINE_bool("resume", False, "keep the rows that the file of --output has", flag_values=FLAGS)


def names() -> list[str]:
    """All networks of `keras.applications`."""
    return sorted(name for name, made in vars(keras.applications).items() if name[0].isupper() and callable(made))


def measure(name: str) -> dict[str, Any]:
    """The row of one network. flags.Error for an unknown name."""
    if name not in names():
        raise flags.Error(f"--model={name}: keras.applications has no such network, but {', '.join(names())}")
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    start = time.perf_counter()
    model = getattr(keras.applications, name)(weights=None)
    shape = tuple(_SIDE if size is None else size for size in model.input_shape[1:])
    image = np.random.default_rng(0).uniform(0, 255, (1, *shape)).astype(np.float32)
    quantized, _ = quantize_model(model, "int8")
    calibrate(quantized, image, verbose=0)
    graph = lower(quantized, shape)
    return {
        "parameters": int(model.count_params()),
        "nodes": len(graph.nodes),
        "in_float": [found["path"] for found in graph.metadata["float_fallbacks"]],
        "seconds": round(time.perf_counter() - start, 1),
    }


def run(values: Any) -> int:
    """Converts each network, prints the rows and writes the file, anew after each of them."""
    rows = _stored(values.output) if values.resume else {}
    for name in values.model or names():
        if name in rows:
            continue
        rows[name] = measure(name)
        print(f"{name:<20}", rows[name], flush=True)
        write_report(values.output, {"machine": machine(), "rows": rows})
    whole = sum(not row["in_float"] for row in rows.values())
    print(f"{whole} of {len(rows)} networks in integers alone")
    return 0 if whole == len(rows) else 1


def _stored(output: str) -> dict[str, Any]:
    """The rows of an earlier run. flags.Error for a file that is no such run's."""
    try:
        return dict(json.loads(Path(output).read_text())["rows"])
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise flags.Error(
            f"--resume: {output} has no rows of bench applications ({error}). Give another file."
        ) from error
