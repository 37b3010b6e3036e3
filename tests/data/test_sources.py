"""Pictures on disks: the same pictures are the same batches from every source, and what is wrong is said with its name."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit import data
from keras_lowbit.data import Images

SIZE, COUNT, CLASSES = (8, 8), 12, ("ant", "bee", "cat")
RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (COUNT, 8, 8, 3)).astype(np.uint8)
LABELS = np.arange(COUNT) % len(CLASSES)
IN_ORDER = Images(SIZE, batch_size=5, seed=None)


def png(pixels):
    return tf.io.encode_png(pixels).numpy()


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The pictures in every kind of place; sorted by class where the place is."""
    root = tmp_path_factory.mktemp("places")
    for index, (pixels, label) in enumerate(zip(PICTURES, LABELS, strict=True)):
        for folder in (root / "classes" / CLASSES[label], root / "flat"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{index:02}.png").write_bytes(png(pixels))
    np.savez(root / "all.npz", images=PICTURES, labels=LABELS)
    np.save(root / "all.npy", PICTURES)
    for shard, rows in enumerate(np.array_split(np.arange(COUNT), 2)):
        with tf.io.TFRecordWriter(str(root / f"train.tfrecord-{shard:05}-of-00002")) as writer:
            for row in rows:
                writer.write(example(**{"image/encoded": png(PICTURES[row]), "image/class/label": int(LABELS[row])}))
    return root


def example(**features):
    def feature(value):
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    made = {name: feature(value) for name, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A data set that tensorflow-datasets wrote with its own tools."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed")
    folder = tmp_path_factory.mktemp("tfds")

    class Insects(tfds.core.GeneratorBasedBuilder):
        """Twelve pictures."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=CLASSES),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for index, (pixels, label) in enumerate(zip(PICTURES, LABELS, strict=True)):
                yield index, {"image": pixels, "label": CLASSES[label]}

    Insects(data_dir=folder).download_and_prepare()
    return folder


def read(dataset):
    """Pictures and labels of a data set as arrays; labels None where there are none."""
    batches = list(data.labelled_batches(dataset))
    assert [len(batch) for batch, _ in batches] == [5, 5, 2]
    pictures, labels = zip(*batches, strict=True)
    return np.concatenate(pictures), None if labels[0] is None else np.concatenate(labels)


def by_bytes(pictures, labels):
    """The samples as a set: sources have orders of their own."""
    return {(pixels.tobytes(), label) for pixels, label in zip(pictures, labels, strict=True)}


def test_a_source_gives_the_pixels_in_its_order(places):
    pictures, labels = read(data.tfrecords(places / "train*", IN_ORDER))
    assert pictures.dtype == np.float32
    assert np.array_equal(pictures, PICTURES)
    assert np.array_equal(labels, LABELS)
    pictures, labels = read(data.flat_folder(places / "flat", IN_ORDER))
    assert labels is None
    assert np.array_equal(pictures, PICTURES)


def test_every_source_gives_the_same_pictures_with_the_same_labels(places, tfds_folder):
    inputs, labels = data.stored_arrays(places / "all.npz")
    named, split, classes = data.tfds("insects", IN_ORDER, data_dir=str(tfds_folder))
    assert (split, classes) == ("train", {"ant": 0, "bee": 1, "cat": 2})
    found = [
        data.folder_by_class(places / "classes", IN_ORDER),
        data.arrays(inputs, labels, IN_ORDER, pictures=True),
        data.tfrecords(places / "train*", IN_ORDER),
        named,
    ]
    wanted = by_bytes(PICTURES.astype(np.float32), LABELS)
    assert len(wanted) == COUNT
    assert all(by_bytes(*read(dataset)) == wanted for dataset in found)
    assert data.classes(places / "classes") == classes


def network(name="mobilenetv2_mine", channels=3, size=SIZE, classes=3):
    inputs = keras.Input((*size, channels), name="image")
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    return keras.Model(inputs, keras.layers.Dense(classes)(keras.layers.GlobalAveragePooling2D()(x)), name=name)


def test_every_source_gives_the_same_calibration_ranges(places, tfds_folder):
    model = network()
    sources = [places / name for name in ("classes", "flat", "all.npz", "all.npy", "train*", ".")][:-1]
    sources += [tfds_folder / "insects" / "1.0.0", "tfds:insects:train"]
    found = []
    for source in sources:
        given = data.for_model(model, str(source), data_dir=str(tfds_folder), batch_size=5)
        assert given.preprocess == "tf"
        quantized, _ = klb.quantize_model(model, "int8")
        found.append(klb.calibrate(quantized, given.dataset, verbose=0))
    assert found[0]["image_range/output_quantizer"] == pytest.approx(
        (PICTURES.min() / 127.5 - 1, PICTURES.max() / 127.5 - 1)
    )
    assert all(ranges == found[0] for ranges in found[1:])


def test_the_order_is_the_seeds_and_a_limit_takes_its_first(places):
    def order(**options):
        return [p.tobytes() for p in np.concatenate(list(data.flat_folder(places / "flat", Images(SIZE, **options))))]

    assert order() == order() != order(seed=1) != order(seed=None)
    assert sorted(order()) == sorted(order(seed=1)) == sorted(order(seed=None))
    assert order(limit=5) == order()[:5]
    rows = Images(SIZE).order(1000)
    assert sorted(rows) == list(range(1000))
    assert np.array_equal(Images(SIZE, limit=3).order(1000), rows[:3])


@pytest.mark.parametrize(
    ("shape", "size"), [((40, 20), (8, 8)), ((20, 41), (8, 8)), ((15, 30), (9, 4)), ((3, 3), (8, 8))]
)
def test_crop_is_what_keras_calls_smart_resize(shape, size):
    pixels = RNG.integers(0, 256, (*shape, 3)).astype(np.uint8)
    found = np.asarray(Images(size).prepared(pixels))
    rows, columns = (
        min(shape[0], round(shape[1] * size[0] / size[1])),
        min(shape[1], round(shape[0] * size[1] / size[0])),
    )
    top, left = (shape[0] - rows) // 2, (shape[1] - columns) // 2
    part = pixels[top : top + rows, left : left + columns].astype(np.float32)
    np.testing.assert_array_equal(found, tf.image.resize(part, size, antialias=True))
    stretched = np.asarray(Images(size, resize="stretch").prepared(pixels))
    np.testing.assert_array_equal(stretched, tf.image.resize(pixels.astype(np.float32), size, antialias=True))


def test_resizing_averages_what_it_leaves_out():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    found = np.asarray(Images((8, 8)).prepared(stripes))[:, 1:-1]
    np.testing.assert_allclose(found, 100, atol=2)


def test_a_picture_of_the_size_stays_as_it_is():
    assert np.array_equal(Images(SIZE).prepared(PICTURES[0]), PICTURES[0].astype(np.float32))


def test_grey_pictures_and_other_formats(tmp_path):
    grey = np.full((8, 8, 1), 100, np.uint8)
    for name, content in {"a.jpg": tf.io.encode_jpeg(grey).numpy(), "b.PNG": png(grey)}.items():
        (tmp_path / name).write_bytes(content)
    assert np.concatenate(list(data.flat_folder(tmp_path, Images(SIZE, 1)))).shape == (2, 8, 8, 1)
    colour = np.concatenate(list(data.flat_folder(tmp_path, Images(SIZE, 3))))
    assert np.array_equal(colour, np.full((2, 8, 8, 3), 100, np.float32))


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path):
    (tmp_path / "good.png").write_bytes(png(PICTURES[0]))
    (tmp_path / "broken.png").write_bytes(png(PICTURES[0])[:60])
    (tmp_path / "text.jpg").write_bytes(b"no picture")
    for name in ("broken.png", "text.jpg"):
        with pytest.raises(ValueError, match=f"The data cannot be read: cannot decode .*{name}: ") as caught:
            list(data.batches(data.flat_folder(tmp_path, IN_ORDER)))
        assert "\n" not in str(caught.value)
        (tmp_path / name).unlink()
    assert len(list(data.batches(data.flat_folder(tmp_path, IN_ORDER)))) == 1


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Rows of a .npy come from the disk one after the other: an endless number of them could be read."""
    path = tmp_path / "large.npy"
    stored = np.lib.format.open_memmap(path, "w+", np.uint8, (10**6, 8, 8, 3))
    del stored
    inputs, _ = data.stored_arrays(path)
    assert isinstance(inputs, np.memmap)
    first = next(iter(data.arrays(inputs, None, Images(SIZE, batch_size=4), pictures=True)))
    assert first.shape == (4, 8, 8, 3)


def damaged(folder):
    (folder / "cut.tfrecord").write_bytes((folder / "good.tfrecord").read_bytes()[:-3])


def test_records_that_are_none_are_named(tmp_path):
    def write(name, *records):
        with tf.io.TFRecordWriter(str(tmp_path / name)) as writer:
            for record in records:
                writer.write(record)
        return tmp_path / name

    good = example(**{"image/encoded": png(PICTURES[0])})
    bad = {
        "no.tfrecord": (b"no records here, only a text", "is no TFRecord file"),
        "empty.tfrecord": (b"", "holds no record"),
        "others.tfrecord": (write("x", example(age=3)).read_bytes(), r"features \['age'\]; expected 'image/encoded'"),
        "texts.tfrecord": (write("y", b"\xff\xff\xff").read_bytes(), "are no tf.train.Example"),
    }
    for name, (content, words) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.*{words}"):
            data.tfrecords(tmp_path / name, IN_ORDER)
    labelled = example(**{"image/encoded": png(PICTURES[0]), "image/class/label": 1})
    for second, words in ((good, "image/class/label"), (labelled[:-3], "")):
        with pytest.raises(ValueError, match=f"The data cannot be read: .*{words}"):
            list(data.batches(data.tfrecords(write("second.tfrecord", labelled, second), IN_ORDER)))
    assert read_one(data.tfrecords(write("good.tfrecord", good), IN_ORDER))[1] is None
    with pytest.raises(FileNotFoundError, match="no TFRecord file"):
        data.tfrecords(tmp_path / "none*", IN_ORDER)


def read_one(dataset):
    return next(iter(data.labelled_batches(dataset)))


BAD_ARRAYS = {
    "of names that say nothing": (
        {"a": PICTURES, "b": PICTURES},
        r"holds the arrays \['a', 'b'\]; expected one of 'x', ",
    ),
    "with too few labels": ({"x": PICTURES, "y": LABELS[:3]}, "3 labels for"),
    "without samples": ({"x": PICTURES[:0]}, "at least one"),
    "of objects": ({"x": np.array([{}, {}], object)}, "plain arrays"),
    "of one number": ({"x": np.float32(3)}, "at least one"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_do_not_fit_are_refused(tmp_path, case):
    arrays, words = BAD_ARRAYS[case]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        data.stored_arrays(tmp_path / "bad.npz")


def test_files_that_are_no_arrays_are_refused(tmp_path):
    for name, content in itertools.product(("bad.npz", "bad.npy"), (b"", b"PK\x03\x04 broken", b"text")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"no \.npy or \.npz file"):
            data.stored_arrays(tmp_path / name)


def test_arrays_by_the_names_of_inputs(tmp_path):
    np.savez(tmp_path / "two.npz", left=PICTURES, right=PICTURES[:, 0], labels=LABELS)
    inputs, labels = data.stored_arrays(tmp_path / "two.npz", ["left", "right"])
    assert sorted(inputs) == ["left", "right"]
    batch, own = read_one(data.arrays(inputs, labels, Images((1, 1), seed=None), pictures=False))
    assert np.array_equal(batch["right"], PICTURES[:, 0])
    assert np.array_equal(own, LABELS)
    with pytest.raises(ValueError, match="expected 'left' and 'wrong'"):
        data.stored_arrays(tmp_path / "two.npz", ["left", "wrong"])


def test_for_model_resizes_and_says_what_it_decided(places):
    found = data.for_model(network(size=(6, 4)), str(places / "classes"), batch_size=5)
    assert found.classes == {"ant": 0, "bee": 1, "cat": 2}
    assert "preprocess 'tf'" in found.about[0]
    assert read(found.dataset)[0].shape == (COUNT, 6, 4, 3)
    floats = places / "floats.npz"
    np.savez(floats, x=PICTURES.astype(np.float32) / 255, y=LABELS)
    ready = data.for_model(network(), str(floats), batch_size=5, seed=None)
    assert ready.about == ("arrays as they are stored",)
    assert np.array_equal(read(ready.dataset)[0], PICTURES.astype(np.float32) / 255)
    given = data.for_model(network("mine"), str(floats), preprocess="unit", batch_size=5, seed=None)
    np.testing.assert_allclose(read(given.dataset)[0], PICTURES / 255**2, rtol=1e-6)


def test_folders_named_by_numbers_are_these_classes(tmp_path):
    for number in (10, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.png").write_bytes(png(PICTURES[number]))
    assert data.classes(tmp_path) == {"2": 2, "10": 10}
    pictures, labels = read_one(data.folder_by_class(tmp_path, IN_ORDER))
    assert np.array_equal(labels, [2, 10])
    assert np.array_equal(pictures, PICTURES[[2, 10]])


def test_classes_that_are_not_the_models_are_left_out_and_said(places, tmp_path):
    def given(classes, folder):
        found = data.for_model(network(classes=classes), str(folder))
        return read_one(found.dataset)[1] is not None, found.about[-1]

    assert given(3, places / "classes") == (True, "3 classes")
    has_labels, said = given(4, places / "classes")
    assert not has_labels
    assert "which of the model's 4 classes the 3 of the data are ('ant', 'bee', 'cat', ...) nothing says" in said
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "a.png").write_bytes(png(PICTURES[0]))
    assert given(4, tmp_path)[0]
    assert not given(3, tmp_path)[0]


def test_for_model_takes_grey_arrays_without_channels(tmp_path):
    np.savez(tmp_path / "digits.npz", x_train=PICTURES[..., 0], y_train=LABELS)
    found = data.for_model(network(channels=1), str(tmp_path / "digits.npz"), batch_size=5, seed=None)
    assert np.array_equal(read(found.dataset)[0], PICTURES[..., :1] / np.float32(127.5) - 1)


def test_for_model_takes_rows_for_models_without_pictures(tmp_path):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    np.savez(tmp_path / "rows.npz", x=np.ones((7, 5), np.float32))
    assert next(iter(data.for_model(model, str(tmp_path / "rows.npz")).dataset)).shape == (7, 5)
    np.savez(tmp_path / "wrong.npz", x=np.ones((7, 4), np.float32))
    with pytest.raises(ValueError, match=r"samples of shape \(4,\); .* of shape \(5,\)"):
        data.for_model(model, str(tmp_path / "wrong.npz"))
    (tmp_path / "a.png").write_bytes(png(PICTURES[0]))
    with pytest.raises(ValueError, match="Pictures need a model with one input"):
        data.for_model(model, str(tmp_path))


def test_a_mode_against_what_the_model_says_is_warned_of(places):
    with pytest.warns(
        UserWarning,
        match=r"preprocess='unit' gives 'mobilenetv2_mine' pixels as 0 to 1.*it seems to want 'tf', -1 to 1",
    ):
        data.for_model(network(), str(places / "flat"), preprocess="unit")


def test_what_cannot_be_decided_is_asked_for(places):
    with pytest.raises(ValueError, match=r"Nothing in 'mine' says which numbers .*\('tf': -1 to 1"):
        data.for_model(network("mine"), str(places / "flat"))
    anything = network(size=(None, None))
    with pytest.raises(ValueError, match="pictures of any size"):
        data.for_model(anything, str(places / "flat"))
    assert read(data.for_model(anything, str(places / "flat"), size=(9, 7), batch_size=5).dataset)[0].shape[1:] == (
        9,
        7,
        3,
    )
    assert read(data.for_model(anything, str(places / "all.npz"), batch_size=5).dataset)[0].shape[1:] == (8, 8, 3)
    with pytest.raises(ValueError, match=r"size=\(9, 7\), but"):
        data.for_model(network(), str(places / "flat"), size=(9, 7))


def test_sources_that_are_none_are_named(places, tmp_path):
    model = network()
    with pytest.raises(FileNotFoundError, match=r"no data at .*nothing"):
        data.for_model(model, str(tmp_path / "nothing"))
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"a\.txt is no data"):
        data.for_model(model, str(tmp_path / "a.txt"))
    with pytest.raises(ValueError, match="has no pictures"):
        data.for_model(model, str(tmp_path))
    (tmp_path / "b.png").write_bytes(png(PICTURES[0]))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.png").write_bytes(png(PICTURES[0]))
    with pytest.raises(ValueError, match="neither a folder of pictures nor one of classes"):
        data.for_model(model, str(tmp_path))


def test_named_sets_that_are_not_there_are_said(tfds_folder):
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        data.tfds("insects", IN_ORDER, "test", str(tfds_folder))
    with pytest.raises(OSError, match="there is no data set 'no_such_set'"):
        data.tfds("no_such_set", IN_ORDER, data_dir=str(tfds_folder))
    with pytest.raises(FileNotFoundError, match="no folder"):
        data.tfds("insects", IN_ORDER, data_dir=str(tfds_folder / "none"))


BAD_IMAGES = {
    "preprocess": ({"preprocess": "tff"}, "preprocess='tff'; choose one of tf, "),
    "resize": ({"resize": "pad"}, "resize='pad'; choose one of"),
    "channels": ({"channels": 2}, "channels=2"),
    "grey torch": ({"channels": 1, "preprocess": "torch"}, "takes 1"),
    "batch_size": ({"batch_size": 0}, "batch_size=0"),
    "limit": ({"limit": -1}, "limit=-1"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_options_that_do_not_fit_are_refused(case):
    options, words = BAD_IMAGES[case]
    with pytest.raises(ValueError, match=words):
        Images(SIZE, **options)
