"""Data in, model-ready batches out.

What every function here takes as data becomes batches in `batching`. Sources on disks become tf.data sets: `folder_by_class`,
`flat_folder`, `tfrecords`, `arrays`, `tfds`, prepared as `Images` says; `for_model` chooses both for a model.
"""

from keras_lowbit.data.array_files import arrays, stored_arrays
from keras_lowbit.data.augmentation import AUGMENTATIONS, padded_crop, random_resized_crop
from keras_lowbit.data.batching import Batches, batch_count, batches, labelled_batches, samples_in, take
from keras_lowbit.data.caching import cached
from keras_lowbit.data.folders import classes, flat_folder, folder_by_class, tfrecords
from keras_lowbit.data.images import Images
from keras_lowbit.data.named_sets import tfds
from keras_lowbit.data.preprocessing import MODES, found_mode
from keras_lowbit.data.source import ModelData, for_model

__all__ = [
    "AUGMENTATIONS",
    "MODES",
    "Batches",
    "Images",
    "ModelData",
    "arrays",
    "batch_count",
    "batches",
    "cached",
    "classes",
    "flat_folder",
    "folder_by_class",
    "for_model",
    "found_mode",
    "labelled_batches",
    "padded_crop",
    "random_resized_crop",
    "samples_in",
    "stored_arrays",
    "take",
    "tfds",
    "tfrecords",
]
