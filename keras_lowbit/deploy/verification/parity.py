"""The verdict of `verify`: all that it measured, and what is wrong in words."""

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

from keras_lowbit.deploy.litert.delegate import DelegateCoverage
from keras_lowbit.deploy.lowering.int8_overflow import Overflow, sentence
from keras_lowbit.deploy.verification.layers import LayerParity
from keras_lowbit.deploy.verification.numpy_reference import ReferenceParity
from keras_lowbit.deploy.verification.outputs import OutputParity
from keras_lowbit.figures.parity import draw_parity
from keras_lowbit.tables import plain, table

#: Two roundings of nearly the same number, LiteRT's in integers and Keras' in float32, seldom fall to different sides.
LARGEST_SHARE_OF_STEPS = 0.5
#: The largest difference of a layer from Keras that rounding explains. LiteRT multiplies int64 sums of int16 codes by factors
#: of 15 bits, which alone may move a code of 32767 by a step; its sigmoid, tanh and softmax of them interpolate between entries
#: of a table.
LARGEST_STEPS, LARGEST_STEPS_16, LARGEST_STEPS_OF_TABLES_16 = 1, 2, 16
#: What a loop gives at one step goes into all later ones, so that a difference of a step may grow there.
LARGEST_STEPS_OF_LOOPS, LOOPS = 16, ("UNIDIRECTIONAL_SEQUENCE_LSTM",)
#: LiteRT's int16 softmax takes whatever lies more than 10 below the largest value for 10 below: up to two codes of 32768 too
#: much in the sum, for each of them.
STEPS_OF_FAR_16 = 2
SHOWN_STEPS = 16  # differences that are counted one by one in the text
#: Values between two codes, of an operation whose rounding Keras does not simulate: wrong where it errs by a tenth of what it
#: rounds. The grid of some operators is LiteRT's own, whatever the data are.
LARGEST_SHARE_UNROUNDED, LEAST_UNROUNDED_SNR_DB = 0.01, 20.0
GIVEN_GRIDS = ("LOGISTIC", "SOFTMAX", "TANH")
#: An error of half the size of what the reference gives.
LEAST_REFERENCE_SNR_DB = 6.0
#: How much nearer to the reference than its file a Keras model may be: as if the file's own rounding doubled the noise. Where
#: the file reaches `FINE_SNR_DB` this is not asked for.
LARGEST_LOSS_DB, FINE_SNR_DB = 3.0, 30.0


@dataclasses.dataclass(frozen=True)
class Parity:
    """The verdict of `verify`; prints as a table by layer.

    size_bytes: of the file.
    layers: each stored tensor against Keras on equal inputs.   reference: the file against the NumPy reference.
    delegate: which operators XNNPACK runs.   output_steps: how many output elements differ from Keras by 0, 1, 2, ...
    steps, end to end.   top1_agreement: share of samples on which file and Keras agree on the largest output, None for
    models without classes.   samples: of the end-to-end comparison.   overflows: layers whose weights export altered to
    fit int8. Alone they are compared with the altered weights, to equality; end to end, with the model as it was trained.
    outputs: every output end to end, against Keras, the float reference and labels, where these were given.
    labels_note: why labels that came with the data were not compared.   min_reference_snr_db: as given to `verify`.
    notes: what in the data explains the figures.

    >>> written = klb.export_litert(quantized, "q.tflite")
    >>> parity = klb.verify(quantized, "q.tflite", images)
    >>> parity.ok, parity.codes_equal, parity.reference_equal
    (True, True, True)
    """

    layers: tuple[LayerParity, ...]
    output_steps: tuple[int, ...]
    top1_agreement: float | None
    samples: int
    size_bytes: int
    reference: ReferenceParity | None = None
    delegate: DelegateCoverage | None = None
    overflows: dict[str, Overflow] = dataclasses.field(default_factory=dict)
    outputs: tuple[OutputParity, ...] = ()
    labels_note: str = ""
    min_reference_snr_db: float = LEAST_REFERENCE_SNR_DB
    notes: tuple[str, ...] = ()

    @property
    def max_layer_steps(self) -> int:
        """Largest difference of any layer, in steps."""
        return max((layer.max_steps for layer in self.layers), default=0)

    @property
    def max_output_steps(self) -> int:
        """Largest difference at the outputs, end to end, in steps."""
        return len(self.output_steps) - 1

    @property
    def exact_fraction(self) -> float:
        """Share (0..1) of elements over all layers that are equal."""
        total = sum(layer.elements for layer in self.layers)
        return sum(layer.exact * layer.elements for layer in self.layers) / total if total else 1.0

    @property
    def codes_equal(self) -> bool:
        """Whether every weight, bias and scale in the file is the model's."""
        return all(layer.codes_equal is not False for layer in self.layers)

    @property
    def reference_equal(self) -> bool | None:
        """Whether the file on LiteRT's reference kernels equals the NumPy reference on every element of every tensor.

        None where LiteRT's reference kernels lack an operation of a float subgraph, or would end the process: their int8
        softmax does where the exponentials of one row add up to 512 (an untrained network of 1000 classes).
        """
        return None if self.reference is None else self.reference.equal

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong: see `problems`."""
        return not self.problems

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, one sentence each; empty for a file that is the model.

        Weights, biases or scales that are not the model's; an element that differs from the NumPy reference; a layer that
        differs from its Keras simulation by more than rounding explains (two steps anywhere, more in a loop, or a step in most
        elements), or that the file rounds coarsely and Keras not at all;
        against a float reference, an output below `min_reference_snr_db`, or clearly farther from it than the Keras model is.
        """
        return (*self._wrong_weights(), *self._wrong_layers(), *self._wrong_outputs())

    def _wrong_weights(self) -> Iterator[str]:
        if changed := [layer.name for layer in self.layers if layer.codes_equal is False]:
            yield f"weights, biases or scales of {_some(changed)} are not the model's: export the file again"
        if self.reference is not None and self.reference.equal is False:
            yield f"LiteRT computes {_some(list(self.reference.differing))} otherwise than the NumPy reference of the model"

    def _wrong_layers(self) -> Iterator[str]:
        for layer in self.layers:
            if layer.max_steps > (most := _largest_steps(layer)):
                yield (
                    f"{layer.name!r} differs from Keras on equal inputs by up to {layer.max_steps} steps; rounding explains "
                    f"{most}"
                )
            elif layer.codes == "int8" and 1 - layer.exact > LARGEST_SHARE_OF_STEPS + 2 / math.sqrt(
                max(layer.elements, 1)
            ):
                yield (
                    f"{layer.name!r} differs from Keras by a step in {100 * (1 - layer.exact):.0f} % of its elements; rounding "
                    f"explains at most {100 * LARGEST_SHARE_OF_STEPS:.0f} %"
                )
            elif _rounds_coarsely(layer):
                yield (
                    f"{layer.name!r} is rounded in the file and not in Keras, {layer.snr_db:.1f} dB from it: no training or "
                    "evaluation in Keras sees that error. Give it a range of its own (keras_lowbit.layers.QuantActivation)"
                )

    def _wrong_outputs(self) -> Iterator[str]:
        for output in self.outputs:
            found, keras_db = output.reference_snr_db, output.keras_reference_snr_db
            if found is None or keras_db is None:
                continue
            if found < self.min_reference_snr_db:
                yield (
                    f"output {output.name!r} is {found:.1f} dB from the reference, expected at least "
                    f"{self.min_reference_snr_db:g} (Keras: {keras_db:.1f} dB): train or calibrate on, keep more in float"
                )
            elif found < FINE_SNR_DB and found < keras_db - LARGEST_LOSS_DB:
                yield (
                    f"output {output.name!r} is {found:.1f} dB from the reference in the file, {keras_db:.1f} dB in Keras: "
                    "the file computes something that Keras does not simulate"
                )

    def plot(self, most: int = 40) -> Any:
        """The ratios of the layers as bars, the noisiest on top: see `keras_lowbit.plot.parity`."""
        return draw_parity(self.layers, most)

    def to_json(self) -> str:
        """All figures as JSON; infinite ratios as the words "inf" and "-inf"."""
        derived = "ok problems codes_equal reference_equal max_layer_steps max_output_steps exact_fraction".split()
        fields: dict[str, Any] = {**{name: getattr(self, name) for name in derived}, **dataclasses.asdict(self)}
        if self.delegate is not None:
            fields["delegate"] |= {
                "operators": self.delegate.operators,
                "left_by_operator": self.delegate.left_by_operator,
            }
        return json.dumps(plain(fields), indent=2)

    def __str__(self) -> str:
        heads = ("layer", "operator", "XNNPACK", "weights equal", "elements", "max steps", "% exact", "SNR dB")
        rows = [
            (r.name, r.op, r.delegated, r.codes_equal, r.elements, r.max_steps, 100 * r.exact, r.snr_db)
            for r in self.layers
        ]
        shares = ", ".join(_shown(self.output_steps))
        agreement = "no classes" if self.top1_agreement is None else f"{self.top1_agreement:.4f}"
        lines = [
            table(heads, rows),
            f"layers: {'ok' if self.ok else 'NOT OK'}, at most {self.max_layer_steps} step(s) from Keras, "
            f"{100 * self.exact_fraction:.3f} % of elements equal",
            *(f"NOT OK: {problem}" for problem in self.problems),
            *([self._reference_line(self.reference)] if self.reference is not None else []),
            f"end to end on {self.samples} samples: elements by steps {{{shares}}}, top-1 agreement {agreement}",
            *map(str, self.outputs),
            *([f"labels not compared: {self.labels_note}"] if self.labels_note else []),
            *([f"layers compared with their weights as stored: {sentence(self.overflows)}"] if self.overflows else []),
            *self.notes,
            *([str(self.delegate)] if self.delegate is not None else []),
            f"file: {self.size_bytes:,} bytes",
        ]
        return "\n".join(lines)

    @staticmethod
    def _reference_line(found: ReferenceParity) -> str:
        if found.equal is None:
            return "NumPy reference: not compared, LiteRT's reference kernels cannot run this file on this data"
        worst = ", ".join(f"{name}: {count:,}" for name, count in list(found.differing.items())[:5])
        return (
            f"NumPy reference: {sum(found.differing.values()):,} of {found.elements:,} elements differ from LiteRT's "
            f"reference kernels{f' ({worst})' if worst else ''}"
        )


def _largest_steps(layer: LayerParity) -> int:
    """How far rounding alone may move a layer's results from Keras'."""
    if layer.codes == "int8":
        return LARGEST_STEPS_OF_LOOPS if layer.op in LOOPS else LARGEST_STEPS
    far = STEPS_OF_FAR_16 * layer.row if layer.op == "SOFTMAX" else 0
    return LARGEST_STEPS_OF_TABLES_16 + far if layer.op in GIVEN_GRIDS else LARGEST_STEPS_16


def _shown(counts: tuple[int, ...]) -> Iterator[str]:
    """Elements by steps, the many of large differences together."""
    yield from (f"{steps}: {count:,}" for steps, count in enumerate(counts[:SHOWN_STEPS]))
    if len(counts) > SHOWN_STEPS:
        yield f"{SHOWN_STEPS} to {len(counts) - 1}: {sum(counts[SHOWN_STEPS:]):,}"


def _rounds_coarsely(layer: LayerParity) -> bool:
    coarse = layer.unrounded > LARGEST_SHARE_UNROUNDED and layer.snr_db < LEAST_UNROUNDED_SNR_DB
    return coarse and layer.op not in GIVEN_GRIDS


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
