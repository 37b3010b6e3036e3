"""Small Keras models of layers that become compositions of integer operations: name -> `Case`."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers as kl

from tests.support.zoo_case import SIGNAL, VECTOR, Case, case, conv, function

SEQUENCE = (6, 8)
VOLUME = (3, 4, 6, 2)
MASK = np.tril(np.ones((1, 6, 5), bool), 2)
MASK[0, 3, 1] = False
KERNEL = np.cos(np.arange(144)).reshape(3, 3, 4, 4).astype("float32")
POSITIONS = np.sin(np.arange(48)).reshape(SEQUENCE).astype("float32")


def normalized(layer, shape=SEQUENCE):
    return function(lambda x: kl.Dense(3)(layer()(kl.Dense(8)(x))), shape)


def time_series(layer):
    return case(layer, lambda: kl.Dense(3), shape=SEQUENCE)


def block(x):
    """A block of a vision transformer."""
    x = x + POSITIONS
    x = kl.Add()([x, kl.MultiHeadAttention(2, 4, name="heads")(y := kl.LayerNormalization()(x), y)])
    return kl.Add()([x, kl.Dense(8)(kl.Dense(16, activation="gelu")(kl.LayerNormalization()(x)))])


def text():
    """Ids of tokens in, a class out."""
    ids = keras.Input((6,), dtype="int32", name="ids")
    found = kl.Dense(3)(kl.GlobalAveragePooling1D()(kl.Conv1D(5, 3, activation="relu")(kl.Embedding(9, 8)(ids))))
    return keras.Model(ids, [found, keras.ops.argmax(found, axis=-1)], name="text")


def padded_text():
    """Ids of tokens in, of which 0 counts nowhere: Keras hands the mask on from layer to layer."""
    ids = keras.Input((4,), dtype="int32", name="ids")
    x = kl.Dense(6)(kl.Embedding(9, 8, mask_zero=True)(ids))
    x = kl.Add()([x, kl.MultiHeadAttention(2, 3)(x, x)])
    return keras.Model(ids, kl.Dense(3)(kl.Bidirectional(kl.GRU(3, unroll=True))(x)), name="padded")


def flagged():
    """Whole numbers beside values, which say what counts."""
    x, flags = keras.Input((5, 4), name="x"), keras.Input((5,), dtype="int32", name="flags")
    seen = keras.ops.logical_or(flags > 2, keras.ops.logical_not(keras.ops.not_equal(flags, 1)))
    column = keras.ops.expand_dims(seen, -1)
    y = keras.ops.where(column, kl.Dense(4)(x), kl.Dense(4, activation="relu")(x))
    y = keras.ops.where(keras.ops.cast(flags, "bool")[..., None], y, 0.25) * keras.ops.cast(column, "float32")
    attended = kl.Attention()([y, kl.Dense(4)(x)], mask=[seen, keras.ops.less_equal(flags, 5)])
    return keras.Model([x, flags], [kl.Softmax()(kl.Dense(5)(attended), mask=seen[:, None]), column], name="flagged")


def picture():
    """Bytes in, prepared in two places."""
    image = keras.Input((6, 5, 3), dtype="uint8", name="image")
    half = kl.Conv2D(2, 3)(kl.Rescaling(1 / 255)(image))
    return keras.Model(image, kl.Add()([half, kl.Conv2D(2, 3)(keras.ops.cast(image, "float32") / 64)]), name="picture")


def volumes(x):
    """What a network of films or scans is made of."""
    x = kl.Conv3D(4, (2, 3, 3), (1, 2, 1), padding="same", activation="relu")(x)
    pooled = [kl.MaxPooling3D((2, 1, 3))(x), kl.AveragePooling3D(2, (1, 2, 1), padding="same")(x)]
    ends = [kl.GlobalMaxPooling3D()(x), kl.GlobalAveragePooling3D(keepdims=True)(x)]
    return [*pooled, *ends, kl.Conv3D(2, 2, dilation_rate=2, groups=2, use_bias=False)(kl.UpSampling3D((1, 2, 1))(x))]


def moved_volumes(x):
    x = kl.UpSampling3D(2)(kl.Cropping3D(((1, 0), (0, 2), (1, 1)))(kl.ZeroPadding3D((1, 0, 2))(kl.Dense(3)(x))))
    return kl.Dense(2)(kl.SpatialDropout3D(0.5)(kl.ZeroPadding3D(((0, 0), (0, 0), (1, 0)))(x)))


def grown_volumes(x):
    """What a network that segments scans ends with."""
    x = kl.Conv3DTranspose(4, (3, 3, 2), (2, 1, 2), padding="same", activation="relu")(x)
    up = kl.Conv3DTranspose(2, 2, 2, use_bias=False)(x)
    return [up, kl.Conv3DTranspose(3, (4, 1, 2), 1)(x), kl.Conv3DTranspose(2, 3, 2, output_padding=1)(x)]


def dilated_volumes(x):
    """Both ways of padding; the kernel's planes lie apart along the depth, or its pixels alone."""
    x = kl.Conv3DTranspose(4, (2, 3, 2), dilation_rate=(2, 1, 2), padding="same", activation="relu")(x)
    up = kl.Conv3DTranspose(2, (3, 2, 1), dilation_rate=(3, 1, 1), use_bias=False)(x)
    return [
        up,
        kl.Conv3DTranspose(3, (1, 2, 2), dilation_rate=(1, 2, 2))(x),
        kl.Conv3DTranspose(2, 3, dilation_rate=2)(x),
    ]


def adaptive(x):
    """Pools to a given size: of equal windows and of others."""
    x = kl.Conv2D(4, 3, activation="relu")(x)
    signal = kl.Reshape((7, 24))(x)
    volume = kl.Reshape((7, 6, 2, 2))(x)
    pools = [kl.AdaptiveAveragePooling2D((7, 2)), kl.AdaptiveMaxPooling2D((1, 3)), kl.AdaptiveAveragePooling2D(4)]
    pools = [pool(x) for pool in pools] + [kl.AdaptiveMaxPooling1D(3)(signal), kl.AdaptiveAveragePooling1D(1)(signal)]
    return [*pools, kl.AdaptiveMaxPooling3D((7, 3, 2))(volume), kl.AdaptiveAveragePooling3D((2, 3, 2))(volume)]


def films(x):
    """A network at every picture of a film, what it sees normalized in it, and a recurrent layer over them."""
    picture = keras.Input((6, 5, 2))
    seen = kl.LayerNormalization()(kl.Conv2D(3, 3, activation="relu", name="c")(picture))
    body = keras.Model(picture, kl.Dense(4)(kl.Flatten()(seen)), name="body")
    return kl.LSTM(3, unroll=True)(kl.TimeDistributed(body, name="every")(x))


EXPANSIONS: dict[str, Case] = {
    "films": function(films, (3, 6, 5, 2)),
    "volumes": function(volumes, VOLUME),
    "grown volumes": function(grown_volumes, VOLUME),
    "volumes grown by kernels with holes": function(dilated_volumes, (3, 4, 4, 2)),
    "moved volumes": function(moved_volumes, VOLUME),
    "pools to a size": function(adaptive),
    "embedding and argmax": Case(text),
    "places of the largest": function(lambda x: keras.ops.argmax(conv()()(x), axis=1)),
    "bytes of an image": Case(picture),
    "product of an axis": function(lambda x: keras.ops.prod(kl.Dense(4)(x), axis=1), (3, 4)),
    "products so far": function(lambda x: kl.Dense(3)(keras.ops.cumprod(keras.ops.sigmoid(x), axis=1)), (7, 4)),
    "products so far of many": function(
        lambda x: kl.Dense(2)(keras.ops.cumprod(kl.Dense(2, "sigmoid")(x), axis=1)),
        (70, 2),
        float_fallbacks=("cumprod",),
    ),
    "products so far of channels": function(lambda x: keras.ops.cumprod(kl.Dense(2)(x), axis=-1), (3, 4)),
    "products kept": function(lambda x: kl.Dense(2)(keras.ops.prod(kl.Dense(5)(x), axis=-1, keepdims=True)), (3, 4)),
    "variance of columns": function(
        lambda x: kl.Dense(2)(keras.ops.var(kl.Dense(4)(x), axis=1, keepdims=True)), (6, 4)
    ),
    "places in a list": function(lambda x: kl.Dense(2)(keras.ops.take(kl.Dense(4)(x), [2, 0], axis=1)), (3, 4)),
    "text with a mask": Case(padded_text),
    "flags beside values": Case(flagged),
    "places of the smallest": function(lambda x: keras.ops.argmin(conv()()(x), axis=-1)),
    "deviation": function(lambda x: kl.Dense(2)(keras.ops.std(kl.Dense(8)(x), axis=-1, keepdims=True)), SEQUENCE),
    "deviation of columns": function(lambda x: kl.Dense(2)(keras.ops.std(kl.Dense(4)(x), axis=1)), SEQUENCE),
    "additive attention": function(
        lambda x: kl.AdditiveAttention()([kl.Dense(4)(x), kl.Dense(4)(x)], use_causal_mask=True), SEQUENCE
    ),
    "additive attention without a scale": function(
        lambda x: kl.AdditiveAttention(use_scale=False)([x, x[:, 2:], kl.Dense(8)(x)[:, 1:5]]), SEQUENCE
    ),
    "attention with a scale": function(
        lambda x: kl.Attention(use_scale=True)([kl.Dense(4)(x), x[:, 2:, :4]], use_causal_mask=True), SEQUENCE
    ),
    "attention by sums": function(
        lambda x: kl.Attention(score_mode="concat", use_scale=True)([kl.Dense(4)(x), kl.Dense(4)(x)]), SEQUENCE
    ),
    "attention of heads": function(
        lambda x: keras.ops.dot_product_attention(
            *(kl.Reshape((6, 2, 3))(kl.Dense(6)(x)) for _ in range(3)), is_causal=True, scale=0.7
        ),
        SEQUENCE,
    ),
    "grouped attention": function(
        lambda x: kl.Add()([x, kl.GroupQueryAttention(3, 4, 2)(x, x, use_causal_mask=True)]), SEQUENCE
    ),
    "grouped attention of other values": function(
        lambda x: kl.GroupQueryAttention(3, 2, 1, use_bias=False, sliding_window=4)(kl.Dense(8)(x), x[:, 1:]), SEQUENCE
    ),
    "the largest and their places": function(lambda x: list(keras.ops.top_k(conv()()(x), 2))),
    "the largest alone": function(lambda x: kl.Dense(3)(keras.ops.top_k(conv()()(x), 3)[0])),
    "places of the largest alone": function(lambda x: keras.ops.top_k(conv()()(x), 1)[1]),
    "layer normalization": normalized(kl.LayerNormalization),
    "layer normalization of an image": function(lambda x: conv()()(kl.LayerNormalization()(conv()()(x)))),
    "layer normalization of a vector": normalized(lambda: kl.LayerNormalization(center=False), VECTOR),
    "layer normalization alone": normalized(lambda: kl.LayerNormalization(center=False, scale=False)),
    "layer normalization over two axes": function(
        lambda x: kl.Dense(2)(kl.LayerNormalization((1, 2))(kl.Dense(3)(x))), SEQUENCE
    ),
    "layer normalization of columns": function(lambda x: conv()()(kl.LayerNormalization(2, scale=False)(conv()()(x)))),
    "rms normalization over two axes": normalized(lambda: kl.RMSNormalization((1, 2))),
    "unit normalization of images": function(lambda x: conv()()(kl.UnitNormalization((1, 2, 3))(conv()()(x)))),
    "layer normalization of what is normalized": normalized(
        lambda: lambda x: kl.LayerNormalization()(kl.LayerNormalization(center=False, scale=False)(x))
    ),
    "rms normalization": normalized(kl.RMSNormalization),
    "unit normalization": normalized(kl.UnitNormalization),
    "group normalization": function(lambda x: kl.ReLU()(kl.GroupNormalization(2)(conv()()(x)))),
    "instance normalization": function(
        lambda x: conv()()(kl.GroupNormalization(-1, center=False, scale=False)(conv()()(x)))
    ),
    "multi-head attention": function(lambda x: kl.Add()([x, kl.MultiHeadAttention(2, 4)(x, x)]), SEQUENCE),
    "attention of other values": function(
        lambda x: kl.MultiHeadAttention(2, 4, value_dim=3, output_shape=5, use_bias=False)(
            kl.Dense(6)(x), x[:, :4], x[:, 1:5]
        ),
        SEQUENCE,
    ),
    "causal attention": function(
        lambda x: kl.Dense(3)(kl.MultiHeadAttention(2, 4, name="a")(x, x, use_causal_mask=True)), SEQUENCE
    ),
    "attention with a constant mask": function(
        lambda x: kl.MultiHeadAttention(2, 4)(kl.Dense(8)(x), x[:, 1:], attention_mask=MASK), SEQUENCE
    ),
    "attention in a window": function(
        lambda x: kl.MultiHeadAttention(2, 4, sliding_window=2)(x, x, use_causal_mask=True), SEQUENCE
    ),
    "attention with a mask of heads": function(
        lambda x: kl.MultiHeadAttention(2, 4)(x, x[:, 1:], attention_mask=np.stack([MASK, MASK[:, ::-1]], 1)), SEQUENCE
    ),
    "causal dot attention": function(
        lambda x: kl.Attention()([kl.Dense(4)(x), kl.Dense(4)(x)], use_causal_mask=True), SEQUENCE
    ),
    "attention with a mask of an input": function(
        lambda x, mask: kl.MultiHeadAttention(2, 4, name="a")(x, x, attention_mask=mask > 0),
        SEQUENCE,
        (6, 6),
        float_fallbacks=("greater",),
    ),
    "attention": function(lambda x: kl.Attention()([kl.Dense(4)(x), kl.Dense(4)(x)]), SEQUENCE),
    "transformer": function(block, SEQUENCE),
    "einsum": time_series(lambda: kl.EinsumDense("abc,cd->abd", (6, 5), bias_axes="d", activation="relu")),
    "einsum of two axes": function(
        lambda x: kl.Flatten()(kl.EinsumDense("...cd,cde->...e", (2, 5), bias_axes="e")(kl.Reshape((6, 4, 2))(x))),
        SEQUENCE,
    ),
    "einsum that makes two axes": time_series(lambda: kl.EinsumDense("abc,dec->abde", (6, 2, 3), bias_axes="de")),
    "einsum that mixes positions": case(
        lambda: kl.EinsumDense("abc,bd->adc", (5, 8), bias_axes="d", activation="relu"),
        lambda: kl.Dense(3),
        shape=SEQUENCE,
    ),
    "einsum of each position by itself": case(
        lambda: kl.EinsumDense("abc,bcd->abd", (6, 5), name="e"),
        lambda: kl.Dense(3),
        shape=SEQUENCE,
        float_fallbacks=("e",),
    ),
    "einsum to axes in another order": time_series(
        lambda: kl.EinsumDense("abc,cde->adbe", (2, 6, 3), bias_axes="de", activation="tanh")
    ),
    "einsum with a constant": function(
        lambda x: keras.ops.einsum("tk,bkd->btd", POSITIONS[:4, :6], kl.Dense(3)(x)), SEQUENCE
    ),
    "a constant matrix from the left": function(lambda x: kl.Dense(2)(keras.ops.matmul(POSITIONS[:, :6], x)), SEQUENCE),
    "a constant matrix": function(lambda x: keras.ops.matmul(x, POSITIONS.T), SEQUENCE),
    "einsum of two tensors": function(
        lambda x: keras.ops.einsum(
            "bqhd,bkhd->bhqk", kl.Reshape((6, 2, 3))(kl.Dense(6)(x)), kl.Reshape((6, 2, 3))(kl.Dense(6)(x))
        ),
        SEQUENCE,
    ),
    "einsum back": function(
        lambda x: keras.ops.einsum("bqk,bkd->bqd", kl.Softmax()(kl.Dense(6)(x)), kl.Dense(3)(x)), SEQUENCE
    ),
    "log softmax": function(lambda x: kl.Activation("log_softmax")(kl.Dense(5)(x)), SEQUENCE),
    "log softmax alone": function(lambda x: keras.ops.log_softmax(kl.Dense(5)(x)), SEQUENCE),
    "a lambda of operations": case(
        conv(), lambda: kl.Lambda(lambda x: keras.ops.max(x, axis=1) + keras.ops.mean(x, axis=1)), shape=(9, 8, 4)
    ),
    "a new axis": function(lambda x: kl.Conv2D(2, (3, 1))(kl.Dense(4)(x)[:, 1:, None]), SEQUENCE),
    "a new axis behind a place": function(
        lambda x: kl.Conv1D(2, 3)(kl.Dense(4)(x)[:, 1, ..., None]), SEQUENCE, float_fallbacks=()
    ),
    "mirrored": function(lambda x: kl.Conv2D(2, 3)(keras.ops.pad(x, ((0, 0), (1, 1), (2, 1), (0, 0)), mode="reflect"))),
    "mirrored with its border": function(
        lambda x: kl.Conv2D(2, 3)(keras.ops.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)), mode="symmetric"))
    ),
    "product of tensors": function(
        lambda x: keras.ops.matmul(kl.Dense(4)(x), keras.ops.transpose(kl.Dense(4)(x), (0, 2, 1))), SEQUENCE
    ),
    "product in float": function(
        lambda x: kl.Dense(2)(
            keras.ops.matmul(kl.Activation("sparsemax", name="n")(x), keras.ops.transpose(kl.Dense(8)(x), (0, 2, 1)))
        ),
        SEQUENCE,
        float_fallbacks=("n",),
    ),
    "product of what is turned twice": function(
        lambda x: kl.Add()([keras.ops.matmul(x, y := keras.ops.transpose(kl.Dense(8)(x), (0, 2, 1))), y[:, :6]]),
        SEQUENCE,
    ),
    "dot": function(lambda x: kl.Dot((2, 2))([kl.Dense(4)(x), kl.Dense(4)(x)]), SEQUENCE),
    "dot of vectors": function(lambda x: kl.Dot(1)([kl.Dense(4)(x), kl.Dense(4)(x)]), VECTOR),
    "dot of directions": function(lambda x: kl.Dot((1, 2), normalize=True)([kl.Dense(6)(x), kl.Dense(6)(x)]), SEQUENCE),
    "divided by positions": function(lambda x: kl.Dense(3)(kl.Dense(8)(x) / (2.0 + POSITIONS)), SEQUENCE),
    "the larger at every position": function(
        lambda x: kl.Dense(3)(keras.ops.maximum(POSITIONS[:, :1], keras.ops.minimum(kl.Dense(8)(x), POSITIONS + 0.5))),
        SEQUENCE,
    ),
    "plus positions": function(lambda x: kl.ReLU()(kl.Dense(8)(x) + POSITIONS), SEQUENCE),
    "minus positions": function(lambda x: kl.Dense(3)(kl.Dense(8)(x) - POSITIONS[None]), SEQUENCE),
    "times positions": function(lambda x: kl.Dense(3)(kl.Dense(8)(x) * POSITIONS[:, :1]), SEQUENCE),
    "prelu": case(conv(), lambda: kl.PReLU("he_normal"), conv()),
    "prelu of channels": case(conv(), lambda: kl.PReLU("he_normal", shared_axes=(1, 2)), conv()),
    "softmax of two axes": function(lambda x: conv()()(kl.Softmax((1, 2))(conv()()(x)))),
    "softmax of an axis": function(lambda x: conv()()(kl.Softmax(1)(conv()()(x)))),
    "two tensors divided": function(
        lambda x: kl.Conv2D(2, 1)(kl.Conv2D(4, 1)(x) / (kl.ReLU()(kl.Conv2D(4, 1)(x)) + 1.0))
    ),
    "sum over axes": function(lambda x: kl.Dense(3)(keras.ops.sum(conv()()(x), axis=(1, 2)))),
    "variance": function(lambda x: kl.Conv2D(2, 1)(keras.ops.var(conv()()(x), axis=-1, keepdims=True))),
    "variance of images": function(lambda x: kl.Dense(3)(keras.ops.var(conv()()(x), axis=(1, 2)))),
    "deviation of rows": function(lambda x: conv(2, 1)()(keras.ops.std(conv()()(x), axis=(1, 3), keepdims=True))),
    "product over two axes": function(lambda x: kl.Dense(3)(keras.ops.prod(conv()()(x)[:, :2, :3], axis=(1, 2)))),
    "norm of axes": function(
        lambda x: (
            (y := conv()()(x))
            / (keras.ops.norm(y, axis=-1, keepdims=True) + keras.ops.norm(y[:, :1, :1], axis=-1, keepdims=True) + 0.5)
        )
    ),
    "a direction": function(lambda x: kl.Dense(3)(keras.ops.normalize(kl.Dense(4)(x), axis=-1)), VECTOR),
    "log of a sum of powers": function(lambda x: kl.Dense(3)(keras.ops.logsumexp(conv()()(x), axis=(1, 2)))),
    "average of an axis": function(lambda x: kl.Dense(3)(keras.ops.average(conv()()(x), axis=1))),
    "product of four": function(lambda x: conv()()(kl.Multiply()([x, conv(4, 1)()(x), x, kl.Dense(4)(x)]))),
    "pools and kernels of keras.ops": function(
        lambda x: keras.ops.depthwise_conv(
            keras.ops.average_pool(keras.ops.conv(keras.ops.max_pool(x, 2, 1), KERNEL, padding="same"), 3, 2, "same"),
            KERNEL[:2],
        )
    ),
    "blocks of pixels": function(
        lambda x: kl.Conv2D(2, 3)(
            keras.ops.depth_to_space(
                kl.Concatenate()([keras.ops.space_to_depth(kl.Conv2D(2, (2, 1))(x), 2), x[:, :4, :4]]), 2
            )
        )
    ),
    "blocks of pixels by tensorflow": function(
        lambda x: kl.Conv2D(2, 3)(
            kl.Lambda(lambda v: tf.nn.depth_to_space(v, 2))(
                kl.Lambda(lambda v: tf.nn.space_to_depth(v, 4))(kl.Conv2D(2, (2, 1))(x))
            )
        )
    ),
    "places moved by tensorflow": function(
        lambda x: kl.Dense(3)(kl.Lambda(lambda v: tf.reshape(tf.reverse(v, [1, 3]), (-1, 12, 24)))(conv(4, 1)()(x)))
    ),
    "axes in another order": function(
        lambda x: conv()()(keras.ops.moveaxis(keras.ops.swapaxes(conv()()(x), 1, 2), -1, 1))
    ),
    "a lambda of compositions": case(
        conv(),
        lambda: kl.Lambda(lambda x: keras.ops.softmax(x, axis=1) * keras.ops.std(x, axis=(1, 2), keepdims=True)),
        conv(2, 1),
    ),
    "largest over axes": function(lambda x: kl.Dense(3)(keras.ops.max(conv()()(x), axis=(1, 2)))),
    "smallest over an axis": function(lambda x: conv(2, 1)()(keras.ops.min(conv()()(x), axis=1, keepdims=True))),
    "separable 1-d": case(lambda: kl.SeparableConv1D(5, 3, activation="relu"), shape=SIGNAL),
    "depthwise 1-d": case(lambda: kl.DepthwiseConv1D(3, 2, padding="same", depth_multiplier=2), shape=SIGNAL),
    "transposed 1-d": case(lambda: kl.Conv1DTranspose(3, 4, 2, padding="same", activation="relu"), shape=SIGNAL),
    "dense at every step": time_series(lambda: kl.TimeDistributed(kl.Dense(4, activation="relu"))),
    "convolution at every step": function(
        lambda x: kl.TimeDistributed(kl.Conv1D(2, 2))(kl.Reshape((3, 4, 4))(x)), SEQUENCE
    ),
    "lstm": time_series(lambda: kl.LSTM(4, unroll=True)),
    "lstm backwards": time_series(lambda: kl.LSTM(4, unroll=True, go_backwards=True, return_sequences=True)),
    "lstm with states": function(
        lambda x, h, c: kl.LSTM(4, unroll=True, return_state=True, return_sequences=True)(x, initial_state=[h, c]),
        SEQUENCE,
        (4,),
        (4,),
    ),
    "gru that streams": function(
        lambda x, h: [kl.Dense(3)((y := kl.GRU(4, unroll=True, return_state=True)(x, initial_state=h))[0]), y[1]],
        (1, 8),
        (4,),
    ),
    "gru": time_series(lambda: kl.GRU(4, unroll=True)),
    "gru that resets before its product": time_series(lambda: kl.GRU(4, unroll=True, reset_after=False)),
    "bidirectional lstm": function(
        lambda x: kl.Dense(3)(kl.Bidirectional(kl.LSTM(3, unroll=True, return_sequences=True))(x)), (3, 5)
    ),
    "bidirectional gru, averaged": function(
        lambda x: kl.Bidirectional(kl.GRU(3, unroll=True), merge_mode="ave")(kl.Dense(4)(x)), (3, 5)
    ),
    "cell in an rnn": function(lambda x: kl.RNN(kl.SimpleRNNCell(4, dropout=0.1), unroll=True)(x), (3, 5)),
    "simple rnn": time_series(lambda: kl.SimpleRNN(4, unroll=True, use_bias=False)),
    "bilinear to three times": case(conv(), lambda: kl.UpSampling2D((3, 5), interpolation="bilinear"), conv()),
    "resizing": case(lambda: kl.Resizing(7, 13, "nearest"), conv()),
    "bilinear resizing": case(conv(4, 3, padding="same"), lambda: kl.Resizing(9, 4, "bilinear"), conv()),
    "bilinear resizing that drifts": case(conv(), lambda: kl.Resizing(5, 4, "bilinear"), conv()),
    "bilinear resizing of many": case(lambda: kl.Resizing(67, 9, "bilinear"), conv()),
    "centre crop": case(lambda: kl.CenterCrop(4, 5), conv()),
    "transposed with an output padding": case(lambda: kl.Conv2DTranspose(3, 3, 2, padding="same", output_padding=1)),
    "transposed and dilated": case(lambda: kl.Conv2DTranspose(3, (3, 2), dilation_rate=(2, 1))),
}
