"""One small network for each family of architectures that people put on phones: name -> (shape of the input, body)."""

import keras
import numpy as np
from keras import layers as L
from keras import ops


def conv(x, filters, size=3, strides=1, activation="relu", **options):
    x = L.Conv2D(filters, size, strides, padding="same", use_bias=False, **options)(x)
    x = L.BatchNormalization()(x)
    return L.Activation(activation)(x) if activation else x


def depthwise(x, strides=1, size=3, activation="relu6"):
    x = L.BatchNormalization()(L.DepthwiseConv2D(size, strides, padding="same", use_bias=False)(x))
    return L.Activation(activation)(x)


def u_net(x):
    first = conv(x, 8)
    second = conv(L.MaxPooling2D()(first), 12)
    deep = conv(L.MaxPooling2D()(second), 16)
    up = L.Concatenate()([L.Conv2DTranspose(12, 2, 2)(deep), second])
    up = L.Concatenate()([L.UpSampling2D(interpolation="bilinear")(conv(up, 12)), first])
    return L.Conv2D(3, 1, activation="softmax")(conv(up, 8))


def aspp(x):
    x = conv(x, 8, strides=2)
    branches = [conv(x, 6, 1), *(conv(x, 6, dilation_rate=rate) for rate in (2, 3))]
    pooled = conv(L.GlobalAveragePooling2D(keepdims=True)(x), 6, 1)
    branches.append(L.UpSampling2D((8, 8), interpolation="bilinear")(pooled))
    return L.Resizing(16, 16, "bilinear")(L.Conv2D(3, 1)(conv(L.Concatenate()(branches), 8, 1)))


def ssd(x):
    maps, boxes, scores = conv(conv(x, 8, strides=2), 12, strides=2), [], []
    for filters in (12, 16):
        boxes.append(L.Reshape((-1, 4))(L.Conv2D(8, 3, padding="same")(maps)))
        scores.append(L.Reshape((-1, 3))(L.Conv2D(6, 3, padding="same")(maps)))
        maps = conv(maps, filters, strides=2)
    return [L.Concatenate(axis=1)(boxes), L.Activation("sigmoid")(L.Concatenate(axis=1)(scores))]


def yolo(x):
    x = conv(conv(x, 8, strides=2, activation="leaky_relu"), 12, strides=2, activation="leaky_relu")
    x = L.Reshape((4, 4, 2, 7))(L.Conv2D(14, 1)(x))
    centre = ops.sigmoid(x[..., :2]) * 2.0 - 0.5
    size = ops.square(ops.sigmoid(x[..., 2:4]) * 2.0)
    return L.Concatenate()([centre, size, ops.sigmoid(x[..., 4:])])


def center_net(x):
    x = conv(conv(x, 8, strides=2), 12, strides=2)
    x = conv(L.Conv2DTranspose(8, 4, 2, padding="same", use_bias=False)(x), 8)
    return [L.Conv2D(2, 1, activation="sigmoid")(conv(x, 8)), L.Conv2D(2, 1)(conv(x, 8))]


def tcn(x):
    for rate in (1, 2, 4):
        y = L.Conv1D(8, 3, padding="causal", dilation_rate=rate, activation="relu")(x)
        y = L.Conv1D(8, 3, padding="causal", dilation_rate=rate, activation="relu")(y)
        x = L.Add()([L.Conv1D(8, 1)(x), y])
    return L.Dense(3, activation="softmax")(x[:, -1])


def wave_net(x):
    x, skips = L.Conv1D(8, 1)(x), []
    for rate in (1, 2, 4):
        gate = L.Multiply()(
            [L.Conv1D(8, 2, padding="causal", dilation_rate=rate, activation=f)(x) for f in ("tanh", "sigmoid")]
        )
        skips.append(L.Conv1D(8, 1)(gate))
        x = L.Add()([x, L.Conv1D(8, 1)(gate)])
    return L.Conv1D(4, 1)(L.ReLU()(L.Add()(skips)))


def crnn(x):
    x = L.MaxPooling2D((4, 2))(conv(x, 8))
    x = L.Reshape((8, 32))(L.Permute((2, 1, 3))(x))
    return L.Dense(5, activation="softmax")(L.LSTM(8, unroll=True, return_sequences=True)(x))


def attention_block(x, heads=2):
    y = L.LayerNormalization()(x)
    x = L.Add()([x, L.MultiHeadAttention(heads, 4)(y, y)])
    y = L.Dense(24, activation="gelu")(L.LayerNormalization()(x))
    return L.Add()([x, L.Dense(x.shape[-1])(y)])


def vit(x):
    x = L.Reshape((16, 12))(L.Conv2D(12, 4, 4)(x))
    x = x + np.random.default_rng(0).normal(size=(16, 12)).astype("float32") * 0.2
    x = attention_block(attention_block(x))
    return L.Dense(4)(L.GlobalAveragePooling1D()(L.LayerNormalization()(x)))


def mobile_vit(x):
    x = conv(conv(x, 8, strides=2, activation="silu"), 12, 1, activation="silu")
    patches = L.Reshape((4, 16, 12))(L.Permute((2, 1, 3))(L.Reshape((16, 4, 12))(x)))
    tokens = L.Reshape((64, 12))(patches)
    tokens = attention_block(tokens)
    back = L.Reshape((8, 8, 12))(L.Permute((2, 1, 3))(L.Reshape((4, 16, 12))(tokens)))
    return L.Dense(4)(L.GlobalAveragePooling2D()(conv(L.Concatenate()([x, back]), 12, activation="silu")))


def shuffle_net(x):
    x = conv(x, 16, strides=2)
    left, right = ops.split(x, 2, axis=-1)
    right = conv(depthwise(conv(right, 8, 1)), 8, 1)
    x = L.Concatenate()([left, right])
    x = L.Reshape((8, 8, 16))(L.Permute((1, 2, 4, 3))(L.Reshape((8, 8, 2, 8))(x)))
    return L.Dense(4)(L.GlobalAveragePooling2D()(conv(x, 16, groups=2)))


def ghost_net(x):
    x = conv(x, 8, strides=2)
    primary = conv(x, 6, 1)
    x = L.Concatenate()([primary, depthwise(primary, activation="relu")])
    scale = L.Dense(12, activation="hard_sigmoid")(L.Dense(4, activation="relu")(L.GlobalAveragePooling2D()(x)))
    return L.Dense(4)(L.GlobalAveragePooling2D()(L.Multiply()([x, L.Reshape((1, 1, 12))(scale)])))


def conv_next(x):
    x = L.LayerNormalization(epsilon=1e-6)(L.Conv2D(12, 4, 4)(x))
    y = L.LayerNormalization(epsilon=1e-6)(L.DepthwiseConv2D(7, padding="same")(x))
    y = L.Dense(12)(L.Dense(48, activation="gelu")(y)) * np.linspace(0.1, 1, 12, dtype="float32")
    x = L.LayerNormalization(epsilon=1e-6)(L.GlobalAveragePooling2D()(L.Add()([x, y])))
    return L.Dense(4)(x)


def siamese(x):
    tower = keras.Sequential([keras.Input((16, 8, 3)), L.Conv2D(8, 3, 2, activation="relu"), L.Flatten(), L.Dense(8)])
    first, second = tower(x[:, :, :8]), tower(x[:, :, 8:])
    return L.Dense(1, activation="sigmoid")(ops.abs(first - second))


def super_resolution(x):
    y = x
    for _ in range(2):
        y = L.Add()([y, L.Conv2D(3, 3, padding="same")(L.Conv2D(12, 3, padding="same", activation="relu")(y))])
    y = L.Conv2D(12, 3, padding="same")(y)  # pixel shuffle
    y = L.Reshape((32, 32, 3))(L.Permute((1, 3, 2, 4, 5))(L.Reshape((16, 16, 2, 2, 3))(y)))
    return L.Add()([y, L.UpSampling2D(interpolation="nearest")(x)])


def autoencoder(x):
    x = L.Dense(8, activation="relu")(L.Dense(24, activation="relu")(L.Flatten()(conv(x, 4, strides=4))))
    x = L.Reshape((4, 4, 4))(L.Dense(64, activation="relu")(x))
    x = L.Conv2DTranspose(8, 3, 2, padding="same", activation="relu")(x)
    return L.Conv2DTranspose(3, 3, 2, padding="same", activation="tanh")(x)


def ds_cnn(x):
    x = conv(x, 12, (5, 3), strides=2)
    for _ in range(2):
        x = conv(depthwise(x, activation="relu"), 12, 1)
    return L.Dense(5, activation="softmax")(L.Flatten()(L.AveragePooling2D((4, 4))(x)))


IMAGE, SIGNAL = (16, 16, 3), (16, 4)
FAMILIES = {
    body.__name__: (SIGNAL if body in (tcn, wave_net) else IMAGE, body)
    for body in (
        u_net,
        aspp,
        ssd,
        yolo,
        center_net,
        tcn,
        wave_net,
        crnn,
        vit,
        mobile_vit,
        shuffle_net,
        ghost_net,
        conv_next,
        siamese,
        super_resolution,
        autoencoder,
        ds_cnn,
    )
}


def made(name, seed=0):
    """The network, its weights and statistics all different, and data for it."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    shape, body = FAMILIES[name]
    entry = keras.Input(shape, name="x")
    model = keras.Model(entry, body(entry), name=name)
    for layer in model._flatten_layers():
        if isinstance(layer, L.BatchNormalization):
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.2, layer.beta.shape))
            layer.moving_mean.assign(rng.normal(0, 0.2, layer.beta.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 1.5, layer.beta.shape))
    return model, rng.normal(size=(32, *shape)).astype("float32")
