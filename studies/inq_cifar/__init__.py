"""INQ on CIFAR-10: widths and partitions."""
