"""Transfer learning on a folder of photos, to a verified 8-bit file.

    python examples/photos.py photos/ --output photos.tflite

photos/ has one folder of pictures for each class. Without it the program cuts pieces out of the two photographs that come with
scikit-learn, a temple and a flower. `--body mobilenet` takes MobileNetV2 with ImageNet's weights, which Keras downloads;
`small` is trained from the start.
"""

import argparse
import tempfile
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_sample_image

import keras_lowbit as klb


def cut_photographs(folder, count):
    """A folder of two classes: squares of the photographs, each at its place and of its size."""
    random = np.random.default_rng(0)
    for name in ("china.jpg", "flower.jpg"):
        photo = load_sample_image(name)
        target = Path(folder, name.removesuffix(".jpg"))
        target.mkdir(parents=True)
        for number in range(count):
            side = random.integers(120, 240)
            top, left = random.integers(photo.shape[0] - side), random.integers(photo.shape[1] - side)
            keras.utils.save_img(target / f"{number}.png", photo[top : top + side, left : left + side])


def load(folder, size, limit):
    """Pictures of -1 to 1 and their classes, those to train with and those to test with; the names of the classes."""
    pictures = klb.data.folder_by_class(folder, klb.data.Images((size, size), preprocess="tf", limit=limit))
    images, labels = map(np.concatenate, zip(*pictures.as_numpy_iterator(), strict=True))
    testing = np.arange(len(images)) % 4 == 0
    return (images[~testing], labels[~testing]), (images[testing], labels[testing]), list(klb.data.classes(folder))


def network(body, size, classes):
    """The network, and whether its body is trained."""
    if body == "mobilenet":
        features = keras.applications.MobileNetV2((size, size, 3), include_top=False)
        features.trainable = False
        inputs, features = features.input, features.output
    else:
        inputs = features = keras.Input((size, size, 3), name="image")
        for width in (16, 32, 64):
            features = keras.layers.Conv2D(width, 3, 2, "same", use_bias=False)(features)
            features = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.8)(features))
    features = keras.layers.GlobalAveragePooling2D()(features)
    return keras.Model(inputs, keras.layers.Dense(classes, activation="softmax", name="kind")(features), name="photos")


def main(arguments=None):
    """Trains, quantizes, exports and verifies; what `verify` found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="a folder of pictures for each class")
    parser.add_argument("--body", choices=["mobilenet", "small"], default="small")
    parser.add_argument("--size", type=int, default=96, help="height and width of the input")
    parser.add_argument("--limit", type=int, default=4000, help="use so many pictures at most")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--output", default="photos.tflite")
    options = parser.parse_args(arguments)

    keras.utils.set_random_seed(0)
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or f"{made}/photos"
        if options.folder is None:
            cut_photographs(folder, min(options.limit, 400) // 2)
        train, test, names = load(folder, options.size, options.limit)

    model = network(options.body, options.size, len(names))
    model.compile(
        keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False
    )
    model.fit(*train, epochs=options.epochs, verbose=0)

    folded = klb.fold_batch_norms(model)
    quantized, _ = klb.quantize_model(folded, "int8")
    klb.calibrate(quantized, train[0][:256], verbose=0)
    klb.correct_biases(quantized, folded, train[0][:256], verbose=0)
    print(klb.export_litert(quantized, options.output, io="float32", labels=names, normalization=(127.5, 127.5)))
    parity = klb.verify(quantized, options.output, test[0], reference=model, labels=test[1])
    print(parity)
    return parity


if __name__ == "__main__":
    raise SystemExit(0 if main().ok else 1)
