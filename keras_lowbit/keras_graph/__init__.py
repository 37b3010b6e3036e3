"""Keras models as graphs of calls: reading, copying, editing. Knows nothing of quantization."""
