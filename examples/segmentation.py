"""Segmentation with a U-Net at 8 bits: which pixels belong to the handwriting?

    python examples/segmentation.py --output segmentation.tflite

Real handwritten digits (scikit-learn's) stand at random places on a background of shades and noise. So every mask is known, and
nothing is downloaded. Skip connections meet in concatenations, which need one range for all they join.
"""

import argparse

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_lowbit as klb

SIZE = 32


def pictures(count, random):
    """`count` pictures float32 [n, 32, 32, 1] of 0 to 1, and the masks of their digits."""
    digits = load_digits().images / 16
    images, masks = np.empty((count, SIZE, SIZE, 1), "float32"), np.zeros((count, SIZE, SIZE, 1), "float32")
    for image, mask in zip(images, masks, strict=True):
        shade = np.linspace(*random.uniform(0, 0.5, 2), SIZE)
        image[..., 0] = shade + random.normal(scale=0.08, size=(SIZE, SIZE))
        for _ in range(3):
            digit = np.kron(digits[random.integers(len(digits))], np.ones((2, 2)))
            top, left = random.integers(SIZE - len(digit), size=2)
            place = np.s_[top : top + len(digit), left : left + len(digit), 0]
            image[place] = np.where(digit > 0.3, 0.5 + 0.5 * digit, image[place])
            mask[place] = np.maximum(mask[place], digit > 0.3)
    return np.clip(images, 0, 1), masks


def block(features, width):
    """Two convolutions."""
    for _ in range(2):
        features = keras.layers.Conv2D(width, 3, padding="same", use_bias=False)(features)
        features = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(features))
    return features


def u_net(width, depth):
    """Down by pools, up by transposed convolutions, with the features of the same size joined."""
    inputs = features = keras.Input((SIZE, SIZE, 1), name="image")
    skips = []
    for level in range(depth):
        features = block(features, width << level)
        skips.append(features)
        features = keras.layers.MaxPooling2D()(features)
    features = block(features, width << depth)
    for level in reversed(range(depth)):
        features = keras.layers.Conv2DTranspose(width << level, 2, 2)(features)
        features = block(keras.layers.Concatenate()([features, skips[level]]), width << level)
    return keras.Model(inputs, keras.layers.Conv2D(1, 1, activation="sigmoid", name="mask")(features), name="u_net")


def overlap(found, masks):
    """Intersection over union of all masks together."""
    found, masks = found > 0.5, masks > 0.5
    return float((found & masks).sum() / (found | masks).sum())


def run_file(path, images):
    """The masks that the file gives, one picture after the other."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path)
    interpreter.allocate_tensors()
    [source], [result] = interpreter.get_input_details(), interpreter.get_output_details()
    masks = []
    for image in images:
        interpreter.set_tensor(source["index"], image[None])
        interpreter.invoke()
        masks.append(interpreter.get_tensor(result["index"])[0])
    return np.stack(masks)


def main(arguments=None):
    """Trains, quantizes, exports and verifies; overlap with the true masks in float and in the file, and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--width", type=int, default=16, help="channels of the first level")
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--output", default="segmentation.tflite")
    options = parser.parse_args(arguments)

    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    (train, train_masks), (test, masks) = pictures(options.pictures, random), pictures(64, random)
    model = u_net(options.width, options.depth)
    model.compile(keras.optimizers.Adam(3e-3), "binary_crossentropy", jit_compile=False)
    model.fit(train, train_masks, epochs=options.epochs, batch_size=32, verbose=0)

    quantized, report = klb.quantize_model(model, "int8")
    print(report)
    klb.calibrate(quantized, train[:200], verbose=0)
    print(klb.export_litert(quantized, options.output, io="float32"))
    parity = klb.verify(quantized, options.output, test[:16], reference=model)
    print(parity)
    found = {"float": overlap(np.array(model(test)), masks), "file": overlap(run_file(options.output, test), masks)}
    results = {**found, "verified": parity.ok}
    print(results)
    return results


if __name__ == "__main__":
    main()
