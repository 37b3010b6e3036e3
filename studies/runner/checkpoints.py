"""Everything a training consists of between two epochs, in one file that is replaced as a whole."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_lowbit.files import atomic_write
from keras_lowbit.keras_graph.variables import to_numpy


def _variables(model: keras.Model) -> list[Any]:
    """Weights, states of quantizers, random generators, and the optimizer's slots and step count."""
    return [*model.trainable_variables, *model.non_trainable_variables, *model.optimizer.variables]


def save(path: Path, model: keras.Model, progress: dict[str, Any]) -> None:
    """Stores the state of `model` and its optimizer, and what the run has found so far."""
    arrays = {f"v{place}": to_numpy(variable) for place, variable in enumerate(_variables(model))}
    stream = io.BytesIO()
    np.savez(stream, progress=np.array(json.dumps(progress)), **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, stream.getvalue())


def load(path: Path, model: keras.Model) -> dict[str, Any] | None:
    """Puts the stored state into `model` and gives what `save` was told; None where there is no file."""
    if not path.exists():
        return None
    variables = _variables(model)
    try:
        with np.load(io.BytesIO(path.read_bytes())) as stored:
            arrays = [stored[f"v{place}"] for place in range(len(stored.files) - 1)]
            progress = json.loads(str(stored["progress"]))
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is no checkpoint of a run ({error}). Remove it: the run then starts anew.") from error
    if [array.shape for array in arrays] != [tuple(variable.shape) for variable in variables]:
        raise ValueError(f"{path} is the checkpoint of another network. Remove it: the run then starts anew.")
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
    return progress
