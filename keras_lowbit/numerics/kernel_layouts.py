"""Which axis of a kernel means what, for each class of layer with weights. The one place that says it."""

import dataclasses

import numpy as np

from keras_lowbit.numerics.thresholds import per_filter_shape, reduced_axes

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class KernelLayout:
    """The axes of a kernel as Keras stores it.

    rank: how many axes there are.
    output_axes: those that number the output channels; with several, the last one runs fastest. Weights that share an
    output channel are one filter, so these are the `filter_axes` of the layers and quantizers.
    input_axis: the axis of the input channels; in a convolution with groups, those of one group.

    >>> LAYOUTS["Conv2D"].per_output(factors, kernel.shape)  # [1, 1, 1, c_out]
    """

    rank: int
    output_axes: tuple[int, ...]
    input_axis: int

    @property
    def is_depthwise(self) -> bool:
        """Whether each filter reads one input channel: the input axis numbers outputs too."""
        return self.input_axis in self._output_axes

    @property
    def inner_axes(self) -> tuple[int, ...]:
        """The axes inside one filter: all but those of the output channels."""
        return reduced_axes(self.rank, self.output_axes)

    @property
    def litert_axes(self) -> tuple[int, ...]:
        """The order of the axes in a LiteRT file: output channels first; depthwise kernels as Keras has them.

        A depthwise kernel has the shape ``[1, kh, kw, c_in * multiplier]`` there.
        """
        return tuple(range(self.rank)) if self.is_depthwise else (*self._output_axes, *self.inner_axes)

    def output_channels(self, shape: Shape) -> int:
        """How many output channels a kernel of that shape has."""
        return int(np.prod([shape[axis] for axis in self.output_axes], dtype=np.int64))

    def per_output(self, values: np.ndarray, shape: Shape) -> np.ndarray:
        """Values [output channels] in the shape that broadcasts against a kernel of `shape`."""
        return values.reshape(per_filter_shape(shape, self.output_axes))

    def per_input(self, values: np.ndarray, shape: Shape, groups: int = 1) -> np.ndarray:
        """Values [input channels] in the shape that broadcasts against a kernel of `shape`.

        groups: of the convolution. With several, each group of output channels has its own input channels.
        """
        if groups == 1:
            return values.reshape(per_filter_shape(shape, (self.input_axis,)))
        inside, outputs = shape[self.input_axis], self.output_channels(shape)
        group = np.arange(outputs) // (outputs // groups)
        return values[np.arange(inside)[:, None] + inside * group]  # [c_in / groups, c_out], the last two axes

    def output_maxima(self, kernel: np.ndarray) -> np.ndarray:
        """``max |w|`` of each output channel, [output channels]."""
        return np.abs(kernel).max(axis=self.inner_axes).reshape(-1)

    def input_maxima(self, kernel: np.ndarray) -> np.ndarray:
        """``max |w|`` over what multiplies each input channel, [input channels]; for convolutions of one group."""
        return np.abs(kernel).max(axis=reduced_axes(self.rank, (self.input_axis,)))

    def by_output(self, kernel: np.ndarray) -> np.ndarray:
        """The kernel as [output channels, weights of a filter]."""
        axes, channels = (*self._output_axes, *self.inner_axes), self.output_channels(kernel.shape)
        return kernel.transpose(axes).reshape(channels, kernel.size // max(channels, 1))

    def grouped(self, kernel: np.ndarray) -> np.ndarray:
        """The kernel as matrices [groups, inputs, outputs]: for each group ``inputs @ matrix`` are its sums.

        Depthwise: one group for each input channel, [c_in, kh * kw, multiplier]. Others: one group, [1, window * c_in,
        c_out]; of a convolution with several groups the one matrix holds all of them side by side.
        """
        if self.is_depthwise:
            return kernel.reshape(-1, *kernel.shape[2:]).transpose(1, 0, 2)
        return np.moveaxis(kernel, self.output_axes[0], -1).reshape(1, -1, self.output_channels(kernel.shape))

    def ungrouped(self, matrices: np.ndarray, shape: Shape) -> np.ndarray:
        """The kernel of `shape` from what `grouped` makes of it."""
        if self.is_depthwise:
            return matrices.transpose(1, 0, 2).reshape(shape)
        inner = [shape[axis] for axis in self.inner_axes]
        return np.moveaxis(matrices.reshape(*inner, -1), -1, self.output_axes[0])

    @property
    def _output_axes(self) -> tuple[int, ...]:
        return tuple(axis % self.rank for axis in self.output_axes)


def dilated(kernel: np.ndarray, dilation: tuple[int, int]) -> np.ndarray:
    """A kernel [kh, kw, ...] with zeros between its rows and columns: without a dilation it does what `kernel` does with it."""
    rows, columns = dilation
    found = np.zeros(
        ((kernel.shape[0] - 1) * rows + 1, (kernel.shape[1] - 1) * columns + 1, *kernel.shape[2:]), kernel.dtype
    )
    found[::rows, ::columns] = kernel
    return found


#: Class name of a stock layer -> the layout of its kernel. A SeparableConv2D has two: its depthwise kernel is one of
#: DepthwiseConv2D, its pointwise kernel one of Conv2D.
LAYOUTS: dict[str, KernelLayout] = {
    "Conv1D": KernelLayout(rank=3, output_axes=(-1,), input_axis=1),  # [k, c_in / groups, c_out]
    "Conv2D": KernelLayout(rank=4, output_axes=(-1,), input_axis=2),  # [kh, kw, c_in / groups, c_out]
    "DepthwiseConv2D": KernelLayout(rank=4, output_axes=(2, 3), input_axis=2),  # [kh, kw, c_in, multiplier]
    "Conv2DTranspose": KernelLayout(rank=4, output_axes=(2,), input_axis=3),  # [kh, kw, c_out, c_in]
    "Dense": KernelLayout(rank=2, output_axes=(-1,), input_axis=0),  # [inputs, units]
}
