"""Super-resolution with activations of 8 and of 16 bits."""
