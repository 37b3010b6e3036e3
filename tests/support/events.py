"""The event files of TensorBoard in a folder, as TensorFlow reads them."""

from pathlib import Path

import tensorflow as tf


def read_events(folder):
    """{tag: {step: value}} of all event files, and {tag: (plugin, data class)}."""
    values, kinds = {}, {}
    for path in sorted(Path(folder).glob("events.out.tfevents.*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                values.setdefault(value.tag, {})[event.step] = tf.make_ndarray(value.tensor)
                kinds.setdefault(value.tag, (value.metadata.plugin_data.plugin_name, value.metadata.data_class))
    return values, kinds
