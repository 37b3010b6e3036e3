"""Clustered weights with dynamic fixed point on real pretrained networks."""
