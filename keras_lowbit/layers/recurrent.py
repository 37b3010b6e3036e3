"""Quantized LSTM: all steps of LiteRT's integer LSTM, simulated."""

import dataclasses
from typing import Any

import keras
from keras import ops

from keras_lowbit.layers.base import HasQuantizers
from keras_lowbit.layers.float_files import is_float_file, turn_to_stock_entry
from keras_lowbit.layers.host import PACKAGE, QuantizerHost, require_float_policy, take_format_version
from keras_lowbit.numerics.dynamic_fixed_point import shared_step
from keras_lowbit.quantizers import ActivationRange
from keras_lowbit.quantizers.base import WIDE, State, Tensor

GATES = 4  # in, forget, candidate, out
CELL_STEPS = 2.0**-15, 2.0**-9  # of LiteRT's cell: it reaches from 1 to 64
SUM_LIMITS = -8.0, 8.0 - 2.0**-12  # of what goes into a gate


@dataclasses.dataclass(frozen=True)
class CellRange(ActivationRange):
    """The range of an LSTM's cell: 16 bits, the step the smallest power of two that covers it, from 2^-15 to 2^-9."""

    bits: int = WIDE

    def grid(self, state: State) -> tuple[Tensor, Tensor]:
        """Step and zero point 0."""
        low, high = self.ends(state)
        step = ops.clip(shared_step(ops.maximum(-low, high), WIDE - 1), *CELL_STEPS)
        return step, ops.zeros_like(step)


def not_fused_because(layer: Any) -> str | None:
    """Why LiteRT's integer LSTM cannot compute a `keras.layers.LSTM`; None if it can."""
    functions = keras.activations.tanh, keras.activations.sigmoid
    if (layer.activation, layer.recurrent_activation) != functions:
        return "LiteRT's LSTM has tanh and sigmoid alone"
    for option in ("recurrent_dropout", "return_state", "go_backwards", "stateful"):
        if getattr(layer, option):
            return f"LiteRT's LSTM has no {option}"
    return (
        None if layer.compute_dtype == "float32" else f"its policy is {layer.dtype_policy.name}: float32 alone is fused"
    )


@keras.saving.register_keras_serializable(PACKAGE)
class QuantLSTM(HasQuantizers, keras.layers.LSTM):
    """`keras.layers.LSTM` as LiteRT's integer LSTM computes it: one operator of the file, however many steps there are.

    ``c = q16(f c + i g)``, ``h = q8(o tanh(c))`` with the gates ``i, f, o = sigmoid(.)`` and ``g = tanh(.)`` of
    ``W x + b + U h``, cut off at -8 and 8. W and U of each gate have one scale; the cell has 16 bits and a power of two as its
    step, which `calibrate` and training find like other ranges.
    Input [batch, steps, features], output [batch, units], or [batch, steps, units] with return_sequences. Arguments of the
    stock layer, and two more. The state begins with zeros: no initial_state, no mask.
    kernel_quantizer: of both kernels, None (float) or one of weights with a scale per channel or tensor, such as "uniform"; a
    gate is a channel.   output_quantizer: range of h, None for float states.
    Raises ValueError for other functions than tanh and sigmoid, and for recurrent_dropout, return_state, go_backwards and
    stateful.
    LiteRT `kernels/lstm_eval.cc`, 8x8_16; Hochreiter and Schmidhuber 1997.

    >>> layer = klb.layers.QuantLSTM(6, kernel_quantizer="uniform", output_quantizer="activation")
    >>> layer(np.ones((2, 5, 3), "float32"), training=True).shape
    TensorShape([2, 6])
    """

    def __init__(self, *args: Any, kernel_quantizer: Any = None, output_quantizer: Any = None, **kwargs: Any) -> None:
        version = take_format_version(kwargs, "A QuantLSTM")
        super().__init__(*args, **kwargs)
        require_float_policy(self)
        if (reason := not_fused_because(self)) is not None:
            raise ValueError(
                f"QuantLSTM {self.name!r}: {reason}. Give keras.layers.LSTM to quantize_model(unroll=True)."
            )
        self.take_quantizers(version, kernel=kernel_quantizer, output=output_quantizer)
        self.supports_masking = False
        self.kernel_host = self.make_host("kernel", self.kernel_quantizer, (0,))
        self.recurrent_host = self.make_host("recurrent", self.kernel_quantizer, (0,))
        self.output_host = self.make_host("output", self.output_quantizer)
        self.cell_host = self.make_host("cell", None if self.output_host is None else CellRange())

    def build(self, sequences_shape: Any) -> None:
        """Build the stock weights, then the quantizers' variables."""
        super().build(sequences_shape)
        shapes = {"kernel": (GATES, self.units, sequences_shape[-1]), "recurrent": (GATES, self.units, self.units)}
        for role in ("kernel", "recurrent", "output", "cell"):
            if (host := getattr(self, f"{role}_host")) is not None:
                host.build(shapes.get(role, (None, self.units)))

    def kernels(self) -> dict[str, Any]:
        """Both float kernels gate by gate, [4, units, inputs], as the file has them."""
        return {
            "kernel": _by_gate(self.cell.kernel, self.units),
            "recurrent": _by_gate(self.cell.recurrent_kernel, self.units),
        }

    def call(self, sequences: Any, training: bool = False) -> Any:
        """The last step's result, or those of all."""
        found = self.steps(sequences, training)
        return found if self.return_sequences else found[:, -1]

    def steps(self, sequences: Any, training: bool = False) -> Any:
        """The results of all steps from a state of zeros, [batch, steps, units]."""
        kernel, recurrent = (
            _as_columns(real if (host := getattr(self, f"{role}_host")) is None else host(real, training=training))
            for role, real in self.kernels().items()
        )
        entering = ops.matmul(self._dropped(sequences, training), kernel)
        entering = self._cut_off(entering if self.cell.bias is None else ops.add(entering, self.cell.bias))
        zeros = ops.zeros((ops.shape(sequences)[0], self.units), self.compute_dtype)

        def step(state: Any, entered: Any) -> Any:
            return self._step(state, self._cut_off(ops.add(entered, ops.matmul(state[0], recurrent))), training)

        _, (hidden, cells) = ops.scan(step, (zeros, zeros), ops.transpose(entering, (1, 0, 2)))
        if self.cell_host is not None:
            self.cell_host(cells, training=training)  # sees them; the steps have rounded them
        return self._through(self.output_host, ops.transpose(hidden, (1, 0, 2)), training, observe=True)

    def _step(self, state: Any, sums: Any, training: bool) -> Any:
        """The next state, and what it was before it was rounded."""
        entered, forget, candidate, out = ops.split(sums, GATES, axis=-1)
        kept = ops.multiply(ops.sigmoid(forget), state[1])
        cell = ops.add(kept, ops.multiply(ops.sigmoid(entered), ops.tanh(candidate)))
        rounded = self._through(self.cell_host, cell, training)
        hidden = ops.multiply(ops.sigmoid(out), ops.tanh(rounded))
        return (self._through(self.output_host, hidden, training), rounded), (hidden, cell)

    def _through(self, host: QuantizerHost | None, real: Any, training: bool, observe: bool = False) -> Any:
        return real if host is None else host(real, training=training, observe=observe)

    def _cut_off(self, sums: Any) -> Any:
        """What goes into a gate, within the limits of the file's 16 bits; as it is while nothing is quantized."""
        quantizes = self.output_host is not None and self.output_host.watch is None
        return ops.clip(sums, *SUM_LIMITS) if quantizes else sums

    def stock(self) -> keras.layers.LSTM:
        """A stock layer with the quantized kernels."""
        config = {key: value for key, value in self.get_config().items() if not key.endswith("_quantizer")}
        config.pop("format_version")
        copy = keras.layers.LSTM.from_config(config)
        copy.build((None, None, self.cell.kernel.shape[0]))
        for own, given in zip(copy.cell.weights, self.cell.weights, strict=True):
            own.assign(given)
        for role, variable in (("kernel", copy.cell.kernel), ("recurrent", copy.cell.recurrent_kernel)):
            if (host := getattr(self, f"{role}_host")) is not None:
                variable.assign(_as_columns(host.encode(self.kernels()[role]).real))
        return copy

    def _dropped(self, sequences: Any, training: bool) -> Any:
        """The same features of all steps left out, in training."""
        if not training or not self.dropout:
            return sequences
        mask = self.cell.get_dropout_mask(sequences[:, 0])
        self.cell.reset_dropout_mask()
        return ops.multiply(sequences, ops.expand_dims(mask, 1))

    def compute_output_shape(self, sequences_shape: Any) -> tuple[int | None, ...]:
        """[batch, units], or [batch, steps, units]."""
        steps = (sequences_shape[1],) if self.return_sequences else ()
        return (sequences_shape[0], *steps, self.units)

    def load_own_variables(self, store: Any) -> None:
        """From a file of the stock network the cell is that of the layer that this one stands in for."""
        if self.built and not len(store.keys()) and is_float_file(store):
            turn_to_stock_entry(store, self)
        super().load_own_variables(store)


def _by_gate(kernel: Any, units: int) -> Any:
    """A stock kernel [inputs, 4 * units] as [4, units, inputs]."""
    return ops.transpose(ops.reshape(kernel, (-1, GATES, units)), (1, 2, 0))


def _as_columns(kernel: Any) -> Any:
    """The way back."""
    return ops.reshape(ops.transpose(kernel, (2, 0, 1)), (kernel.shape[2], -1))
