"""From an integer graph to a LiteRT file and back; running a file."""

from keras_lowbit.deploy.litert.writer import read_metadata, to_bytes, write

__all__ = ["read_metadata", "to_bytes", "write"]
