"""Rounding learnt block by block; `reconstruct` is the way in."""
