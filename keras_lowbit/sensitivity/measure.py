"""sensitivity: every quantizer of a model alone, and all but it."""

import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Any

import keras

from keras_lowbit.arguments import check_model
from keras_lowbit.data import Batches, samples_in
from keras_lowbit.data.batching import Progress
from keras_lowbit.files import FilePath, atomic_write, check_writable, make_folder_of, name_of, read_whole
from keras_lowbit.keras_graph.calls import layers_of
from keras_lowbit.keras_graph.variables import fingerprint
from keras_lowbit.layers.host import QuantizerHost
from keras_lowbit.layers.kernels import quantized_layers
from keras_lowbit.sensitivity.effects import ACTIVATIONS, WEIGHTS, Effect, Sensitivity
from keras_lowbit.sensitivity.logits import Logits, Score


def sensitivity(
    quantized: keras.Model,
    reference: keras.Model,
    data: Any,
    *,
    labels: Any = None,
    batch_size: int = 32,
    steps: int | None = None,
    checkpoint: FilePath | None = None,
    verbose: int | bool = 1,
) -> Sensitivity:
    """What the quantization of each layer's weights, and of each activation, does to the logits.

    Each runs once with nothing else quantized and once with all else quantized. What hurts alone and is missed by none (all
    but it is far better than all) is where more bits, `skip=` or `reconstruct` pay.

    quantized: calibrated; it is not changed.   reference: the float model that it was made of, its batch norms folded.
    data: as for `calibrate`; 100 to 500 samples, which stay in memory.   labels: class numbers, for accuracy.
    checkpoint: file that keeps what is measured; a run that finds it goes on.   verbose: 1 a progress bar, 0 nothing.
    batch_size, steps: as for `calibrate`.
    Time: two runs of the model on all data for each row. Returns a `Sensitivity`: a table, `to_json()`, `plot("a.png")`.
    Raises ValueError for a model without quantizers, models whose outputs differ in shape, labels that do not fit, and a
    checkpoint of other weights.

    >>> found = klb.sensitivity(quantized, folded, images, verbose=0)
    """
    for model in (quantized, reference):
        check_model(model, "sensitivity")
    parts = list(_parts(quantized))
    if not parts:
        raise ValueError(
            f"{quantized.name!r} has nothing that quantizes. Give what keras_lowbit.quantize_model made of the reference."
        )
    batches = list(Batches(data, batch_size, steps))
    logits = Logits(quantized, reference, batches, labels)
    everything = [host for _, _, _, hosts in parts for host in hosts]
    done = _Done(checkpoint, quantized)
    bar = Progress(len(parts), "quantizer", verbose)
    rows = []
    for path, part, bits, hosts in parts:
        others = [host for host in everything if all(host is not own for own in hosts)]
        scores = [
            done.score(f"{path} {part} {which}", lambda chosen=chosen: logits.score(chosen))
            for which, chosen in (("only", hosts), ("without", others))
        ]
        rows.append(Effect(path, part, bits, *scores))
        bar.advance()
    count = sum(samples_in(batch) for batch in batches)
    return Sensitivity(quantized.name, tuple(rows), logits.score(), logits.float_accuracy(), count)


def _parts(model: keras.Model) -> Iterator[tuple[str, str, float, list[QuantizerHost]]]:
    """Path, part, bits and state layers of everything that quantizes, in running order."""
    own = {
        id(layer): [host for host in (layer.kernel_host, layer.bias_host) if host is not None]
        for layer in quantized_layers(model).values()
    }
    inside = {id(host) for hosts in own.values() for host in hosts}
    for path, layer in layers_of(model):
        if id(layer) in own:
            yield path, WEIGHTS, float(layer.kernel_quantizer.bits), own[id(layer)]
        elif isinstance(layer, QuantizerHost) and id(layer) not in inside:
            yield path.rpartition("/")[0] or path, ACTIVATIONS, float(layer.quantizer.bits), [layer]


class _Done:
    """Scores by name, in a file if there is one."""

    def __init__(self, path: FilePath | None, model: keras.Model) -> None:
        self.path, self._of = path, fingerprint(model.weights)
        self._scores: dict[str, dict[str, float | None]] = {}
        if path is not None:
            make_folder_of(path)
            check_writable(path)
            if os.path.exists(path):
                self._scores = self._read(path)

    def score(self, name: str, measure: Any) -> Score:
        """What the file says, or what `measure` finds."""
        if name not in self._scores:
            self._scores[name] = dataclasses.asdict(measure())
            if self.path is not None:
                text = json.dumps({"model": self._of, "scores": self._scores})  # inf: Python's own JSON reads it back
                atomic_write(self.path, text.encode())
        return Score(**self._scores[name])  # type: ignore[arg-type]

    def _read(self, path: FilePath) -> dict[str, dict[str, float | None]]:
        try:
            found = json.loads(read_whole(path))
            if found["model"] == self._of:
                return {name: dataclasses.asdict(Score(**score)) for name, score in found["scores"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{name_of(path)!r} is no checkpoint of sensitivity, or damaged ({error}). Delete it to start anew."
            ) from error
        raise ValueError(f"The checkpoint {name_of(path)!r} is of another model or other weights. Delete it.")
