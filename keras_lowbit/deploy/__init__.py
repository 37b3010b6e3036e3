"""From a trained model to integers: the integer graph, its NumPy reference and the LiteRT writer."""
