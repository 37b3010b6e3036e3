"""Models of other float types than float32: float subgraphs are float32, and `verify` replays what Keras computes."""

import keras
import pytest
from keras import layers as kl
from keras import ops

import keras_lowbit as klb
from keras_lowbit.keras_graph.calls import layers_of
from tests.support.fallback_models import deployed


@pytest.fixture
def policy(request):
    """Models are made under this dtype policy; float32 again afterwards."""
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


class Branches(kl.Layer):
    """Layers inside a layer."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = [kl.Dense(4), kl.Dense(4, activation="elu")]

    def build(self, shape):
        for layer in self.inner:
            layer.build(shape)
        super().build(shape)

    def call(self, x):
        return self.inner[0](x) - 2.0 * self.inner[1](x)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 4)


def subgraphs(x):
    x = kl.GroupNormalization(2, name="norm")(kl.Dense(4, name="d0")(x))
    x = kl.PReLU(name="slope")(kl.Dense(4, name="d1")(x))
    x = Branches(name="own")(kl.Dense(4, name="d2")(x))
    return ops.sort(x, axis=-1)


def activations(x):
    x = kl.Conv2D(4, 2, activation="sigmoid", name="c0")(kl.Reshape((3, 2, 1), name="r")(x))
    return kl.Flatten(name="f")(kl.Conv2D(4, 1, activation="gelu", name="c1")(x))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "float64"], indirect=True)
def test_float_subgraphs_are_exported_and_verified(policy, tmp_path):
    model, vectors = deployed(subgraphs, tmp_path / "m.tflite", 6)
    assert model.get_layer("head").dtype_policy.name == policy
    assert klb.verify(model, tmp_path / "m.tflite", vectors).ok


@pytest.mark.parametrize("policy", ["mixed_float16", "float64"], indirect=True)
def test_layers_with_an_activation_of_their_own_are_verified(policy, tmp_path):
    model, vectors = deployed(activations, tmp_path / "m.tflite", 6)
    assert klb.verify(model, tmp_path / "m.tflite", vectors).ok


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_an_export_leaves_the_dtype_policies_as_they_were(policy, tmp_path):
    model, _ = deployed(subgraphs, tmp_path / "m.tflite", 6)
    before = [layer.dtype_policy.name for _, layer in layers_of(model)]
    assert before.count("mixed_float16") > 8
    klb.export_litert(model, tmp_path / "m.tflite")
    assert [layer.dtype_policy.name for _, layer in layers_of(model)] == before
