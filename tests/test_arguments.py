"""Arguments of the wrong kind or outside their limits: refused with what was given, what fits and what to do."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit import arguments, layers, ops, quantizers
from keras_lowbit.ops import functions
from keras_lowbit.recipes import Recipe, Rule

IMAGES = np.random.default_rng(0).normal(size=(8, 9, 9, 3)).astype("float32")
DEEP = "[" * 100_000 + "]" * 100_000


def network():
    features = [keras.Input((9, 9, 3), name="image"), keras.layers.Conv2D(4, 3, activation="relu", name="conv")]
    return keras.Sequential([*features, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(5, name="head")])


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def quantized(model):
    found, _ = klb.quantize_model(model, "twn")
    klb.calibrate(found, IMAGES, verbose=0)
    return found


WITH_MODEL_FIRST = [
    *(klb.quantize_model, klb.dequantize, klb.freeze_ranges, klb.fold_batch_norms, klb.equalize),
    *(klb.quantized_weights, klb.storage, klb.weight_errors, klb.summary, klb.pack, klb.deploy.lower),
]
WITH_TWO_MORE = [klb.correct_biases, klb.round_weights, klb.distill, klb.verify]
WITH_ONE_MORE = [klb.calibrate, klb.reestimate_batch_norms, klb.export_litert]


@pytest.mark.parametrize("given", ["model.keras", b"model.keras", None, 5])
@pytest.mark.parametrize("function", WITH_MODEL_FIRST + WITH_ONE_MORE + WITH_TWO_MORE, ids=lambda f: f.__name__)
def test_what_is_no_model_is_refused_with_the_remedy(function, given, model):
    more = [model, IMAGES] if function in WITH_TWO_MORE else [IMAGES] if function in WITH_ONE_MORE else []
    remedy = "load it with keras.saving.load_model" if isinstance(given, str | bytes) else "give the model itself"
    with pytest.raises(TypeError, match=f"Keras 3 model.*{remedy}") as caught:
        function(given, *more)
    assert repr(given) in str(caught.value)


REFUSED = {
    "skip number": (lambda m, q: klb.quantize_model(m, skip=5), TypeError, "skip takes names.* got 5"),
    "skip layer": (lambda m, q: klb.quantize_model(m, skip=[m.layers[0]]), TypeError, r"Write skip=\['conv'\]"),
    "skip layer alone": (lambda m, q: klb.quantize_model(m, skip=m.layers[0]), TypeError, r"Write skip=\['conv'\]"),
    "overrides number": (lambda m, q: klb.quantize_model(m, overrides={5: "ternary"}), TypeError, "overrides.* got 5"),
    "overrides list": (lambda m, q: klb.quantize_model(m, overrides=["ternary"]), TypeError, "a dict .*got list"),
    "recipe int4": (lambda m, q: klb.quantize_model(m, "int4"), ValueError, "most alike first: int8, inq-4"),
    "recipe dict": (lambda m, q: klb.quantize_model(m, {"bits": 4}), ValueError, r"keys \['bits'\] is no recipe"),
    "recipe None": (lambda m, q: klb.quantize_model(m, None), TypeError, "got None"),
    "plan number": (lambda m, q: Recipe("x", 5), TypeError, "plan=5; give a list of rules"),
    "plan text": (lambda m, q: Recipe("x", "ternary"), TypeError, "plan='ternary'; give a list of rules"),
    "plan rule": (lambda m, q: Recipe("x", Rule("ternary")), TypeError, "give a list of rules"),
    "plan of numbers": (lambda m, q: Recipe("x", [5]), TypeError, "got 5 in its plan"),
    "recipe name": (lambda m, q: Recipe(5, ()), TypeError, "name=5"),
    "json None": (lambda m, q: Recipe.from_json(None), TypeError, "takes the text .* got None"),
    "json deep": (lambda m, q: Recipe.from_json(DEEP), ValueError, "Not a recipe"),
    "json number": (lambda m, q: Recipe.from_json("5"), ValueError, "Not a recipe: '5'"),
    "epochs text": (lambda m, q: klb.recipes.get("sq-twn").callbacks(epochs="8"), TypeError, "epochs='8'"),
    "epochs fraction": (lambda m, q: klb.recipes.get("sq-twn").callbacks(epochs=8.5), ValueError, "epochs=8.5"),
    "epochs without schedule": (lambda m, q: klb.recipes.get("twn").callbacks(epochs="8"), TypeError, "epochs='8'"),
    "stages text": (lambda m, q: klb.callbacks.RatioSchedule(epochs="8"), TypeError, "RatioSchedule got epochs='8'"),
    "percentile": (
        lambda m, q: klb.calibrate(q, IMAGES, percentile="a"),
        TypeError,
        "percentile='a'; give a number in",
    ),
    "percentile low": (
        lambda m, q: klb.calibrate(q, IMAGES, percentile=2),
        ValueError,
        "percentile=2; give a number in",
    ),
    "batch size": (lambda m, q: klb.calibrate(q, IMAGES, batch_size=2**31), ValueError, "below 2.31, got 2147483648"),
    "unbatched": (lambda m, q: klb.calibrate(q, IMAGES[0]), ValueError, "got one sample. Give images"),
    "strings": (lambda m, q: klb.calibrate(q, np.array([["a"]])), TypeError, "no numbers: dtype <U1"),
    "weights number": (lambda m, q: klb.export_litert(q, "x", weights=2), ValueError, "Write weights='int2'"),
    "weights odd": (lambda m, q: klb.export_litert(q, "x", weights=3), ValueError, "weights=3: expected 'auto'"),
    "export batch": (lambda m, q: klb.export_litert(q, "x", batch_size=2**31), ValueError, "from 1 to 2147483647"),
    "path None": (lambda m, q: klb.export_litert(q, None), TypeError, "path=None; give the name of a file"),
    "shape": (lambda m, q: klb.deploy.lower(q, (9.5, 9, 3)), ValueError, "'image'=9.5; give a whole number"),
    "shape text": (lambda m, q: klb.deploy.lower(q, "9,9,3"), TypeError, "sizes without batch"),
    "shape name": (lambda m, q: klb.deploy.lower(q, {"img": (9, 9, 3)}), ValueError, r"\['img'\].*\['image'\]"),
    "packed": (lambda m, q: klb.dequantize(klb.pack(q)), ValueError, "PackedTernaryConv2D 'conv'.*pack was given"),
    "kernel range": (lambda m, q: layers.QuantDense(4, kernel_quantizer="activation"), ValueError, "one of weights"),
    "bias range": (lambda m, q: layers.QuantDense(4, bias_quantizer="activation"), ValueError, "one of weights"),
    "output weights": (lambda m, q: layers.QuantDense(4, output_quantizer="ternary"), ValueError, "one of activations"),
    "activation weights": (lambda m, q: layers.QuantActivation("relu", "ternary"), ValueError, "one of activations"),
    "flag": (lambda m, q: quantizers.Stochastic(hybrid_evaluation=80), TypeError, "hybrid_evaluation=80; give True"),
    "flag by place": (lambda m, q: quantizers.PowerOfTwo(5, "tensor", 1), TypeError, "int8_exact=1; give True"),
    "seed": (lambda m, q: quantizers.Stochastic(seed=-1), ValueError, "seed=-1; give a whole number of 0"),
    "seed text": (lambda m, q: quantizers.Stochastic(seed="1"), TypeError, "seed='1'"),
    "partition seed": (lambda m, q: klb.callbacks.PartitionSchedule(seed=-1), ValueError, "seed=-1"),
    "distill seed": (lambda m, q: klb.distill(q, m, IMAGES, seed=-1), ValueError, "seed=-1"),
    "round seed": (lambda m, q: klb.round_weights(q, m, IMAGES, seed=1.5), ValueError, "seed=1.5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_with_the_value(name, model, quantized, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, kind, words = REFUSED[name]
    with pytest.raises(kind, match=words):
        call(model, quantized)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("labels", [[0.5] * 8, [7] * 8, [-1] * 8], ids=str)
def test_labels_are_classes_that_the_network_has(labels, model):
    student, _ = klb.quantize_model(model, "fat")
    klb.calibrate(student, IMAGES, verbose=0)
    with pytest.raises(ValueError, match=rf"labels.*{labels[0]}.*whole numbers from 0 to 4"):
        klb.distill(student, model, IMAGES, labels=np.array(labels), verbose=0)


PACKED = ops.pack_ternary(np.ones((3, 3, 4, 4), np.int8))
CODES = np.zeros((1, 9, 9, 4), np.int8)


@pytest.mark.parametrize("strides", [1.5, (1.5, 1.5), (1, 2.0), True, "2"])
def test_steps_of_a_window_are_whole(strides):
    with pytest.raises(ValueError, match="whole number"):
        ops.clustered_ternary_conv2d(CODES, PACKED, strides=strides)
    with pytest.raises(ValueError, match="whole number"):
        functions.max_pool2d(CODES, (2, 2), strides=strides)


def test_edges_are_whole():
    with pytest.raises(ValueError, match="padding is"):
        ops.clustered_ternary_conv2d(CODES, PACKED, padding=((1.5, 1), (1, 1)))


def test_the_most_alike_comes_first():
    assert arguments.nearest_first("inq5", ["fat", "inq-4", "inq-5"]).split(", ") == ["inq-5", "inq-4", "fat"]
