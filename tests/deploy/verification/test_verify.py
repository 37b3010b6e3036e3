"""What `verify` measures, what it must notice, and files that are not what they seem."""

import json

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

import keras_lowbit as klb
from keras_lowbit.deploy.litert.file_runner import FileRunner
from keras_lowbit.deploy.litert.reader import LiteRTFile
from tests.support.lowering_zoo import ZOO, Unknown, case, trained
from tests.support.process import run_python

kl = keras.layers

MIXED = case(
    lambda: kl.Conv2D(8, 3, activation="relu", name="conv"),
    lambda: kl.Conv2D(8, 1, name="point"),
    lambda: kl.DepthwiseConv2D(3, name="deep"),
    lambda: kl.GlobalAveragePooling2D(name="pool"),
    lambda: kl.Dense(4, activation="softmax", name="head"),
    recipe=klb.recipes.Recipe(
        "mixed",
        (
            klb.recipes.Rule(klb.quantizers.Ternary(), layers="point"),
            klb.recipes.Rule(klb.quantizers.Uniform(4), layers="head"),
            klb.recipes.Rule(klb.quantizers.Uniform(8)),
        ),
        klb.quantizers.ActivationRange(),
    ),
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """(quantized model, images, path of its int8 file)."""
    keras.utils.set_random_seed(3)
    model, images = trained(MIXED)
    path = tmp_path_factory.mktemp("verify") / "m.tflite"
    klb.export_litert(model, path)
    return model, images, path


def test_everything_is_measured(mixed):
    model, images, path = mixed
    parity = klb.verify(model, path, images)
    assert parity.ok
    assert parity.codes_equal
    assert parity.reference_equal is True
    assert parity.reference.elements > 500
    assert parity.max_layer_steps <= 1
    assert 0.5 < parity.exact_fraction <= 1
    assert 0 <= parity.top1_agreement <= 1
    assert sum(parity.output_steps) == 3 * 4
    assert parity.max_output_steps == len(parity.output_steps) - 1
    assert parity.size_bytes == path.stat().st_size
    assert parity.samples == 3
    ops = {layer.name: (layer.op, layer.delegated, layer.codes_equal) for layer in parity.layers}
    assert ops["conv"] == ("CONV_2D", True, True)
    assert ops["deep"] == ("DEPTHWISE_CONV_2D", True, True)
    assert ops["pool"] == ("MEAN", True, None)
    assert ops["head/softmax"] == ("SOFTMAX", False, None)
    assert parity.delegate.left == (("SOFTMAX", "head/softmax"),)
    assert parity.delegate.left_by_operator == {"SOFTMAX": 1}
    assert parity.delegate.operators == 6


def test_text_and_json_say_it_all(mixed):
    model, images, path = mixed
    parity = klb.verify(model, path, images)
    text, found = str(parity), json.loads(parity.to_json())
    for words in ("DEPTHWISE_CONV_2D", "layers: ok", "NumPy reference: 0 of", "XNNPACK runs 5 of 6", "not SOFTMAX x1"):
        assert words in text
    assert found["ok"] is True
    assert found["reference_equal"] is True
    assert found["reference"]["elements"] == parity.reference.elements
    assert found["delegate"]["left_by_operator"] == {"SOFTMAX": 1}
    assert found["exact_fraction"] == parity.exact_fraction
    assert found["max_output_steps"] == parity.max_output_steps
    assert found["layers"][0]["op"] == "CONV_2D"


@pytest.mark.parametrize("arguments", [{"weights": "int2"}, {"weights": "int4"}, {"io": "float32"}, {"batch_size": 2},
                                       {"weights": "int2", "io": "float32", "batch_size": 3}], ids=str)  # fmt: skip
def test_every_form_of_the_file_verifies(mixed, tmp_path, arguments):
    model, images, _ = mixed
    klb.export_litert(model, tmp_path / "m.tflite", **arguments)
    parity = klb.verify(model, tmp_path / "m.tflite", images)
    assert parity.ok, parity
    assert parity.reference_equal is True
    kinds = {name: tensor.type for name, tensor in LiteRTFile(tmp_path / "m.tflite").tensors.items()}
    packed = {"int2": "INT2", "int4": "INT4"}.get(arguments.get("weights"), "INT8")
    assert kinds["point/kernel"] == packed
    assert kinds["conv/kernel"] == "INT8"


def test_float_subgraphs_are_verified_too_in_batches(tmp_path):
    model, data = trained(case(lambda: kl.Dense(4), lambda: Unknown(), lambda: kl.Dense(3), shape=(6,)))
    klb.export_litert(model, tmp_path / "m.tflite", batch_size=2)
    parity = klb.verify(model, tmp_path / "m.tflite", data)
    assert parity.ok, parity
    assert parity.reference_equal is True


def test_float_subgraph_that_the_reference_kernels_lack(tmp_path):
    model, data = trained(ZOO["elu in float"])
    klb.export_litert(model, tmp_path / "m.tflite")
    parity = klb.verify(model, tmp_path / "m.tflite", data)
    assert parity.ok
    assert parity.reference_equal is None
    assert "not compared" in str(parity)


# ------------------------------------------------------------------------------------------------ what it must notice


def change(path, target, edit):
    """The file with one thing changed: `edit(model, tensors by name)`."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    edit(model, {t.name.decode(): t for t in model.subgraphs[0].tensors})
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    target.write_bytes(bytes(builder.Output()))
    return target


def add_one(name):
    def edit(model, tensors):
        buffer = model.buffers[tensors[name].buffer]
        buffer.data = np.array(buffer.data, np.uint8)
        buffer.data[0] ^= 1

    return edit


@pytest.mark.parametrize("name", ["conv/kernel", "deep/kernel", "head/kernel", "point/bias"])
def test_one_bit_of_a_weight_or_bias_is_noticed(mixed, tmp_path, name):
    model, images, path = mixed
    parity = klb.verify(model, change(path, tmp_path / "m.tflite", add_one(name)), images)
    assert not parity.codes_equal
    assert not parity.ok
    assert {row.name: row.codes_equal for row in parity.layers}[name.split("/")[0]] is False
    assert "NOT OK" in str(parity)


def high_bias(model, tensors):
    buffer = model.buffers[tensors["point/bias"].buffer]
    buffer.data = np.array(buffer.data, np.uint8)
    buffer.data[2] ^= 8  # 2**19 steps


def test_a_changed_bias_differs_from_the_reference(mixed, tmp_path):
    model, images, path = mixed
    parity = klb.verify(model, change(path, tmp_path / "m.tflite", high_bias), images)
    assert parity.reference_equal is False
    assert parity.reference.differing["point"] > 0
    assert "conv" not in parity.reference.differing
    # Then the layers are those of the file, not of the reference.
    assert {row.name: row.max_steps for row in parity.layers}["point"] > 1


def test_a_changed_scale_is_noticed(mixed, tmp_path):
    def edit(model, tensors):
        for name in ("conv/kernel", "conv/bias"):
            grid = tensors[name].quantization
            grid.scale = np.array(grid.scale)
            grid.scale[1] *= np.float32(1.5)

    model, images, path = mixed
    parity = klb.verify(model, change(path, tmp_path / "m.tflite", edit), images)
    assert not parity.codes_equal


def test_model_that_was_trained_on_is_noticed(mixed, tmp_path):
    model, images = trained(MIXED)
    klb.export_litert(model, tmp_path / "m.tflite")
    layer = model.get_layer("conv")
    layer.kernel.assign(-1 * layer.kernel)
    parity = klb.verify(model, tmp_path / "m.tflite", images)
    assert not parity.codes_equal
    assert not parity.ok


STRUCTURE = {
    "stride": lambda model, tensors: setattr(model.subgraphs[0].operators[0].builtinOptions, "strideH", 0),
    "axes": lambda model, tensors: setattr(
        model.buffers[tensors["pool/axes"].buffer], "data", np.array([9, 0, 0, 0, 2, 0, 0, 0], np.uint8)
    ),
    "scale": lambda model, tensors: setattr(tensors["conv"].quantization, "scale", np.array([np.nan], np.float32)),
    "shape": lambda model, tensors: setattr(tensors["conv"], "shape", np.array([1, 7, 6, 9], np.int32)),
    "operator": lambda model, tensors: model.subgraphs[0].operators.pop(),
    "wiring": lambda model, tensors: setattr(model.subgraphs[0].operators[1], "inputs", np.array([0, 1, 2], np.int32)),
}


@pytest.mark.parametrize("name", STRUCTURE)
def test_changed_structure_is_refused_before_it_runs(mixed, tmp_path, name):
    model, images, path = mixed
    with pytest.raises(ValueError, match=r"was not exported from this model as it is now.*Export it again"):
        klb.verify(model, change(path, tmp_path / "m.tflite", STRUCTURE[name]), images)


# ------------------------------------------------------------------------------------------------ files that are none


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.99])
def test_truncated_file(mixed, tmp_path, share):
    model, images, path = mixed
    content = path.read_bytes()
    (tmp_path / "cut.tflite").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"cut\.tflite' is (damaged or cut short|not a \.tflite file)"):
        klb.verify(model, tmp_path / "cut.tflite", images)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip file", b"\x00" * 100, b"\x1c\x00\x00\x00TFL3"])
def test_foreign_file(mixed, tmp_path, content):
    model, images, _ = mixed
    (tmp_path / "m.tflite").write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.tflite' is (damaged|not a \.tflite file).*export_litert"):
        klb.verify(model, tmp_path / "m.tflite", images)


def test_missing_file(mixed, tmp_path):
    model, images, _ = mixed
    with pytest.raises(FileNotFoundError, match=r"No file at .*none\.tflite.*export_litert"):
        klb.verify(model, tmp_path / "none.tflite", images)


def test_file_of_another_model(mixed, tmp_path):
    model, images, _ = mixed
    other, _ = trained(ZOO["dense 2-d"])
    klb.export_litert(other, tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="has no tensor 'conv'"):
        klb.verify(model, tmp_path / "m.tflite", images)


def test_file_of_the_same_names_and_other_sizes(mixed, tmp_path):
    model, images, _ = mixed
    other, _ = trained(case(lambda: kl.Conv2D(8, 2, activation="relu", name="conv"), lambda: kl.Conv2D(8, 1, name="point"),
                            lambda: kl.DepthwiseConv2D(3, name="deep"), lambda: kl.GlobalAveragePooling2D(name="pool"),
                            lambda: kl.Dense(4, activation="softmax", name="head")))  # fmt: skip
    klb.export_litert(other, tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="was not exported from this model"):
        klb.verify(model, tmp_path / "m.tflite", images)


def test_file_of_another_tool(mixed, tmp_path):
    from tests.support.litert_oracle import float_model

    model, images, _ = mixed
    (tmp_path / "m.tflite").write_bytes(float_model("ABS", [(1, 4)], (1, 4)))
    with pytest.raises(ValueError, match="has no tensor"):
        klb.verify(model, tmp_path / "m.tflite", images)


def in_labels(content):
    """The file with its compressed labels damaged."""
    at = content.rindex(b"PK\x03\x04") + 30 + len("labels.txt")
    return content[:at] + b"\xff\xff" + content[at + 2 :]


DAMAGE = {
    "labels": in_labels,
    "metadata": lambda content: content.replace(b'{"float_fallbacks"', b'<"float_fallbacks"'),
    "no text": lambda content: content.replace(b'{"float_fallbacks"', b'{"\xff\xfeoat_fallbacks"'),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_metadata_is_refused_by_the_name_of_the_file(mixed, tmp_path, name):
    model, images, _ = mixed
    klb.export_litert(model, tmp_path / "m.tflite", labels=list("abcd"))
    content = (tmp_path / "m.tflite").read_bytes()
    broken = DAMAGE[name](content)
    assert broken != content
    (tmp_path / "m.tflite").write_bytes(broken)
    with pytest.raises(ValueError, match=r"m\.tflite' is damaged or cut short.*Export it again"):
        klb.verify(model, tmp_path / "m.tflite", images)


@pytest.mark.parametrize("wrong", [{"layer_samples": 0}, {"reference_samples": -1}, {"layer_samples": 1.5}], ids=str)
def test_numbers_of_samples_must_be_positive(mixed, wrong):
    model, images, path = mixed
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value}: expected a whole number of at least 1"):
        klb.verify(model, path, images, **wrong)


def test_fewer_samples_than_the_batch_of_the_file_are_compared_with_the_reference_too(mixed, tmp_path):
    model, images, _ = mixed
    klb.export_litert(model, tmp_path / "m.tflite", batch_size=4)
    assert klb.verify(model, tmp_path / "m.tflite", images).reference_equal is True
    parity = klb.verify(model, change(tmp_path / "m.tflite", tmp_path / "n.tflite", high_bias), images)
    assert parity.reference_equal is False
    assert parity.samples == 3


def test_a_batch_a_float_subgraph_and_a_wide_softmax_go_together(tmp_path):
    """Whether the softmax would end the process is found by running the graph: in whole batches."""
    model, data = trained(case(Unknown, lambda: kl.Dense(600, activation="softmax"), shape=(6,)))
    klb.export_litert(model, tmp_path / "m.tflite", batch_size=3)
    parity = klb.verify(model, tmp_path / "m.tflite", np.concatenate([data, data]), layer_samples=4)
    assert parity.ok, parity
    assert parity.reference_equal is True


def test_data_of_another_size(mixed):
    model, images, path = mixed
    with pytest.raises(ValueError, match=r"takes \(1, 9, 8, 4\), got samples of shape \(5, 5, 4\)"):
        klb.verify(model, path, images[:, :5, :5])


FUZZ = """
import sys, keras, numpy as np
import keras_lowbit as klb
from pathlib import Path
model = keras.saving.load_model(sys.argv[1]); path = Path(sys.argv[2]); images = np.load(sys.argv[3])
content, rng, outcomes = path.read_bytes(), np.random.default_rng(0), {}
for _ in range(40):
    broken = bytearray(content)
    for at in rng.integers(0, len(content), 3):
        broken[at] = rng.integers(0, 256)
    path.write_bytes(bytes(broken))
    try:
        outcome = "ok" if klb.verify(model, path, images, layer_samples=1).ok else "not ok"
    except (ValueError, RuntimeError) as error:
        outcome = type(error).__name__
    outcomes[outcome] = outcomes.get(outcome, 0) + 1
print(outcomes)
"""


@pytest.mark.slow
def test_random_damage_never_ends_the_process(mixed, tmp_path):
    """Three random bytes: refused or found different; "ok" only where metadata or padding was hit."""
    model, images, path = mixed
    model.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", images[:1])
    (tmp_path / "m.tflite").write_bytes(path.read_bytes())
    printed = run_python(FUZZ, tmp_path / "m.keras", tmp_path / "m.tflite", tmp_path / "x.npy")
    outcomes = eval(printed.strip().splitlines()[-1])
    assert sum(outcomes.values()) == 40
    assert outcomes.get("ValueError", 0) + outcomes.get("not ok", 0) >= 20, outcomes


@pytest.mark.parametrize(("spread", "equal"), [(0.0, None), (1.0, True)])
def test_a_wide_softmax_that_would_end_the_process_runs_on_the_built_in_kernels(tmp_path, spread, equal):
    """LiteRT's reference int8 softmax aborts where 1000 nearly equal logits add up to 512 or more."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(1000, activation="softmax")(inputs))
    kernel = np.random.default_rng(0).normal(size=(4, 1000)) * 8
    model.layers[-1].set_weights([spread * kernel, np.zeros(1000)])
    samples = np.random.default_rng(1).uniform(-1, 1, size=(8, 4)).astype(np.float32)
    quantized, _ = klb.quantize_model(model, "int8")
    klb.calibrate(quantized, samples, verbose=0)
    klb.export_litert(quantized, tmp_path / "wide.tflite")
    parity = klb.verify(quantized, tmp_path / "wide.tflite", samples)
    assert parity.reference_equal is equal
    assert parity.ok, parity


def test_dict_data_go_to_the_inputs_by_name(tmp_path, monkeypatch):
    """Sorted by key, "alpha" would be fed to the first input, "zulu"; file and Keras would agree on the wrong data."""
    second, first = keras.Input((4,), name="zulu"), keras.Input((4,), name="alpha")
    model = keras.Model([second, first], keras.layers.Dense(3)(keras.layers.Subtract()([second, first])))
    random = np.random.default_rng(0)
    data = {"alpha": random.uniform(0, 9, (8, 4)), "zulu": random.uniform(-1, 0, (8, 4))}
    data = {name: values.astype(np.float32) for name, values in data.items()}
    quantized, _ = klb.quantize_model(model, "int8")
    klb.calibrate(quantized, [data["zulu"], data["alpha"]], verbose=0)
    klb.export_litert(quantized, tmp_path / "two.tflite")
    fed, run = [], FileRunner.run
    monkeypatch.setattr(FileRunner, "run", lambda self, arrays: (fed.append(arrays), run(self, arrays))[1])
    parity = klb.verify(quantized, tmp_path / "two.tflite", data)
    assert parity.ok, parity
    np.testing.assert_array_equal(fed[0], [data["zulu"], data["alpha"]])
