"""Draws the pictures of the method pages from the library's own code, at every build, into docs/_static/figures."""

from pathlib import Path

import keras
import matplotlib
import numpy as np

import keras_lowbit as klb
from keras_lowbit import schedules
from keras_lowbit.layers import QuantizerHost
from keras_lowbit.numerics import soft_rounding
from keras_lowbit.quantizers import (
    AdjustableThreshold,
    Binary,
    Clustered,
    LearnedStep,
    PowerOfTwo,
    Ternary,
    Uniform,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WEIGHTS = np.linspace(-1, 1, 2001, dtype="float32")
TICKS = (-1, -0.5, 0, 0.5, 1)


def quantized(quantizer, weights=WEIGHTS, **state) -> np.ndarray:
    """What a layer would multiply with. state: values of the quantizer's variables."""
    host = QuantizerHost(quantizer)
    host.build(weights.shape)
    for name, value in state.items():
        host.state[name].assign(np.full(host.state[name].shape, value, "float32"))
    return keras.ops.convert_to_numpy(host(keras.ops.convert_to_tensor(weights)))


def curves(place, named, title) -> None:
    """Weight against quantized weight, one line for each quantizer."""
    place.plot(WEIGHTS, WEIGHTS, color="0.8", label="float")
    for name, values in named.items():
        place.plot(WEIGHTS, values, label=name)
    place.set(title=title, xlabel="weight", ylabel="quantized weight", xticks=TICKS, yticks=TICKS)
    place.legend(fontsize="small")


def sq(left, right) -> None:
    """The two bases, and the stages of the ratio."""
    curves(left, {"ternary (TWN)": quantized(Ternary()), "binary (BWN)": quantized(Binary())}, "The base grids")
    ratios = schedules.exponential()
    epochs = np.arange(16)
    stages = [ratios[schedules.stage_at(int(epoch), len(ratios), len(epochs))] for epoch in epochs]
    right.step(epochs, stages, where="post")
    right.set(title="Ratio of quantized filters", xlabel="epoch of 16", ylim=(0, 1.05))


def inq(left, right) -> None:
    """Powers of two of 2, 3 and 5 bits, and the portions of the published steps."""
    curves(left, {f"{bits} bits": quantized(PowerOfTwo(bits)) for bits in (2, 3, 5)}, "Powers of two")
    for bits in (5, 4, 3, 2):
        portions = schedules.portions(bits)
        right.step(range(1, len(portions) + 1), portions, where="mid", label=f"{bits} bits")
    right.set(title="Portion of frozen weights", xlabel="step", ylim=(0, 1.05))
    right.legend(fontsize="small")


def clustered(left, right) -> None:
    """Relative squared error of clusters of normally distributed weights, for 3x3 and 1x1 kernels."""
    sizes = (1, 2, 4, 8, 16, 32, 64)
    for place, kernel in ((left, 3), (right, 1)):
        weights = np.random.default_rng(0).normal(size=(kernel, kernel, 64, 32)).astype("float32")
        for name, base in (("ternary", Ternary()), ("4 bits", Uniform(4))):
            errors = []
            for size in sizes:
                host = QuantizerHost(Clustered(base, cluster_size=size), filter_axes=(-1,))
                found = keras.ops.convert_to_numpy(host(keras.ops.convert_to_tensor(weights)))
                errors.append(((found - weights) ** 2).sum() / (weights**2).sum())
            place.plot(sizes, errors, marker="o", label=name)
        place.set(title=f"{kernel}x{kernel} kernels, normal weights", xlabel="N", ylabel="relative squared error")
        place.set_xscale("log", base=2)
        place.set_ylim(bottom=0)
        place.legend(fontsize="small")


def fat(left, right) -> None:
    """A 4-bit grid for two values of the trained factor, and its error on normal weights against the factor."""
    grid = AdjustableThreshold(Uniform(4, granularity="tensor"))
    curves(left, {f"a = {a:g}": quantized(grid, factor=a) for a in (1.0, 0.6)}, "4 bits, factor of the threshold")
    weights = np.random.default_rng(0).normal(size=20000).astype("float32")
    factors = np.linspace(0.5, 1, 41)
    errors = [((quantized(grid, weights, factor=a) - weights) ** 2).mean() / (weights**2).mean() for a in factors]
    right.plot(factors, errors)
    right.set(title="20,000 normal weights", xlabel="a", ylabel="relative squared error", ylim=(0, None))


def learned_steps(left, right) -> None:
    """LSQ at 3 bits, and the gradient of its output to the factor of the step, by the library's own backward pass."""
    import tensorflow as tf

    points = WEIGHTS[::10]
    host = QuantizerHost(LearnedStep(Uniform(3, granularity="tensor")))
    host.build(points.shape)
    host.state["threshold"].assign(0.6 * np.ones(host.state["threshold"].shape))
    with tf.GradientTape(persistent=True) as tape:
        values = host(tf.constant(points))
    gradients = tape.jacobian(values, host.state["factor"].value, experimental_use_pfor=False)
    left.plot(points, points, color="0.8", label="float")
    left.plot(points, values, label="3 bits")
    left.set(title="LSQ", xlabel="weight", ylabel="quantized weight", xticks=TICKS, yticks=TICKS)
    left.legend(fontsize="small")
    right.plot(points, tf.reshape(gradients, [-1]))
    right.set(title="Gradient to the factor of the step", xlabel="weight", xticks=TICKS)


def reconstruction(left, right) -> None:
    """How far up a weight is rounded, and what its indecision costs as beta falls."""
    logits = np.linspace(-4, 4, 401, dtype="float32")
    left.plot(logits, soft_rounding.up_share(logits))
    left.set(title="h(v): how far up", xlabel="v", ylabel="h")
    shares = np.linspace(0, 1, 201, dtype="float32")
    for beta in (20.0, 6.0, 2.0):
        right.plot(shares, [float(soft_rounding.softness(share, beta)) for share in shares], label=f"beta {beta:g}")
    right.set(title="What indecision costs", xlabel="h")
    right.legend(fontsize="small")


def reports() -> plt.Figure:
    """`plot.weights` of three layers on three grids."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3))
    features = keras.layers.Conv2D(32, 3, name="ternary")(inputs)
    features = keras.layers.Conv2D(32, 3, name="powers_of_two")(features)
    model = keras.Model(inputs, keras.layers.Conv2D(32, 3, name="four_bits")(features))
    grids = {"ternary": Ternary(), "powers_of_two": PowerOfTwo(4), "four_bits": Uniform(4)}
    return klb.plot.weights(klb.quantize_model(model, "int8", overrides=grids)[0])


def draw(app) -> None:
    """Hook of Sphinx: all pictures, before the pages are read."""
    folder = Path(app.srcdir) / "_static" / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for picture in (sq, inq, clustered, fat, learned_steps, reconstruction):
        figure, places = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
        picture(*places)
        figure.savefig(folder / f"{picture.__name__}.svg")
        plt.close(figure)
    reports().savefig(folder / "reports.svg")


def setup(app) -> dict:
    """Hook of Sphinx."""
    app.connect("builder-inited", draw)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
