"""End to end: signal-to-noise of every output, a float reference, labels; and that `verify` reads only."""

import dataclasses
import json
import threading
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit.deploy.litert.file_runner import FileRunner
from keras_lowbit.deploy.lowering import weighted
from keras_lowbit.deploy.verification.outputs import compare_keras
from tests.support.lowering_zoo import Unknown, case, trained

kl = keras.layers
CLASSES = 4


def two_headed():
    """Softmax over four classes, a sigmoid and a real number of one image."""
    entry = keras.Input((6, 6, 3), name="image")
    value = kl.Flatten()(kl.Conv2D(8, 3, activation="relu", name="conv")(entry))
    outputs = [kl.Dense(CLASSES, "softmax", name="kind")(value), kl.Dense(1, "sigmoid", name="yes")(value)]
    return keras.Model(entry, [*outputs, kl.Dense(1, name="size")(value)], name="net")


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """(float model, quantized model, images, path)."""
    keras.utils.set_random_seed(0)
    model = two_headed()
    images = np.random.default_rng(0).normal(size=(24, 6, 6, 3)).astype(np.float32)
    quantized, _ = klb.quantize_model(model, "int8")
    klb.calibrate(quantized, images, verbose=0)
    path = tmp_path_factory.mktemp("outputs") / "m.tflite"
    klb.export_litert(quantized, path)
    return model, quantized, images, path


def decibels(wanted, got):
    wanted, got = wanted.astype(np.float64), got.astype(np.float64)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum())


def outputs_of(model, images):
    return [np.asarray(output) for output in model(images, training=False)]


def test_every_output_has_its_signal_to_noise_ratio(heads):
    model, quantized, images, path = heads
    parity = klb.verify(quantized, path, images, reference=model, batch_size=7)
    file, ours, wanted = FileRunner(path).run([images]), outputs_of(quantized, images), outputs_of(model, images)
    assert len(parity.outputs) == 3
    for found, a, b, c in zip(parity.outputs, file, ours, wanted, strict=True):
        assert found.snr_db == pytest.approx(decibels(b, a.reshape(b.shape)), abs=1e-3)
        assert found.reference_snr_db == pytest.approx(decibels(c, a.reshape(c.shape)), abs=1e-3)
        assert found.keras_reference_snr_db == pytest.approx(decibels(c, b), abs=1e-3)
        assert sum(found.steps) == b.size
    kind = parity.outputs[0]
    assert kind.reference_top1_agreement == np.mean(file[0].argmax(-1) == wanted[0].argmax(-1))
    assert kind.top1_agreement == parity.top1_agreement
    assert parity.ok, parity.problems
    assert f"{kind.reference_snr_db:.1f} dB to the reference" in str(parity)
    assert json.loads(parity.to_json())["outputs"][0]["reference_snr_db"] == kind.reference_snr_db


def test_without_a_file_keras_and_reference_have_the_same_figures(heads):
    model, quantized, images, path = heads
    rng = np.random.default_rng(1)
    labels = [rng.integers(0, CLASSES, 24), rng.integers(0, 2, 24), rng.normal(size=24)]
    given = {"reference": model, "labels": labels, "batch_size": 7}
    full, alone = klb.verify(quantized, path, images, **given), compare_keras(quantized, images, **given)
    assert alone.samples == full.samples
    for found, output in zip(alone.outputs, full.outputs, strict=True):
        assert (found.snr_db, found.reference_snr_db, found.top1_agreement, found.steps) == (None, None, None, ())
        assert found.keras_reference_snr_db == output.keras_reference_snr_db
        assert found.keras_reference_top1_agreement == output.keras_reference_top1_agreement
        assert found.score == dataclasses.replace(output.score, file=None)
        assert f"output {found.name!r}" in str(found)
    assert [found.score.metric for found in alone.outputs] == ["accuracy", "accuracy", "mean absolute error"]
    with pytest.raises(ValueError, match="do not fit"):
        compare_keras(quantized, images, labels=[np.full(24, 9), *labels[1:]])


def test_a_float_output_has_no_steps_but_a_ratio(tmp_path):
    stack = (lambda: kl.Flatten(), lambda: kl.Dense(3, "softmax", name="head"))
    model, images = trained(case(*stack, arguments={"skip": ["head"]}))
    klb.export_litert(model, tmp_path / "m.tflite")
    parity = klb.verify(model, tmp_path / "m.tflite", images, labels=np.zeros(len(images)))
    assert parity.outputs[0].steps == ()
    assert parity.output_steps == (0,)
    assert parity.outputs[0].snr_db > 60
    assert parity.outputs[0].score.metric == "accuracy"


def test_without_a_reference_nothing_is_said_of_one(heads):
    _, quantized, images, path = heads
    output = klb.verify(quantized, path, images).outputs[0]
    assert (output.reference_snr_db, output.keras_reference_snr_db, output.reference_top1_agreement) == (None,) * 3
    assert output.score is None


def test_a_file_far_from_the_reference_is_not_ok_though_it_is_the_quantized_model(heads):
    """As token ids rounded to 256 values: file and Keras agree on something else than the float model."""
    _, quantized, images, path = heads
    keras.utils.set_random_seed(99)
    other = two_headed()
    parity = klb.verify(quantized, path, images, reference=other)
    assert not parity.ok
    assert any("dB from the reference, expected at least 6" in problem for problem in parity.problems)
    assert "NOT OK: output" in str(parity)
    assert klb.verify(quantized, path, images, reference=other, min_reference_snr_db=-np.inf).ok
    assert klb.verify(quantized, path, images).ok


def test_a_file_farther_from_the_reference_than_keras_is_not_ok(heads):
    """As averages that are rounded in the file alone: 28.3 dB in Keras, 3.7 in the file."""
    model, quantized, images, path = heads
    parity = klb.verify(quantized, path, images, reference=model)
    output = dataclasses.replace(parity.outputs[0], reference_snr_db=20.0, keras_reference_snr_db=28.0)
    assert not dataclasses.replace(parity, outputs=(output,)).ok
    near = dataclasses.replace(output, keras_reference_snr_db=22.0)
    assert dataclasses.replace(parity, outputs=(near,)).ok


class Subclassed(keras.Model):
    """A float model that Keras knows no graph of."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, images):
        return self.inner(images)


def test_a_reference_may_be_any_keras_model(heads):
    model, quantized, images, path = heads
    wanted = klb.verify(quantized, path, images, reference=model).outputs
    assert klb.verify(quantized, path, images, reference=Subclassed(model)).outputs == wanted


def test_a_reference_of_other_outputs_is_refused(heads):
    model, quantized, images, path = heads
    short = keras.Model(model.input, model.outputs[:2])
    with pytest.raises(ValueError, match=r"reference= gives outputs of shapes .*Give the float model"):
        klb.verify(quantized, path, images, reference=short)
    with pytest.raises(TypeError, match=r"takes a Keras 3 model, got 'float\.keras': load it"):
        klb.verify(quantized, path, images, reference="float.keras")


# ------------------------------------------------------------------------------------------------------------ labels


def labels_for(model, images):
    kind, yes, size = outputs_of(model, images)
    classes = kind.argmax(-1)
    classes[:6] = (classes[:6] + 1) % CLASSES  # a quarter wrong
    return classes, (yes > 0.5).astype(np.int64), size[:, 0] + 2.0


def check_scores(parity):
    kind, yes, size = (output.score for output in parity.outputs)
    assert (kind.metric, yes.metric, size.metric) == ("accuracy", "accuracy", "mean absolute error")
    assert kind.reference == 18 / 24
    assert yes.reference == 1.0
    assert size.reference == pytest.approx(2.0)
    assert abs(kind.file - kind.reference) <= 2 / 24
    assert size.file == pytest.approx(2.0, abs=0.2)
    assert kind.count == yes.count == size.count == 24
    assert f"accuracy file {kind.file:.4g}" in str(parity)


@pytest.mark.parametrize("kind", ["arrays", "names", "one-hot", "columns", "tf.data", "generator"])
def test_labels_give_the_accuracy_of_file_keras_and_reference(heads, kind):
    model, quantized, images, path = heads
    labels = labels_for(model, images)
    data, given = images, None
    if kind == "arrays":
        given = list(labels)
    elif kind == "names":
        given = dict(zip(quantized.output_names, labels, strict=True))
    elif kind == "one-hot":
        given = [np.eye(CLASSES)[labels[0]], labels[1], labels[2]]
    elif kind == "columns":
        given = [part[:, None] for part in labels]
    elif kind == "tf.data":
        data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(9)
    else:
        data = ((images[i : i + 8], tuple(part[i : i + 8] for part in labels)) for i in (0, 8, 16))
    check_scores(klb.verify(quantized, path, data, reference=model, labels=given))


def test_an_output_without_labels_has_no_score(heads):
    model, quantized, images, path = heads
    classes = labels_for(model, images)[0]
    parity = klb.verify(quantized, path, images, labels={"kind": classes})
    assert [output.score is not None for output in parity.outputs] == [True, False, False]
    assert parity.outputs[0].score.reference is None


def only(classes):
    return {"kind": classes}


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (only(np.full(24, 4)), "reach from 4 to 4, classes from 0 to 3"),
        (only(np.full(24, -1)), "reach from -1 to -1"),
        (only(np.full(24, 0.5)), "whole numbers, 0.5 is not"),
        (only(np.zeros((24, 3))), "neither the shape of the output"),
        (only(np.array(["cat"] * 24)), "no numbers"),
        (only(np.zeros(23)), "holds .23. labels for 24 samples"),
        ({"sort": np.zeros(24)}, "are for the outputs .'sort'."),
        (np.zeros(24), "1 arrays; 'net' has 3 outputs"),
    ],
    ids=str,
)
def test_labels_that_do_not_fit_are_refused(heads, labels, words):
    _, quantized, images, path = heads
    with pytest.raises(ValueError, match=words):
        klb.verify(quantized, path, images, labels=labels)


def test_labels_of_a_data_set_that_do_not_fit_are_left_out_and_said(heads):
    """A data set brings whatever it was made for; the file can be compared without."""
    _, quantized, images, path = heads
    data = tf.data.Dataset.from_tensor_slices((images, np.zeros((24, 7)))).batch(12)
    parity = klb.verify(quantized, path, data)
    assert parity.ok
    assert "labels not compared: The labels are 1 arrays; 'net' has 3 outputs" in str(parity)
    with pytest.raises(ValueError, match="labels= goes with data in arrays"):
        klb.verify(quantized, path, data, labels=np.zeros(24))


# ------------------------------------------------------------------------------------------------- more than rounding


def test_a_layer_that_the_file_computes_otherwise_is_not_ok(tmp_path, monkeypatch):
    """A whole step everywhere: no element is two steps off, but rounding does not move most of them."""
    model, images = trained(case(lambda: kl.Conv2D(8, 3, name="conv"), lambda: kl.Flatten(), lambda: kl.Dense(3)))
    fold = weighted.fold

    def shifted(codes, scale, axes, affine, source, out, name):
        found = fold(codes, scale, axes, affine, source, out, name)
        step = np.round(out.scale / (source.scale * found.scales)).astype(np.int32)
        return dataclasses.replace(found, bias=found.bias + step * (name == "conv"))

    monkeypatch.setattr(weighted, "fold", shifted)
    klb.export_litert(model, tmp_path / "m.tflite")
    parity = klb.verify(model, tmp_path / "m.tflite", images)
    assert parity.max_layer_steps == 1
    assert parity.reference_equal
    assert parity.codes_equal
    assert not parity.ok
    assert any("'conv' differs from Keras by a step in" in problem for problem in parity.problems)


class Unrounded(klb.quantizers.ActivationRange):
    """A range that the file rounds to and Keras does not."""

    def __call__(self, real, state=None, filter_axes=(), training=False):
        return keras.ops.cast(real, "float32")


@pytest.mark.parametrize(("spread", "ok"), [(0.02, False), (1.0, True)])
def test_a_coarse_rounding_that_keras_does_not_simulate_is_not_ok(tmp_path, monkeypatch, spread, ok):
    """As averages were: each within half a step of Keras, but of few steps. Rounding that hardly shows is let pass."""
    random = np.random.default_rng(0)
    model = case(lambda: kl.Conv2D(8, 3, name="conv"), lambda: kl.Flatten(), lambda: kl.Dense(3)).make()
    model, _ = klb.quantize_model(model, "int8")
    klb.calibrate(model, random.normal(size=(8, 9, 8, 4)).astype(np.float32), verbose=0)
    klb.export_litert(model, tmp_path / "m.tflite")
    images = random.normal(0, spread, (4, 9, 8, 4)).astype(np.float32)
    assert klb.verify(model, tmp_path / "m.tflite", images).ok
    host = next(layer.output_host for layer in model.layers[2:] if getattr(layer, "output_host", None) is not None)
    fields = {field.name: getattr(host.quantizer, field.name) for field in dataclasses.fields(host.quantizer)}
    monkeypatch.setattr(host, "quantizer", Unrounded(**fields))
    parity = klb.verify(model, tmp_path / "m.tflite", images)
    row = next(layer for layer in parity.layers if layer.name == "conv")
    assert row.unrounded > 0.5
    assert row.max_steps <= 1
    assert parity.ok is ok, parity.problems
    assert any("'conv' is rounded in the file and not in Keras" in problem for problem in parity.problems) is not ok


# ------------------------------------------------------------------------------------------------------- reads only


@pytest.fixture(scope="module")
def altered(tmp_path_factory):
    """A model of 5-bit powers of two whose weights export altered, its images and its file."""
    keras.utils.set_random_seed(0)
    entry = keras.Input((8, 8, 3))
    value = kl.Flatten()(kl.Conv2D(16, 3, name="conv")(entry))
    model, images = (
        keras.Model(entry, kl.Dense(4, name="head")(value)),
        np.random.default_rng(0).uniform(-1, 1, (8, 8, 8, 3)),
    )
    quantized, _ = klb.quantize_model(model, "inq-5")
    klb.calibrate(quantized, images, verbose=0)
    path = tmp_path_factory.mktemp("altered") / "m.tflite"
    with pytest.warns(UserWarning, match="altered to fit int8"):
        klb.export_litert(quantized, path)
    return quantized, images.astype(np.float32), path


def test_two_threads_verify_one_model_and_a_third_uses_it(altered):
    """It put a stand-in into the layers while it ran: two at once left it there for good."""
    model, images, path = altered
    before, quantizers = (
        np.asarray(model(images, training=False)),
        [layer.kernel_host.quantizer for layer in kernels(model)],
    )
    found, errors = [], []

    def check():
        try:
            found.extend(klb.verify(model, path, images).ok for _ in range(3))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=check) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        np.testing.assert_array_equal(np.asarray(model(images, training=False)), before)
    assert errors == []
    assert found == [True] * 6
    assert [layer.kernel_host.quantizer for layer in kernels(model)] == quantizers
    np.testing.assert_array_equal(np.asarray(model(images, training=False)), before)


def test_two_threads_verify_a_model_with_operations_in_float(tmp_path):
    """Their layers are renamed while they are converted: a second thread took the names of the first for the layers' own."""
    model, data = trained(case(lambda: kl.Dense(4), Unknown, lambda: kl.Dense(3, name="last"), shape=(6,)))
    klb.export_litert(model, tmp_path / "m.tflite")
    names = [layer.name for layer in model.layers]
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(klb.verify(model, tmp_path / "m.tflite", data).ok))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 3
    assert [layer.name for layer in model.layers] == names


def kernels(model):
    return [layer for layer in model.layers if getattr(layer, "kernel_host", None) is not None]


def test_nothing_of_the_model_is_changed(altered):
    """Not its layers' attributes, and no predict function is left in it."""
    model, images, path = altered
    state = [{key: id(value) for key, value in vars(layer).items()} for layer in (model, *model.layers)]
    klb.verify(model, path, images, batch_size=1)
    after = [{key: id(value) for key, value in vars(layer).items()} for layer in (model, *model.layers)]
    assert [set(a.items()) ^ set(b.items()) for a, b in zip(state, after, strict=True)] == [set()] * len(state)


def test_no_batch_is_kept(heads):
    """It joined all of them: twice the data in memory."""
    _, quantized, images, path = heads
    alive = []

    def stream():
        for _ in range(12):
            batch = images + np.float32(0)
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            assert sum(found() is not None for found in alive) <= 2

    parity = klb.verify(quantized, path, stream())
    assert parity.samples == 12 * 24
    assert parity.ok


def test_the_first_samples_of_a_stream_are_those_of_an_array(heads):
    _, quantized, images, path = heads
    whole = klb.verify(quantized, path, images, layer_samples=5)
    pieces = klb.verify(quantized, path, (images[i : i + 3] for i in range(0, 24, 3)), layer_samples=5)
    assert pieces.layers == whole.layers
    assert pieces.reference == whole.reference
    assert pieces.output_steps == whole.output_steps
