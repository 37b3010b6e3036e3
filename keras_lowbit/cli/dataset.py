"""DATA of the commands: what --data and the flags beside it mean."""

import dataclasses
import os
from typing import Any

from absl import flags

from keras_lowbit.cli.options import say
from keras_lowbit.data import MODES, ModelData, cached, for_model
from keras_lowbit.data.images import RESIZE
from keras_lowbit.data.source import KINDS
from keras_lowbit.files import printable

flags.disclaim_key_flags()


def define_data(values: flags.FlagValues, limit: int | None = None) -> None:
    """Defines --data, needed, and how it is read. limit: the default of --limit, None for all."""
    flags.DEFINE_string("data", None, KINDS, required=True, flag_values=values)
    text = "folder of tensorflow-datasets, for tfds: data"
    flags.DEFINE_string("data_dir", None, text, flag_values=values)
    text = "folder for decoded data, which are then read once; data that train in another order each epoch are not kept"
    flags.DEFINE_string("cache", None, text, flag_values=values)
    modes = "; ".join(f"{mode}: {meaning}" for mode, meaning in MODES.items())
    text = f"what the model takes for pixels; auto finds it in the model, and asks where nothing tells. {modes}"
    flags.DEFINE_enum("preprocess", "auto", ["auto", *MODES], text, flag_values=values)
    text = "; ".join(f"{way}: {meaning}" for way, meaning in RESIZE.items())
    flags.DEFINE_enum("resize", "crop", list(RESIZE), text, flag_values=values)
    flags.DEFINE_integer("batch_size", 32, "samples in a batch", lower_bound=1, flag_values=values)
    text = "samples to use at most" + ("" if limit is not None else ", by default all")
    flags.DEFINE_integer("limit", limit, text, lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "seed", 0, "of the order of the samples, and so of their choice", lower_bound=0, flag_values=values
    )


def open_data(
    model: Any,
    values: Any,
    source: str | None = None,
    quiet: bool = False,
    epoch: Any = None,
    augment: str | None = None,
) -> ModelData:
    """The data for a model; what was decided about them is said.

    source: in place of --data.   quiet: it was said already.   epoch, augment: as for `Images`.
    """
    size = None if values.input_size is None else (values.input_size, values.input_size)
    found = for_model(
        model,
        source or values.data,
        preprocess=values.preprocess,
        size=size,
        data_dir=values.data_dir,
        resize=values.resize,
        batch_size=values.batch_size,
        limit=values.limit,
        seed=values.seed,
        epoch=epoch,
        augment=augment,
    )
    if not quiet:
        say(f"data: {'; '.join(found.about)}")
    if values.cache is not None and epoch is None:
        if not os.path.isdir(values.cache):
            raise FileNotFoundError(f"no folder {printable(values.cache)!r} for --cache. Make it first")
        found = dataclasses.replace(found, dataset=cached(found.dataset, values.cache))
    return found
