"""A detector with several outputs at 8 bits: is there a digit, which one, and where?

    python examples/detector.py --output detector.tflite

Real handwritten digits (scikit-learn's), each in its own size at a random place of a noisy picture, or none; so the boxes are
known, and nothing is downloaded. The file has three named outputs of different kind, each with a range of its own.
"""

import argparse

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_lowbit as klb

SIZE = 32


def scenes(count, random):
    """Pictures float32 [n, 32, 32, 1] of 0 to 1; by output: 0 or 1, class, box (top, left, bottom, right; 0 to 1)."""
    digits, kinds = load_digits(return_X_y=True)
    digits = digits.reshape(-1, 8, 8) / 16
    images = random.uniform(0, 0.3, (count, SIZE, SIZE, 1)).astype("float32")
    there, which = random.uniform(size=(count, 1)) < 0.8, random.integers(len(digits), size=count)
    boxes = np.zeros((count, 4), "float32")
    for image, seen, number, box in zip(images, there[:, 0], which, boxes, strict=True):
        if seen:
            digit = np.kron(digits[number], np.ones((factor := random.integers(1, 4), factor)))
            top, left = random.integers(SIZE - len(digit) + 1, size=2)
            place = np.s_[top : top + len(digit), left : left + len(digit), 0]
            image[place] = np.maximum(image[place], digit)
            box[:] = np.array([top, left, top + len(digit), left + len(digit)]) / SIZE
    return images, {"there": there.astype("float32"), "digit": kinds[which].astype("int32"), "box": boxes}


def network(width):
    """One body, three heads."""
    inputs = features = keras.Input((SIZE, SIZE, 1), name="image")
    for level in range(3):
        features = keras.layers.Conv2D(width << level, 3, 2, "same", use_bias=False)(features)
        features = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(features))
    features = keras.layers.Dense(8 * width, activation="relu")(keras.layers.Flatten()(features))
    heads = {"there": (1, "sigmoid"), "digit": (10, "softmax"), "box": (4, "sigmoid")}
    outputs = {
        name: keras.layers.Dense(units, activation=function, name=name)(features)
        for name, (units, function) in heads.items()
    }
    return keras.Model(inputs, outputs, name="detector")


def scores(found, wanted):
    """Share of pictures right about whether there is a digit; of those with one, share of right classes, mean overlap."""
    seen = wanted["there"][:, 0] == 1
    corners, boxes = found["box"][seen], wanted["box"][seen]
    sides = np.minimum(corners[:, 2:], boxes[:, 2:]) - np.maximum(corners[:, :2], boxes[:, :2])
    shared = np.clip(sides, 0, None).prod(-1)
    areas = [np.clip(box[:, 2:] - box[:, :2], 0, None).prod(-1) for box in (corners, boxes)]
    return {
        "there": float(np.mean((found["there"][:, 0] > 0.5) == seen)),
        "digit": float(np.mean(found["digit"][seen].argmax(-1) == wanted["digit"][seen])),
        "box": float(np.mean(shared / (sum(areas) - shared))),
    }


def run_file(path, images):
    """What the file gives, by the names of its outputs."""
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(path).get_signature_runner()
    rows = [run(image=image[None]) for image in images]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def main(arguments=None):
    """Trains, quantizes, exports and verifies; the scores in float and in the file, and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=6000)
    parser.add_argument("--width", type=int, default=16, help="channels of the first convolution")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--output", default="detector.tflite")
    options = parser.parse_args(arguments)

    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    (train, targets), (test, wanted) = scenes(options.pictures, random), scenes(400, random)
    model = network(options.width)
    seen = targets["there"][:, 0]  # class and box count where there is a digit
    losses = {"there": "binary_crossentropy", "digit": "sparse_categorical_crossentropy", "box": "mean_absolute_error"}
    weights = {"there": np.ones_like(seen), "digit": seen, "box": 4 * seen}
    model.compile(keras.optimizers.Adam(2e-3), losses, jit_compile=False)
    model.fit(train, targets, sample_weight=weights, epochs=options.epochs, batch_size=64, verbose=0)

    folded = klb.fold_batch_norms(model)
    quantized, _ = klb.quantize_model(folded, "int8")
    klb.calibrate(quantized, train[:500], verbose=0)
    klb.correct_biases(quantized, folded, train[:500], verbose=0)
    print(klb.export_litert(quantized, options.output, io="float32"))
    parity = klb.verify(quantized, options.output, test[:32], reference=model)
    print(parity)
    in_float = {name: np.array(values) for name, values in model(test).items()}
    results = {
        "float": scores(in_float, wanted),
        "file": scores(run_file(options.output, test), wanted),
        "verified": parity.ok,
    }
    print(results)
    return results


if __name__ == "__main__":
    main()
