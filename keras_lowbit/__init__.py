"""keras_lowbit: low-bit neural networks for phones, in Keras 3."""
