"""Whether a file is what its Keras model computes."""
