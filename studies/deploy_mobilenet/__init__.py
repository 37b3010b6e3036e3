"""MobileNetV2 as LiteRT files: accuracy, size, latency."""
