"""Changes of a model that need no training: ranges, folding, equalization, bias correction, rounding."""
