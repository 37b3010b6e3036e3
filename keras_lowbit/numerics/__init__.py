"""Pure functions on tensors: grids, gradients, thresholds, selection. `keras.ops` only, no state."""
