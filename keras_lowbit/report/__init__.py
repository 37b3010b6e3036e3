"""report: all that is known of a quantized model on one page, and as JSON."""

from keras_lowbit.report.content import Report
from keras_lowbit.report.make import report

__all__ = ["Report", "report"]
