"""Keyword spotting on a microcontroller: a DS-CNN (Zhang et al. 2017, arXiv:1711.07128) at 8 bits and with ternary weights.

    python examples/keyword_spotting.py --data words.npz --output words

words.npz has `x`, float32 spectrograms [n, 49, 10], and `y`, the class of each. Without it the words are synthetic: no recorded
speech installs with a package. Each is two chirps of its own pitch with noise and a random start, so that the network has
to look at time and frequency, and accuracy says whether quantizing harms, not how well words are recognised.
"""

import argparse
import itertools

import keras
import numpy as np

import keras_lowbit as klb

RATE, FRAME, STEP = 16_000, 640, 320  # samples a second, in a window of 40 ms, between windows
BANDS = np.geomspace(100, 4000, 11)  # Hz, ends of the ten bands


def spectrogram(sound):
    """Log energies float32 [49, 10] of one second."""
    windows = np.lib.stride_tricks.sliding_window_view(sound, FRAME)[::STEP] * np.hanning(FRAME)
    power, pitch = np.abs(np.fft.rfft(windows)) ** 2, np.fft.rfftfreq(FRAME, 1 / RATE)
    bands = [power[:, (low <= pitch) & (pitch < high)].mean(-1) for low, high in itertools.pairwise(BANDS)]
    return np.log(np.stack(bands, -1) + 1e-3).astype("float32")


def synthetic_words(count, words, random):
    """`count` sounds of so many words: two chirps each, at a random moment, in noise."""
    labels, time = random.integers(words, size=count), np.arange(RATE) / RATE
    pitches = np.random.default_rng(7).uniform(150, 3500, (words, 2, 2))  # of each word: two chirps, from and to
    sounds = []
    for word in labels:
        sound, start = random.normal(scale=0.3, size=RATE), random.uniform(0, 0.3)
        for number, (low, high) in enumerate(pitches[word]):
            inside = (start + 0.3 * number <= time) & (time < start + 0.3 * (number + 1))
            part = time[inside] - time[inside][0]
            sound[inside] += np.sin(2 * np.pi * (low * part + (high - low) * part**2 / 0.6))
        sounds.append(spectrogram(sound))
    return np.stack(sounds), labels


def ds_cnn(words, width, blocks):
    """A convolution, so many separable ones, the mean, a classifier."""
    layers = keras.layers
    inputs = features = keras.Input((49, 10, 1), name="spectrogram")
    features = layers.Conv2D(width, (10, 4), 2, "same", use_bias=False, name="first")(features)
    for block in range(blocks):
        features = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(features))
        features = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"depthwise_{block}")(features)
        features = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(features))
        features = layers.Conv2D(width, 1, use_bias=False, name=f"pointwise_{block}")(features)
    features = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(features))
    features = layers.GlobalAveragePooling2D()(features)
    return keras.Model(inputs, layers.Dense(words, activation="softmax", name="word")(features), name="ds_cnn")


def fit(model, train, epochs, callbacks=()):
    """Adam with a cosine."""
    steps = epochs * -(-len(train[0]) // 64)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"], jit_compile=False)
    model.fit(*train, batch_size=64, epochs=epochs, callbacks=list(callbacks), verbose=0)


def finish(model, reference, test, path):
    """Writes the file for a microcontroller and verifies it: its size, its accuracy and the verdict."""
    written = klb.export_litert(model, path, target="microcontroller")
    parity = klb.verify(model, path, test[0], reference=reference, labels=test[1])
    return {"bytes": written.size_bytes, "accuracy": parity.outputs[0].score.file, "verified": parity.ok}


def main(arguments=None):
    """Trains, quantizes twice, exports and verifies; bytes, accuracy and verdict of each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="an .npz file with x and y")
    parser.add_argument("--words", type=int, default=12, help="how many synthetic words")
    parser.add_argument("--samples", type=int, default=3000, help="how many synthetic sounds")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--output", default="words", help="the files are called so, with -int8 and -ternary")
    options = parser.parse_args(arguments)

    keras.utils.set_random_seed(0)
    if options.data:
        inputs, labels = klb.data.stored_arrays(options.data)
    else:
        inputs, labels = synthetic_words(options.samples, options.words, np.random.default_rng(0))
    inputs = ((inputs - inputs.mean()) / inputs.std())[..., None].astype("float32")
    testing = np.arange(len(inputs)) % 5 == 4
    train, test = (inputs[~testing], labels[~testing]), (inputs[testing], labels[testing])

    model = ds_cnn(int(labels.max()) + 1, options.width, options.blocks)
    fit(model, train, options.epochs)
    results = {"float": {"accuracy": float(model.evaluate(*test, verbose=0)[1])}}

    quantized, _ = klb.quantize_model(model, "int8")
    klb.calibrate(quantized, train[0], batch_size=256, verbose=0)
    results["int8"] = finish(quantized, model, test, f"{options.output}-int8.tflite")

    recipe = klb.recipes.get("twn")
    overrides = {"first|depthwise_.*": klb.quantizers.Uniform(bits=8)}  # few weights that matter much
    ternary, _ = klb.quantize_model(model, recipe, overrides=overrides)
    klb.calibrate(ternary, train[0], batch_size=256, verbose=0)
    fit(ternary, train, options.epochs, recipe.callbacks(epochs=options.epochs))
    results["ternary"] = finish(ternary, None, test, f"{options.output}-ternary.tflite")
    for name, found in results.items():
        print(name, found)
    return results


if __name__ == "__main__":
    main()
