"""Random integer graphs: chains and diamonds of every operation, with ugly grids, shapes, weights and inputs.

`random_graph(draw)` takes hypothesis' `draw`, so that a failing graph shrinks; array contents come from a drawn seed. With
codes="int16" activations are int16, and operations without a kernel for them are left out.
"""

import numpy as np
from hypothesis import strategies as st

from keras_lowbit.deploy.graph import GraphBuilder, Range
from keras_lowbit.deploy.graph.operations.masks import COMPARISONS
from tests.support.litert_oracle import float_model

ACTIVATIONS = (None, None, "relu", "relu6")
SCALES = st.floats(-9.0, 0.0).map(lambda e: float(np.float32(2.0**e)))
ZERO_POINTS = st.sampled_from([-128, 127, 0, -1, 1]) | st.integers(-128, 127)
STYLES = ("any", "corners", "low", "high", "any")


class Source:
    """Draws numbers, grids and codes. kind: of the codes of activations."""

    def __init__(self, draw, kind="int8"):
        self.draw, self.kind = draw, kind
        self.finer = 1 if kind == "int8" else 256  # steps in one of int8
        self.random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def integer(self, low, high):
        return self.draw(st.integers(low, high))

    def pick(self, values):
        return self.draw(st.sampled_from(list(values)))

    def pair(self, low, high):
        return [self.integer(low, high), self.integer(low, high)]

    def range(self):
        return self.grid(self.draw(SCALES) / self.finer)

    def grid(self, scale):
        if self.kind == "int16":
            return Range(float(np.float32(max(scale, 2.0**-24))), 0, "int16")  # 6 / scale is to fit int32
        return Range(float(np.float32(scale)), self.draw(ZERO_POINTS), self.kind)

    def range_near(self, scale, octaves=3.0):
        """A grid whose scale is within some octaves of `scale`: smaller saturates, larger wastes codes."""
        factor = 2.0 ** self.draw(st.floats(-octaves, octaves))
        return self.grid(scale * factor)

    def codes(self, shape, low=None, kind=None):
        kind = kind or self.kind
        style, high = self.pick(STYLES), np.iinfo(kind).max
        low = np.iinfo(kind).min if low is None else low
        if style in ("low", "high"):
            return np.full(shape, low if style == "low" else high, kind)
        if style == "corners":
            return self.random.choice(np.array([low, high], kind), shape)
        return self.random.integers(low, high + 1, shape, kind)

    def weights(self, shape, channels, fan_in, scale):
        """codes, scales, bias of a layer, and an output scale that suits it."""
        bits = self.pick([8, 8, 4, 2])
        codes = (
            self.codes(shape, -127, "int8")
            if bits == 8
            else self.random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, np.int8)
        )
        scales = np.float32(2.0) ** self.random.uniform(-9, -5, channels).astype(np.float32)
        spread = float(np.abs(codes.astype(float)).mean() + 1) * 60 * np.sqrt(fan_in)
        most = int(spread) * self.finer
        if self.kind == "int16" and self.integer(0, 3) == 0:
            most <<= 16  # more than int32 holds
        bias = None if self.integer(0, 3) == 0 else self.random.integers(-most, most + 1, channels)
        return codes, scales, bias, scale * 2.0**-7 * spread / 64


class Growing:
    """A graph under construction and the tensors that the next node may read."""

    def __init__(self, draw, codes="int8"):
        self.source, self.builder = Source(draw, codes), GraphBuilder(metadata={"made": "at random"})
        self.live, self.read, self.count = [], set(), 0
        self.ends, self.ids = [], {}  # tensors that no operation reads; whole numbers by the name of their input
        self.batch = self.source.integer(1, 2)

    def tensor(self, name):
        return self.builder.tensor(name)

    def shape(self, name):
        return self.tensor(name).shape[1:]

    def take(self, rank=None):
        """Mostly the newest tensor (a chain), sometimes an older one (a branch)."""
        fits = [n for n in self.live if rank is None or len(self.shape(n)) == rank]
        if not fits:
            return None
        name = fits[-1] if self.source.integer(0, 2) else self.source.pick(fits)
        self.read.add(name)
        return name

    def name(self, op):
        self.count += 1
        return f"{op}_{self.count}"

    def unread(self):
        return [n for n in self.live if n not in self.read]


def random_graph(draw, most=7, codes="int8"):
    """(graph, inputs by name, container of the weights). codes: type of the activations."""
    growing = Growing(draw, codes)
    source = growing.source
    shape = [*source.pair(1, 9), source.integer(1, 9)]
    for i in range(source.integer(1, 2)):
        growing.live.append(growing.builder.input(f"input_{i}", shape, range=source.range()))
    for _ in range(source.integer(1, most)):
        made = source.pick(OPERATIONS)(growing)
        if made is not None:
            growing.live.append(made)
    outputs = growing.unread()
    made = [n for n in outputs if not n.startswith("input_")] + growing.ends
    graph = growing.builder.build(made or [growing.builder.relu(growing.live[0], source.range(), "only")])
    inputs = {n: growing.ids[n] if n in growing.ids else source.codes((growing.batch, *shape)) for n in graph.inputs}
    return graph, inputs, source.pick(["int8", "int8", "int4", "int2"])


def _windows(g, x, kernel, dilation=(1, 1)):
    """A padding that fits: "valid" and explicit ones only where the window does."""
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    fits = all(r <= s for r, s in zip(reach, g.shape(x)[:2], strict=True))
    return g.source.pick(["same", "valid"] if fits else ["same"])


def _conv2d(g):
    x = g.take(4 - 1)
    if x is None:
        return None
    s, channels = g.source, g.shape(x)[-1]
    kernel, dilation = s.pair(1, 3), s.pair(1, 2)
    strides = s.pair(1, 3)
    if s.integer(0, 2) == 0:
        kernel, dilation, strides = [1, 1], [1, 1], [1, 1]
    groups = s.pick([n for n in range(1, channels + 1) if channels % n == 0])
    out = groups * s.integer(1, 4)
    fan_in = kernel[0] * kernel[1] * channels // groups
    codes, scales, bias, scale = s.weights((*kernel, channels // groups, out), out, fan_in, g.tensor(x).range.scale)
    padding = _windows(g, x, kernel, dilation)
    if s.integer(0, 4) == 0:
        padding = [
            [r + s.integer(0, 2), s.integer(0, 2)] for r in ((k - 1) * d for k, d in zip(kernel, dilation, strict=True))
        ]
    return g.builder.conv2d(
        x,
        codes,
        scales,
        bias,
        s.range_near(scale),
        g.name("conv2d"),
        strides,
        padding,
        dilation,
        groups,
        s.pick(ACTIVATIONS),
    )


def _depthwise(g):
    x = g.take(3)
    if x is None:
        return None
    s, channels = g.source, g.shape(x)[-1]
    kernel, dilation, multiplier = s.pair(1, 3), s.pair(1, 2), s.integer(1, 3)
    codes, scales, bias, scale = s.weights(
        (*kernel, channels, multiplier), channels * multiplier, kernel[0] * kernel[1], g.tensor(x).range.scale
    )
    return g.builder.depthwise_conv2d(
        x,
        codes,
        scales,
        bias,
        s.range_near(scale),
        g.name("depthwise"),
        [s.integer(1, 3)] * 2,
        _windows(g, x, kernel, dilation),
        dilation,
        s.pick(ACTIVATIONS),
    )


def _transpose_conv(g):
    x = g.take(3)
    if x is None or max(g.shape(x)[:2]) > 12:
        return None
    s, channels, out = g.source, g.shape(x)[-1], g.source.integer(1, 5)
    kernel = s.pair(1, 4)
    codes, scales, bias, scale = s.weights((*kernel, out, channels), out, channels * 2, g.tensor(x).range.scale)
    return g.builder.transpose_conv(
        x,
        codes,
        scales,
        bias,
        s.range_near(scale),
        g.name("transpose_conv"),
        s.pair(1, 3),
        s.pick(["same", "valid"]),
        None,
        s.pick(ACTIVATIONS),
    )


def _fully_connected(g):
    x = g.take()
    s, channels, out = g.source, g.shape(x)[-1], g.source.integer(1, 9)
    codes, scales, bias, scale = s.weights((channels, out), out, channels, g.tensor(x).range.scale)
    return g.builder.fully_connected(x, codes, scales, bias, s.range_near(scale), g.name("dense"), s.pick(ACTIVATIONS))


def _lstm(g):
    """All steps of an LSTM of any scales: gates that saturate, cells that do."""
    if g.source.kind == "int16":
        return None
    x, s = g.take(), g.source
    features, units = g.shape(x)[-1], s.integer(1, 9)
    if len(g.shape(x)) != 2:
        x = g.builder.reshape(x, g.name("sequence"), [-1, features])
    reach = g.tensor(x).range.scale * 128
    kernel, recurrent = (s.codes((4, units, size), -127) for size in (features, units))
    scales = np.float32(2.0) ** s.random.uniform(-9, 2, (2, 4)).astype(np.float32) / 127
    scales[0] /= np.float32(reach)
    most = 8 * 128 * 127
    bias = None if s.integer(0, 3) == 0 else s.random.integers(-most, most + 1, (4, units))
    grid = s.range_near(2.0**-7, 2.0)
    return g.builder.lstm(x, kernel, scales[0], recurrent, scales[1], bias, grid, g.name("lstm"), s.integer(0, 6))


def _arithmetic(g):
    x, s = g.take(), g.source
    shape, scale = g.shape(x), g.tensor(x).range.scale
    same = [n for n in g.live if g.shape(n) == shape]
    operation = s.pick(["add", "sub", "mul"])
    if s.integer(0, 1):
        other = s.pick(same)
        g.read.add(other)
    else:
        kept = [d if s.integer(0, 1) else 1 for d in shape]
        constant = s.pick([kept[-1:], [1, *kept], [1], kept[1:]])
        other = g.builder.constant(g.name("constant"), s.codes(constant), *s.range())
    second = g.tensor(other).range.scale
    out = s.range_near(128 * s.finer * scale * second if operation == "mul" else max(scale, second))
    return getattr(g.builder, operation)(x, other, out, g.name(operation), s.pick(ACTIVATIONS))


def _extremum(g):
    """Of two tensors of one range, or a tensor and a constant in it."""
    x, s = g.take(), g.source
    shape, grid = g.shape(x), g.tensor(x).range
    fits = [n for n in g.live if g.shape(n) == shape and g.tensor(n).range == grid]
    operation = s.pick(["maximum", "minimum"])
    if s.integer(0, 1):
        other = s.pick(fits)
        g.read.add(other)
    else:
        constant = s.pick([shape[-1:], [1, *shape], [1]])
        other = g.builder.constant(g.name("constant"), s.codes(constant), *grid)
    return g.builder.operation(operation, (x, other), g.name(operation))


def _concatenation(g):
    x, s = g.take(), g.source
    axis = s.integer(1, len(g.shape(x)))
    fits = [
        n
        for n in g.live
        if g.tensor(n).range == g.tensor(x).range
        and len(g.shape(n)) == len(g.shape(x))
        and all(a == b for i, (a, b) in enumerate(zip(g.shape(n), g.shape(x), strict=True)) if i != axis - 1)
    ]
    parts = [x, *(s.pick(fits) for _ in range(s.integer(1, 2)))]
    g.read.update(parts)
    return g.builder.concatenation(parts, g.name("concatenation"), axis)


def _pool(g):
    x = g.take(3)
    if x is None:
        return None
    s, size = g.source, g.source.pair(1, 4)
    method = s.pick([g.builder.max_pool2d, g.builder.average_pool2d])
    return method(x, g.name("pool"), size, s.pair(1, 3), _windows(g, x, size), s.pick(ACTIVATIONS))


def _mean(g):
    x, s = g.take(), g.source
    axes = [a for a in range(1, len(g.shape(x)) + 1) if s.integer(0, 1)] or [1]
    keepdims = len(axes) == len(g.shape(x)) or s.integer(0, 1) == 1
    return g.builder.mean(x, s.range_near(g.tensor(x).range.scale), g.name("mean"), axes, keepdims)


def _extremum_over_axes(g):
    x, s = g.take(), g.source
    axes = [a for a in range(1, len(g.shape(x)) + 1) if s.integer(0, 1)] or [1]
    attributes = {"axes": axes, "keepdims": len(axes) == len(g.shape(x)) or s.integer(0, 1) == 1}
    operation = s.pick(["reduce_max", "reduce_min"])
    return g.builder.operation(operation, (x,), g.name(operation), attributes=attributes)


def _batch_matmul(g):
    """A stack of matrices with itself, one of them transposed, or with another that fits."""
    x, s = g.take(), g.source
    if len(g.shape(x)) < 2:
        return None
    shape, pairs = g.shape(x), [(x, True)]
    for name in g.live:
        other = g.shape(name)
        if len(other) == len(shape) and other[:-2] == shape[:-2]:
            pairs += [(name, True)] * (other[-1] == shape[-1]) + [(name, False)] * (other[-2] == shape[-1])
    other, turned = s.pick(pairs)
    g.read.add(other)
    swap = s.integer(0, 3) == 0 and g.shape(other)[-2:] == shape[-2:]
    scale = g.tensor(x).range.scale * g.tensor(other).range.scale * 128 * s.finer * shape[-1] ** 0.5
    attributes = {"transpose_a": bool(swap), "transpose_b": bool(turned and not swap)}
    return g.builder.operation("batch_matmul", (x, other), g.name("matmul"), s.range_near(scale), attributes)


def _argmax(g):
    """Places: nothing reads them."""
    if g.source.kind == "int16":
        return
    x, s = g.take(), g.source
    op = s.pick(["argmax", "argmin"])
    g.ends.append(getattr(g.builder, op)(x, g.name(op), s.integer(1, len(g.shape(x)))))


def _top_k(g):
    """Values that others read, and places that nothing reads."""
    x, s = g.take(), g.source
    values, places = g.builder.top_k(x, g.name("top_k"), s.integer(1, g.shape(x)[-1]))
    g.ends.append(places)
    return values


def _mask(g, shape):
    """Some of whole numbers that are an input of their own, maybe in other axes and back, and what they are not."""
    s, b = g.source, g.builder
    ids = b.input(g.name("numbers"), shape, "int32")
    g.ids[ids] = s.random.integers(-2, 3, (g.batch, *shape)).astype(np.int32)
    if s.integer(0, 1):
        ids = b.reshape(b.reshape(ids, g.name("row"), [-1]), g.name("back"), shape)
    mask = b.compare(ids, g.name("compare"), s.pick(COMPARISONS), s.integer(-2, 2))
    if s.integer(0, 1):
        other = b.logical("not", [b.compare(ids, g.name("compare"), "equal", 0)], g.name("not"))
        mask = b.logical(s.pick(["and", "or"]), [mask, other], g.name("both"))
    if s.integer(0, 1):
        g.ends.append(mask)
    return mask


def _where(g):
    """A choice between codes and a constant, or other codes in the same range."""
    x, s, b = g.take(), g.source, g.builder
    shape, grid = g.shape(x), g.tensor(x).range
    mask = _mask(g, [size if s.integer(0, 2) else 1 for size in shape])
    fits = [name for name in g.live if g.shape(name) == shape and name != x]
    if fits and s.integer(0, 1):
        other = s.pick(fits)
        g.read.add(other)
        other = b.quantize(other, grid, g.name("other"))
    else:
        other = b.constant(g.name("constant"), s.codes(s.pick([(1,), (1, *shape)])), *grid)
    parts = [x, other] if s.integer(0, 1) else [other, x]
    return b.where(mask, *parts, g.name("where"))


def _embedding(g):
    """Rows of a table, by ids that are an input of their own."""
    s, rows = g.source, g.source.integer(1, 9)
    shape, grid = [s.integer(1, 4) for _ in range(s.integer(1, 2))], s.range()
    ids = g.builder.input(g.name("ids"), shape, "int32")
    g.ids[ids] = s.random.integers(0, rows, (g.batch, *shape)).astype(np.int32)
    return g.builder.embedding(ids, s.codes((rows, s.integer(1, 6))), grid, g.name("embedding"))


def _move(g):
    """Operations that only move codes."""
    x, s = g.take(), g.source
    shape, b = g.shape(x), g.builder
    kind = s.pick(["pad", "reshape", "transpose", "slice", "gather"])
    if kind == "gather":
        axis = s.integer(1, len(shape))
        return b.gather(x, g.name("gather"), axis, [s.integer(0, shape[axis - 1] - 1) for _ in range(s.integer(1, 9))])
    if kind == "pad":
        return b.pad(x, g.name("pad"), [s.pair(0, 2) for _ in shape])
    if kind == "reshape":
        return b.reshape(x, g.name("reshape"), s.pick([[-1], [shape[-1], -1], [1, -1, shape[0]], list(shape)]))
    if kind == "transpose":
        return b.transpose(x, g.name("transpose"), [0, *s.draw(st.permutations(range(1, len(shape) + 1)))])
    begin = [s.integer(0, d - 1) for d in shape]
    end = [s.integer(lo + 1, d) for lo, d in zip(begin, shape, strict=True)]
    return b.strided_slice(x, g.name("slice"), begin, end, [s.integer(1, 2) for _ in shape])


def _resize(g):
    x = g.take(3)
    if x is None:
        return None
    s = g.source
    half_pixel, aligned = s.pick([(True, False), (False, False), (False, True)])
    method = s.pick([g.builder.resize_nearest, g.builder.resize_bilinear])
    return method(x, g.name("resize"), s.pair(1, 12), half_pixel, aligned)


def _activation(g):
    x, s, b = g.take(), g.source, g.builder
    near = s.range_near(g.tensor(x).range.scale, 5.0)
    kinds = ["relu", "relu6", "leaky_relu", "quantize"]
    kinds += ["softmax", "logistic", "tanh"] if s.kind == "int8" or g.tensor(x).range.scale < 5 else []
    kind = s.pick([*kinds, "hard_swish"] if s.kind == "int8" else kinds)
    if kind in ("softmax", "logistic", "tanh"):
        return getattr(b, kind)(x, g.name(kind))
    if kind == "leaky_relu":
        return b.leaky_relu(x, near, g.name(kind), s.pick([0.01, 0.1, 0.2, 0.3, 0.0, 1.5, -0.3]))
    return getattr(b, kind)(x, near, g.name(kind))


def _table(g):
    """Any function of a code."""
    count = 256 if g.source.kind == "int8" else 65536
    return g.builder.table(g.take(), g.source.codes((count,)), g.source.range(), g.name("table"))


def _float_subgraph(g):
    """Codes -> float32 -> an operation that has no integer kernel -> codes."""
    x, s, b = g.take(), g.source, g.builder
    if s.kind == "int16" and g.tensor(x).range.scale > 0.5:
        return None  # 2**31 steps of the range behind it, which C's cast to int32 does not take
    shape, name = (g.batch, *g.shape(x)), g.name("subgraph")
    real = b.dequantize(x, f"{name}/real")
    kind = s.pick(["COS", "ABS", "FLOOR"])
    (value,) = b.float_subgraph([real], float_model(kind, [shape], shape), name)
    return b.quantize(value, s.range_near(2.0**-6 / s.finer), f"{name}/codes")


OPERATIONS = (
    _conv2d,
    _conv2d,
    _conv2d,
    _depthwise,
    _depthwise,
    _transpose_conv,
    _fully_connected,
    _lstm,
    _arithmetic,
    _arithmetic,
    _extremum,
    _concatenation,
    _pool,
    _pool,
    _mean,
    _extremum_over_axes,
    _batch_matmul,
    _argmax,
    _top_k,
    _where,
    _embedding,
    _move,
    _move,
    _resize,
    _activation,
    _activation,
    _activation,
    _table,
    _float_subgraph,
)
