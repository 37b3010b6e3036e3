"""From Keras to the file, through the public API alone, for every operation, layer and shape of model."""

import re

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.deploy.litert.reader import LiteRTFile
from keras_lowbit.deploy.lowering.lower import lower_model
from keras_lowbit.deploy.lowering.values import fixed_codes
from keras_lowbit.deploy.reference.interpreter import trace
from keras_lowbit.keras_graph.calls import calls_of
from tests.support.litert_oracle import differing_elements
from tests.support.lowering_zoo import IMAGE, ZOO, case, function, samples, trained

kl = keras.layers


@pytest.fixture(scope="module", params=ZOO)
def deployed(request, tmp_path_factory):
    """(case, quantized model, data, file, graph with its ties to the model) of every model of the zoo."""
    keras.utils.set_random_seed(0)
    entry = ZOO[request.param]
    model, data = trained(entry)
    path = tmp_path_factory.mktemp("zoo") / "m.tflite"
    klb.export_litert(model, path, input_shapes=entry.input_shapes)
    return entry, model, data, path, lower_model(model, entry.input_shapes)


def as_list(data):
    return data if isinstance(data, list) else [data]


def test_reference_equals_litert_on_every_tensor(deployed):
    entry, _, data, _, graph = *deployed[:4], deployed[4].graph
    inputs = dict(zip(graph.inputs, (part[:1] for part in as_list(data)), strict=True))
    codes = {name: array for name, array in trace(graph, inputs).items() if name in graph.inputs}
    if entry.reference:
        differing = differing_elements(graph, codes)
        assert not any(differing.values()), differing


def test_verify_is_content(deployed):
    _, model, data, path, _ = deployed
    parity = klb.verify(model, path, data)
    assert parity.ok, parity


def test_keras_computes_what_the_graph_does_to_the_step(deployed):
    """On new random inputs, each stored tensor alone; and whatever Keras computes with is rounded as it is stored."""
    entry, model, _, _, lowered = deployed
    graph, calls = lowered.graph, calls_of(model, inline=True)
    codes = trace(graph, dict(zip(graph.inputs, samples(model, 4, entry.input_shapes, seed=5), strict=True)))
    reals = {name: keras.ops.convert_to_tensor(real_of(graph.tensors[name], codes[name])) for name in codes}
    for segment in lowered.segments:
        grid = graph.tensors[segment.tensor].range
        sources = {name: reals[name] for name in segment.provenance.sources.values()}
        value = segment.provenance.replay(sources, segment.key)
        got = codes[segment.tensor]
        assert np.abs(fixed_codes(value, grid).reshape(got.shape) - got).max() <= 1, segment.tensor
        readers = calls.consumers(segment.key)
        if any(not isinstance(reader.operation, klb.layers.QuantActivation) for reader in readers):
            steps = np.asarray(value) / grid.scale  # what only a range reads, or the loss, may be unrounded
            np.testing.assert_allclose(steps, np.round(steps), atol=0.01, err_msg=segment.tensor)
    assert lowered.unrounded == {}


def real_of(tensor, codes):
    return codes if tensor.scale is None else (codes.astype(np.float32) - tensor.zero_point) * tensor.scale


def test_only_what_has_no_integer_form_runs_in_float(deployed):
    entry, graph = deployed[0], deployed[4].graph
    found = tuple(re.sub(r"_\d+$", "", subgraph["path"]) for subgraph in graph.metadata["float_fallbacks"])
    assert found == entry.float_fallbacks
    assert all(subgraph["reason"] for subgraph in graph.metadata["float_fallbacks"])


def test_codes_in_the_file_are_the_models(deployed):
    """Times one whole number for each output channel: -1 for a negative gamma, 0 for a gamma of zero."""
    entry, model, _, path, _ = deployed
    file = LiteRTFile(path)
    for layer in model._flatten_layers():
        if isinstance(layer, klb.layers.QuantizedLayer) and layer.name not in entry.float_fallbacks:
            [stored] = [t for name, t in file.tensors.items() if re.search(rf"\b{layer.name}(/conv)?/kernel$", name)]
            assert_multiples(stored.codes, layer)


def assert_multiples(stored, layer):
    """Each filter in the file (output channel first, or last for a depthwise one) is a multiple of the model's."""
    codes = np.array(layer.kernel_host.encode(layer.kernel).codes).astype(int)
    if isinstance(layer, kl.Conv2DTranspose):  # LiteRT's has no dilation: zeros stand between its rows and columns
        spread = [
            np.eye(size * step, dtype=int)[::step, : (size - 1) * step + 1]
            for size, step in zip(codes.shape, layer.dilation_rate, strict=False)
        ]
        codes = np.einsum("ijkl,ia,jb->abkl", codes, *spread)
    axes = [axis % codes.ndim for axis in layer.filter_axes]
    ours = np.moveaxis(codes, axes, range(len(axes)))
    count = int(np.prod(ours.shape[: len(axes)]))
    ours = ours.reshape(count, -1)
    theirs = stored.reshape(-1, count).T if len(axes) == 2 else stored.reshape(count, -1)
    for mine, its in zip(ours, theirs.astype(int), strict=True):
        at = int(np.argmax(mine != 0))
        np.testing.assert_array_equal(its, (its[at] // mine[at] if mine[at] else 0) * mine)


def test_graph_survives_its_file_and_runs_the_same(deployed, tmp_path):
    data, graph = deployed[2], deployed[4].graph
    graph.save(tmp_path / "q.klb")
    again = klb.deploy.IntegerGraph.load(tmp_path / "q.klb")
    assert graph.equals(again)
    first, second = (klb.deploy.run_reference(g, data) for g in (graph, again))
    for a, b in zip(
        first if isinstance(first, list) else [first], second if isinstance(second, list) else [second], strict=True
    ):
        np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------------------------------------ details


def test_inputs_keep_the_models_order():
    model, _ = trained(ZOO["inputs read in another order"])
    assert klb.deploy.lower(model).inputs == ("x0", "x1")


def test_zero_gamma_gives_zero_codes_and_the_report_says_so(tmp_path):
    model, _ = trained(ZOO["norm after dense"])
    report = klb.export_litert(model, tmp_path / "m.tflite")
    [(name, flushed)] = report.flushed.items()
    assert 0 in flushed
    assert f"{name}: channels" in str(report)
    stored = LiteRTFile(tmp_path / "m.tflite").tensors[f"{name}/kernel"]
    assert not stored.codes[list(flushed)].any()
    assert (stored.scale > 0).all()


def test_negative_gamma_flips_ternary_codes_which_stay_ternary(tmp_path):
    model, _ = trained(ZOO["norm after conv"])
    [layer] = [found for found in model.layers if isinstance(found, kl.BatchNormalization)]
    layer.gamma.assign(-np.ones(layer.gamma.shape))
    klb.export_litert(model, tmp_path / "m.tflite")
    [(path, weights)] = klb.quantized_weights(model).items()
    stored = LiteRTFile(tmp_path / "m.tflite").tensors[f"{path}/kernel"]
    np.testing.assert_array_equal(stored.codes, -weights.codes.transpose(3, 0, 1, 2))
    assert (stored.scale > 0).all()


def test_shared_layer_is_two_nodes_and_both_are_checked():
    model, _ = trained(ZOO["shared"])
    lowered = lower_model(model)
    assert sorted(lowered.layers) == ["conv", "conv_1"]
    assert {layer.path for layer in lowered.layers.values()} == {"conv"}


def test_metadata_has_recipe_and_version(tmp_path):
    from keras_lowbit.deploy.litert.writer import read_metadata

    model, _ = trained(ZOO["conv2d 1x1 ternary"])
    klb.export_litert(model, tmp_path / "m.tflite")
    about = read_metadata(tmp_path / "m.tflite")
    assert about["keras_lowbit"] == klb.__version__
    assert [q["name"] for q in about["quantizers"].values()] == ["ternary"]


REFUSED = {
    "before calibration": (case(lambda: kl.Dense(3), shape=(4,)), "has seen no data.*calibrate"),
    "float activations": (case(lambda: kl.Dense(3), shape=(4,)), "no activation range.*QuantActivation"),
    "batch mixed": (function(lambda x: keras.ops.mean(x, axis=0, keepdims=True)), "mixes the samples of a batch"),
    "no converter": (case(lambda: kl.UpSampling2D(2, interpolation="bicubic")), "ResizeBicubic.*Leave it out"),
    "dropout in training": (
        function(lambda x: kl.Dropout(0.5, name="d")(x, training=True)),
        "'d' is called with training=True: this Dropout draws at random.*without training=True",
    ),
    "norm in training": (
        function(lambda x: kl.BatchNormalization(name="n")(x, training=True)),
        "'n' is called with training=True: this BatchNormalization takes each batch's own",
    ),
    "model in training": (
        function(
            lambda x: keras.Sequential([keras.Input(IMAGE), kl.Dropout(0.5, name="d")], name="body")(x, training=True)
        ),
        "'body/d' is called with training=True",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    entry, message = REFUSED[name]
    recipe = klb.recipes.get("int8")
    if name == "float activations":
        recipe = recipe.replace(activations=None)
    model = klb.quantize_model(entry.make(), recipe)[0]
    if name not in ("before calibration", "float activations"):
        klb.calibrate(model, np.ones((2, *model.input.shape[1:]), np.float32), verbose=0)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        klb.deploy.lower(model)


def test_the_graph_says_why_an_operation_runs_in_float():
    i = keras.Input((8, 8, 8))
    normal = keras.layers.BatchNormalization(axis=1, name="normal")
    model = keras.Model(i, normal(keras.layers.Conv2D(8, 3, padding="same")(i)))
    model = klb.quantize_model(model, "int8")[0]
    klb.calibrate(model, np.ones((2, 8, 8, 8), np.float32), verbose=0)
    [subgraph] = klb.deploy.lower(model).metadata["float_fallbacks"]
    assert subgraph == {"path": "normal", "reason": "normalises axis 1, not the last one"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bfloat16_weights_are_looked_at_too(value):
    dense = keras.layers.Dense(3, dtype="bfloat16")
    model = klb.quantize_model(keras.Sequential([keras.Input((4,)), dense]), "int8")[0]
    klb.calibrate(model, np.ones((2, 4), np.float32), verbose=0)
    model.get_layer(dense.name).bias.assign([0, value, 0])
    for use in (klb.deploy.lower, lambda model: klb.quantize_model(model, "int8")):
        with pytest.raises(ValueError, match="1 NaN or infinite values of 3"):
            use(model)


def test_nan_weights_are_refused_by_name():
    model, _ = trained(ZOO["dense 2-d"])
    layer = next(iter(layer for layer in model.layers if isinstance(layer, klb.layers.QuantDense)))
    layer.bias.assign([0, np.nan, 0, 0, np.inf])
    with pytest.raises(ValueError, match=rf"{layer.name}/bias.*2 NaN or infinite values of 5"):
        klb.deploy.lower(model)


def test_bias_beyond_int32_is_refused_with_the_channel():
    model, _ = trained(ZOO["dense 2-d"])
    layer = next(iter(layer for layer in model.layers if isinstance(layer, klb.layers.QuantDense)))
    layer.bias.assign([0, 0, 1e12, 0, 0])
    with pytest.raises(ValueError, match=r"(?s)channel 2 of .*1e\+12.*does not fit int32.*larger"):
        klb.deploy.lower(model)


def test_several_scales_in_one_channel_are_refused():
    from keras_lowbit.deploy.lowering.folding import channel_scales

    with pytest.raises(ValueError, match=r"(?s)'dense'.*\(4, 3\).*several for one output channel.*per filter"):
        channel_scales(np.ones((8, 3), np.int8), np.ones((4, 3), np.float32), (-1,), "dense")


def test_unread_input_is_refused():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    model = klb.quantize_model(keras.Model([a, b], kl.Dense(3)(a)), "int8")[0]
    klb.calibrate(model, [np.ones((2, 4), np.float32)] * 2, verbose=0)
    with pytest.raises(ValueError, match="reads its input 'b'"):
        klb.deploy.lower(model)


def test_variable_size_needs_input_shapes():
    model, _ = trained(ZOO["variable size"])
    with pytest.raises(ValueError, match=r"(?s)'x' has the shape \(None, None, 4\).*input_shapes"):
        klb.deploy.lower(model)
