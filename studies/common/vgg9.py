"""VGG-9 for CIFAR-10, as the official code of SQ has it (Dong et al. 2017): convolutions and hidden layers without bias."""

import keras
from keras import layers


def vgg9(classes: int = 10, norm: type[layers.Layer] = layers.BatchNormalization) -> keras.Model:
    """2 x 64C3, 2 x 128C3, 2 x 256C3, each pair with a pool of 2; 2 x 512; logits.

    Batch norm and ReLU behind each, dropout of a quarter behind each pool and of a half behind each hidden layer.
    norm: the class of the batch norms behind convolutions.
    """
    inputs = features = keras.Input((32, 32, 3), name="image")
    for group, width in enumerate((64, 128, 256), start=1):
        for place in (1, 2):
            name = f"{group}_{place}"
            features = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"conv{name}")(features)
            features = layers.ReLU(name=f"relu{name}")(norm(momentum=0.9, epsilon=1e-5, name=f"bn{name}")(features))
        features = layers.Dropout(0.25, name=f"drop{group}")(layers.MaxPooling2D(2, name=f"pool{group}")(features))
    features = layers.Flatten(name="flat")(features)
    for group in (4, 5):
        features = layers.Dense(512, use_bias=False, name=f"dense{group}")(features)
        features = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"bn{group}")(features)
        features = layers.Dropout(0.5, name=f"drop{group}")(layers.ReLU(name=f"relu{group}")(features))
    return keras.Model(inputs, layers.Dense(classes, name="linear")(features), name="vgg9")
