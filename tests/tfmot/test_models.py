"""Whole models: annotate, apply, save, load, clone, schemes, callbacks, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras

import keras_lowbit as klb
import keras_lowbit.tfmot as klt
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.quantizers import Stochastic
from keras_lowbit.tfmot.wrappers import WrappedModel

annotate = tfmot.quantization.keras.quantize_annotate_layer
layers = tf_keras.layers
# tf_keras warns that .h5 is an older format, which is the point here.
pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")


def data(samples=16, size=8, classes=5):
    rng = np.random.default_rng(3)
    return rng.normal(size=(samples, size, size, 3)).astype(np.float32), rng.integers(0, classes, samples)


def network():
    inputs = layers.Input((8, 8, 3), name="image")
    features = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(layers.Conv2D(6, 3, name="conv")(inputs)))
    pooled = layers.GlobalAveragePooling2D(name="pool")(features)
    return tf_keras.Model(inputs, layers.Dense(5, name="dense")(pooled))


def trained(recipe="sq-twn", epochs=4):
    model = klt.quantize_model(network(), recipe)
    model.compile(
        tf_keras.optimizers.SGD(0.05, momentum=0.9), tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(*data(), batch_size=8, epochs=epochs, verbose=0, callbacks=klt.callbacks.for_model(model, epochs))
    return model


@pytest.fixture(scope="module")
def sq_model():
    return trained()


def assert_equal_models(found, wanted):
    images, _ = data()
    np.testing.assert_array_equal(np.asarray(found(images)), np.asarray(wanted(images)))
    for one, other in zip(found.get_weights(), wanted.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_a_trained_model_reloads_bit_for_bit_twice_and_trains_on(sq_model, file, tmp_path):
    sq_model.save(tmp_path / file)
    with klt.scope():
        again = tf_keras.models.load_model(tmp_path / file)
    assert_equal_models(again, sq_model)
    again.save(tmp_path / f"again_{file}")
    with klt.scope():
        again = tf_keras.models.load_model(tmp_path / f"again_{file}")
    assert_equal_models(again, sq_model)
    kernels = [kernel.kernel_quantizer for kernel in WrappedModel(again).kernel_layers()]
    assert kernels == [Stochastic("ternary")] * 2
    twin = klt.to_keras3(again)
    assert_equal_models(twin, klt.to_keras3(sq_model))
    # The next step draws the same units: the random generator was saved.
    for model in (again, sq_model):
        model(data()[0], training=True)
    for one, other in zip(again.get_weights(), sq_model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_files_reload(sq_model, tmp_path):
    for file in ("w.weights.h5", "w.h5"):
        sq_model.save_weights(tmp_path / file)
        fresh = klt.quantize_model(network(), "sq-twn")
        fresh.load_weights(tmp_path / file)
        assert_equal_models(fresh, sq_model)


def test_a_clone_has_the_same_configs_and_takes_the_weights(sq_model):
    with klt.scope():
        clone = tf_keras.models.clone_model(sq_model)
    clone.set_weights(sq_model.get_weights())
    assert_equal_models(clone, sq_model)
    with klt.scope():
        again = tf_keras.Model.from_config(sq_model.get_config())
    assert [type(layer).__name__ for layer in again.layers] == [type(layer).__name__ for layer in sq_model.layers]


def test_a_model_quantized_by_hand_with_the_default_scheme_reloads_from_keras_files(tmp_path):
    """TFMOT puts its own QuantizeLayer and OutputOnlyConfig around annotated layers; they reload under our scope."""
    model = tf_keras.Sequential(
        [layers.Input((8, 8, 3)), layers.Flatten(), annotate(layers.Dense(5), klt.INQQuantizeConfig())]
    )
    with klt.scope():
        model = tfmot.quantization.keras.quantize_apply(model)
    kinds = [type(getattr(layer, "quantize_config", None)).__name__ for layer in model.layers]
    assert kinds == ["OutputOnlyConfig", "INQQuantizeConfig"]
    model(data()[0], training=True)
    for file in ("model.keras", "model.h5"):
        model.save(tmp_path / file)
        with klt.scope():
            assert_equal_models(tf_keras.models.load_model(tmp_path / file), model)


def test_tfmots_own_models_reload_from_keras_files_under_our_scope(tmp_path):
    model = tfmot.quantization.keras.quantize_model(network_for_tfmot())
    model(data()[0], training=True)
    model.save(tmp_path / "model.keras")
    with klt.scope():
        assert_equal_models(tf_keras.models.load_model(tmp_path / "model.keras"), model)
    with tfmot.quantization.keras.quantize_scope(), pytest.raises(ValueError, match="expected 5 variables"):
        tf_keras.models.load_model(tmp_path / "model.keras")


def network_for_tfmot():
    return tf_keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(4, 3, activation="relu"), layers.Flatten()])


def test_scope_takes_custom_layers_too(tmp_path):
    class Twice(layers.Layer):
        def call(self, inputs):
            return 2 * inputs

    model = tf_keras.Sequential([layers.Input((4,)), annotate(Twice(), klt.OutputQuantizeConfig())])
    with klt.scope({"Twice": Twice}):
        model = tfmot.quantization.keras.quantize_apply(model)
        model.save(tmp_path / "model.keras")
        again = tf_keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.asarray(again(np.ones((1, 4)))), np.asarray(model(np.ones((1, 4)))))


# ---------------------------------------------------------------- annotate, apply, scheme


def test_a_config_given_with_an_annotation_wins_over_the_recipe():
    model = tf_keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            annotate(layers.Conv2D(4, 3, name="conv"), klt.KernelQuantizeConfig("binary", None)),
            annotate(layers.ReLU(name="relu")),
            annotate(layers.Flatten(name="flatten")),
            annotate(layers.Dense(5, name="dense")),
        ]
    )
    with klt.scope():
        applied = tfmot.quantization.keras.quantize_apply(model, scheme=klt.QuantizeScheme("twn"))
        default = tfmot.quantization.keras.quantize_apply(model)
    assert (
        type(configs(default)["conv"]).__name__ == "NoOpQuantizeConfig"
    )  # TFMOT's layout forgets it in front of a relu
    assert configs(applied) == {
        "conv": klt.KernelQuantizeConfig("binary", None),
        "relu": klt.OutputQuantizeConfig(),
        "flatten": klt.NoOpQuantizeConfig(),
        "dense": klt.KernelQuantizeConfig("ternary"),
    }


def configs(model):
    return {layer.layer.name: layer.quantize_config for layer in model.layers if hasattr(layer, "quantize_config")}


def test_conv_batch_norm_relu_is_one_operation_with_one_range(sq_model):
    kernel = klt.KernelQuantizeConfig(Stochastic("ternary"))
    found = configs(sq_model)
    assert found["bn"] == klt.NoOpQuantizeConfig()
    assert found["relu"] == klt.OutputQuantizeConfig()
    assert found["dense"] == kernel
    ranges = [path for path, host in WrappedModel(sq_model).quantizer_hosts() if "count" in host.state]
    assert [path.partition("/")[0].partition("_")[2] for path in ranges[1:]] == ["relu", "pool", "dense"]


def test_positions_skips_and_float_activations():
    recipe = klb.recipes.get("twn").replace(
        plan=(klb.recipes.Rule(None, position="first"), *klb.recipes.get("twn").plan), activations=None
    )
    found = configs(klt.quantize_model(network(), recipe, skip="pool"))
    assert found["conv"] == klt.NoOpQuantizeConfig()
    assert found["dense"] == klt.KernelQuantizeConfig("ternary", None)
    assert {found[name] for name in ("bn", "relu", "pool")} == {klt.NoOpQuantizeConfig()}
    with pytest.raises(ValueError, match="'conv9' matches no layer"):
        klt.quantize_model(network(), "int8", skip=["conv9"])


def test_layers_tfmot_refuses_stay_float_or_get_a_range_and_stop_nothing():
    inputs = layers.Input((8, 8, 3))
    features = layers.BatchNormalization(name="alone")(layers.Rescaling(2.0, name="scale")(inputs))
    features = layers.Multiply(name="product")([features, layers.Activation("elu", name="elu")(features)])
    features = layers.Conv2D(4, 3, name="conv")(layers.PReLU(name="prelu")(features))
    found = configs(klt.quantize_model(tf_keras.Model(inputs, features), "int8"))
    ranged = {name for name, config in found.items() if isinstance(config, klt.OutputQuantizeConfig)}
    assert ranged == {"alone", "scale", "product", "elu"}
    assert found["prelu"] == klt.NoOpQuantizeConfig()
    with pytest.raises(RuntimeError, match="is not supported"):
        tfmot.quantization.keras.quantize_model(tf_keras.Model(inputs, features))


def cut(model, end):
    return tf_keras.Model(model.input, model.get_layer(end).output)


@pytest.mark.parametrize(
    ("name", "end", "kernels"),
    [("MobileNet", "conv_pw_3_relu", 7), ("MobileNetV2", "block_2_add", 9), ("ResNet50", "conv2_block2_out", 8)],
)
def test_the_heads_of_applications_convert_to_keras_3_models_that_export(name, end, kernels, tmp_path):
    arguments = {"alpha": 0.35} if name.startswith("Mobile") and name != "MobileNet" else {}
    whole = getattr(tf_keras.applications, name)(input_shape=(32, 32, 3), weights=None, include_top=False, **arguments)
    for layer in whole.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0  # statistics of the batch below, so that the untrained network has a signal
    model = klt.quantize_model(cut(whole, end), "twn")
    images = np.random.default_rng(1).normal(size=(4, 32, 32, 3)).astype(np.float32)
    model(images, training=True)
    view = WrappedModel(model)
    assert len(view.kernel_layers()) == kernels
    twin = klt.to_keras3(model)
    outputs = np.asarray(model(images))
    assert len(np.unique(outputs)) > 20
    # tf_keras computes a batch norm by a fused kernel, Keras 3 as a sum and a product: where the last bit decides between
    # two codes, a range hands on the next one. All else is equal bit for bit (test_same_bits).
    assert (np.asarray(twin(images)) == outputs).mean() > 0.98
    klb.export_litert(twin, tmp_path / "m.tflite")
    assert klb.verify(twin, tmp_path / "m.tflite", images[:1]).max_layer_steps <= 1


# ---------------------------------------------------------------- to Keras 3


def test_a_float_tf_keras_model_becomes_a_float_keras_3_model():
    inputs = layers.Input((8, 8, 3), name="image")
    features = layers.SeparableConv2D(4, 3, name="a/separable", activation="swish")(inputs)
    features = layers.Conv2DTranspose(3, 2, strides=2)(layers.LeakyReLU(0.2)(features))
    features = layers.Concatenate()([layers.MaxPooling2D(2)(features), layers.AveragePooling2D(2)(features)])
    shared = layers.Dense(3, activation="tanh")
    model = tf_keras.Model(inputs, [shared(features), layers.BatchNormalization()(features)])
    twin = klt.to_keras3(model)
    images, _ = data()
    for found, wanted in zip(twin(images), model(images), strict=True):
        np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), atol=1e-6)
    assert twin.get_layer("a_separable").name == "a_separable"


def test_a_separable_layer_annotated_whole_becomes_two_quantized_layers():
    model = tf_keras.Sequential(
        [layers.Input((8, 8, 3)), annotate(layers.SeparableConv2D(4, 3, name="sep"), klt.SQQuantizeConfig("binary"))]
    )
    with klt.scope():
        model = tfmot.quantization.keras.quantize_apply(model, scheme=klt.QuantizeScheme())
    images, _ = data()
    model(images, training=True)
    twin = klt.to_keras3(model)
    assert {"sep", "sep_depthwise"} <= {layer.name for layer in twin.layers}
    np.testing.assert_array_equal(np.asarray(twin(images)), np.asarray(model(images)))


def test_tfmots_own_ranges_become_the_same_grids():
    stack = [layers.Input((8, 8, 3)), layers.Flatten(), layers.Dense(5), annotate(layers.ReLU(name="relu"))]
    model = tf_keras.Sequential(stack)
    with klt.scope():
        model = tfmot.quantization.keras.quantize_apply(model)
    images, _ = data()
    for _ in range(3):
        model(images, training=True)
    twin = klt.to_keras3(model)
    host = twin.get_layer("relu_range").output_host
    scale = float(to_numpy(host.quantizer.grid(host.values())[0]))
    wanted, found = np.asarray(model(images)), np.asarray(twin(images))
    # TFMOT computes code * scale + minimum, ours scale * (code - zero point): the same up to rounding, and one step where
    # a value lies on a border between two codes.
    steps = np.abs(found - wanted) / scale
    assert (np.minimum(steps, np.abs(steps - 1)) < 1e-3).all()
    assert (steps < 1e-3).mean() > 0.95


def test_what_to_keras3_cannot_translate_is_named():
    def refused(error, match, *stack):
        with pytest.raises(error, match=match):
            klt.to_keras3(tf_keras.Sequential([layers.Input((8, 8, 3)), *stack]))

    refused(TypeError, "LocallyConnected2D; to_keras3 takes stock", layers.LocallyConnected2D(2, 3))
    refused(TypeError, "has the activation 'doubled'", layers.Dense(2, activation=doubled))


def doubled(x):
    return 2 * x


# ---------------------------------------------------------------- callbacks


def test_for_model_gives_what_the_quantizers_need(sq_model):
    (schedule,) = klt.callbacks.for_model(sq_model, epochs=8)
    assert isinstance(schedule, klt.callbacks.RatioSchedule)
    mixed = klt.quantize_model(
        network(),
        klb.recipes.Recipe(
            "mixed",
            (
                klb.recipes.Rule(klb.quantizers.Incremental(klb.quantizers.PowerOfTwo(3)), layers="conv"),
                klb.recipes.Rule(klb.quantizers.Incremental(), layers="dense"),
            ),
        ),
    )
    (schedule,) = klt.callbacks.for_model(mixed, epochs=8)
    assert schedule.callback.values == klb.schedules.portions(3)
    (schedule,) = klt.callbacks.for_model(mixed, epochs=4, portions=(0.5, 1.0))
    assert schedule.callback.values == (0.5, 1.0)
    with pytest.raises(ValueError, match="need at least 8 epochs"):
        klt.callbacks.for_model(mixed, epochs=4)
    assert klt.callbacks.for_model(klt.quantize_model(network(), "int8"), epochs=1) == []


def test_a_stage_restarts_the_tf_keras_optimizer_and_logs():
    model = klt.quantize_model(network(), "sq-twn")
    model.compile(tf_keras.optimizers.Adam(0.01), tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    seen = []

    class Look(tf_keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            slots = sum(float(np.abs(slot.numpy()).sum()) for slot in self.model.optimizer.variables[2:])
            seen.append((int(self.model.optimizer.iterations), slots > 0))

    schedule = klt.callbacks.RatioSchedule((0.5, 1.0))
    logs = model.fit(*data(), batch_size=8, epochs=4, verbose=0, callbacks=[schedule, Look()]).history
    assert seen == [(0, False), (1, True), (2, True), (3, True)] * 2
    assert logs["ratio"] == [0.5, 0.5, 1.0, 1.0]
    assert len(logs["flip_rate"]) == 4


def test_ranges_freeze_from_an_epoch_on_and_the_cosine_rate_is_set():
    model = klt.quantize_model(network(), "int8")
    model.compile(tf_keras.optimizers.Adam(0.01), tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    freeze, cosine = klt.callbacks.FreezeRanges(1), klt.callbacks.CosineRestarts(0.02, period=4)
    logs = model.fit(*data(), batch_size=8, epochs=2, verbose=0, callbacks=[freeze, cosine]).history
    states = [host.state for _, host in WrappedModel(model).quantizer_hosts() if "count" in host.state]
    assert {(float(state["count"]), float(state["frozen"])) for state in states} == {(2.0, 1.0)}
    assert logs["learning_rate"] == [klb.schedules.cosine_restarts(step, 0.02, 4) for step in (1, 3)]


# ---------------------------------------------------------------- the wrong Keras


def keras_3_model():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])


@pytest.mark.parametrize(
    "use",
    [
        klt.to_keras3,
        klt.quantize_model,
        lambda model: klt.callbacks.for_model(model, epochs=4),
        lambda model: klt.callbacks.RatioSchedule().set_model(model),
    ],
)
def test_a_keras_3_model_is_told_where_to_go(use):
    with pytest.raises(
        TypeError, match=r"(?s)is for tf_keras .* got a Keras 3 model: .*keras_lowbit.quantize_model\(model"
    ):
        use(keras_3_model())
    with pytest.raises(TypeError, match=r"needs a tf_keras model, got builtins\.int"):
        use(3)


def test_a_tf_keras_model_is_told_where_to_go():
    with pytest.raises(
        TypeError, match=r"(?s)It is a tf_keras .*keras_lowbit.tfmot.to_keras3.*klt.quantize_model\(model"
    ):
        klb.quantize_model(network(), "int8")
