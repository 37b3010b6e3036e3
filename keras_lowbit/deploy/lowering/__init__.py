"""From a quantized Keras model to its integer graph."""
