"""SQ against its base quantizers on CIFAR-10: see README.md in this folder."""
