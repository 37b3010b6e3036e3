"""The integer graph in TensorFlow, on the compiled ops."""
