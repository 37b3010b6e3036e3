"""How LiteRT's fast kernels differ from its reference kernels."""
