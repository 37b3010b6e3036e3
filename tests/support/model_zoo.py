"""Small models of every shape that `quantize_model` must take, and what the tests of conversion ask of models."""

import keras
import numpy as np

L = keras.layers


def randomize(model, seed=3):
    """Give every variable of a model values that differ: fresh batch norms and biases would hide mistakes."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        low = 0.5 if "variance" in variable.path or "gamma" in variable.path else -0.5
        variable.assign(rng.uniform(low, low + 1.0, variable.shape).astype("float32"))
    for layer in model._flatten_layers():
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()
    return model


def inputs_of(model, count=4, seed=4, side=12):
    """Random inputs in the structure the model takes; unknown axes become `side`."""
    rng = np.random.default_rng(seed)

    def draw(tensor):
        shape = [count, *(axis or side for axis in tensor.shape[1:])]
        return rng.normal(size=shape).astype("float32")

    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.map_structure(draw, structure)


def run(model, inputs):
    """Outputs at inference, flattened, as NumPy arrays."""
    return [keras.ops.convert_to_numpy(output) for output in keras.tree.flatten(model(inputs, training=False))]


def sequential():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            L.Conv2D(4, 3, padding="same", use_bias=False),
            L.BatchNormalization(),
            L.ReLU(),
            L.Flatten(),
            L.Dense(5, activation="softmax"),
        ],
        name="plain",
    )


def residual():
    image = keras.Input((8, 8, 3), name="image")
    features = L.Conv2D(4, 3, padding="same", activation="relu", name="stem")(image)
    branch = L.DepthwiseConv2D(3, padding="same", use_bias=False)(features)
    branch = L.BatchNormalization(name="norm")(branch)
    out = L.ReLU(name="out")(L.Add(name="sum")([branch, features]))
    return keras.Model(image, L.Dense(3, name="head")(L.GlobalAveragePooling2D(name="pool")(out)), name="residual")


def nested_twice():
    inner = keras.Sequential([keras.Input((6, 6, 4)), L.Conv2D(4, 3, padding="same", name="conv")], name="inner")
    image = keras.Input((6, 6, 4))
    middle = keras.Model(image, L.ReLU()(inner(inner(image))), name="middle")
    outer = keras.Input((6, 6, 4), name="image")
    return keras.Model(outer, L.Conv2D(2, 1, name="conv")(middle(outer)), name="nested")


def many_ends():
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    shared = L.Dense(4, activation="relu", name="shared")
    a, b = shared(left), shared(right)
    both = L.Concatenate(name="both")([a, b])
    return keras.Model([left, right], [L.Dense(2, name="first")(both), L.Multiply(name="second")([a, b])], name="ends")


def dicts():
    inputs = {"b": keras.Input((5,), name="b"), "a": keras.Input((3,), name="a")}
    a = L.Dense(4, name="dense_a")(inputs["a"])
    b = L.Dense(4, name="dense_b")(inputs["b"])
    return keras.Model(inputs, {"sum": L.Add()([a, b]), "a": L.Activation("tanh")(a)}, name="dicts")


def variable_size():
    image = keras.Input((None, None, 3), name="image")
    features = L.Conv2D(4, 3, strides=2, activation="relu")(image)
    features = L.UpSampling2D(2)(L.MaxPooling2D()(features))
    return keras.Model(image, L.Dense(2)(L.GlobalMaxPooling2D()(features)), name="any_size")


def operators():
    image = keras.Input((8, 8, 3), name="image")
    features = keras.ops.relu(L.Conv2D(4, 3, name="conv")(image) + 1.0)
    gate = keras.ops.sigmoid(keras.ops.mean(features, axis=(1, 2), keepdims=True))
    features = (features * gate)[:, 1:-1, :, ::2]
    return keras.Model(image, keras.ops.reshape(features, (-1, 4 * 6 * 2)) - 0.5, name="operators")


def gates():
    image = keras.Input((6, 6, 4), name="image")
    swish = L.Activation("silu", name="swish")
    features = swish(L.Conv2D(4, 1, activation="silu", name="conv")(swish(image)))
    return keras.Model(image, keras.ops.hard_silu(features), name="gates")


def separable():
    image = keras.Input((8, 8, 3), name="image")
    layer = L.SeparableConv2D(
        5, 3, strides=2, padding="same", dilation_rate=1, depth_multiplier=2, activation="relu", name="sep"
    )
    return keras.Model(image, layer(image), name="separable")


def other_kernels():
    steps = keras.Input((9, 4), name="steps")
    features = L.Conv1D(6, 3, padding="causal", activation="relu", name="conv1d")(steps)
    image = L.Reshape((3, 3, 6))(features)
    return keras.Model(steps, L.Conv2DTranspose(2, 3, strides=2, name="up")(image), name="others")


def dense_chain():
    image = keras.Input((6, 6, 4), name="image")
    features = image
    for index in range(3):
        new = L.Conv2D(3, 3, padding="same", activation="relu", name=f"conv{index}")(features)
        features = L.Concatenate(name=f"concat{index}")([features, new])
        if index == 1:
            features = L.MaxPooling2D(2)(features)
    return keras.Model(image, L.GlobalAveragePooling2D(name="pool")(features), name="chain")


def recurrent():
    steps = keras.Input((5, 4), name="steps")
    attended = L.MultiHeadAttention(2, 3, name="attention")(steps, steps)
    features = L.LSTM(4, name="lstm")(L.LayerNormalization(name="norm")(attended + steps))
    return keras.Model(steps, L.Dense(2, name="head")(features), name="recurrent")


def preprocessing():
    image = keras.Input((8, 8, 3), name="image")
    features = L.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(L.Rescaling(2.0, -1.0)(image))
    features = L.Dropout(0.5)(L.ZeroPadding2D(1)(L.Cropping2D(1)(features)))
    return keras.Model(image, L.Conv2D(2, 3, name="conv")(features), name="preprocessing")


MODELS = {
    make.__name__: make
    for make in (
        sequential,
        residual,
        nested_twice,
        many_ends,
        dicts,
        variable_size,
        operators,
        gates,
        separable,
        other_kernels,
        dense_chain,
        recurrent,
        preprocessing,
    )
}
