"""FAT on the real MobileNets: thresholds tuned without labels, against post-training quantization."""
