"""keras-lowbit verify: is a .tflite file what the quantized model is? Layer by layer, and end to end on data.

    keras-lowbit verify q.keras q.tflite --data photos/ --reference float.keras

Exit status 0 if it is, 1 if not, with what is wrong. Labels that the data have are compared too; --reference is the float
model, which the outputs of both are compared with.
"""

import json
from typing import Any

from absl import flags

from keras_lowbit.cli.dataset import define_data, open_data
from keras_lowbit.cli.models import read_model
from keras_lowbit.cli.options import define_json, show, wants_progress, working
from keras_lowbit.deploy.verification.verify import verify

FLAGS = flags.FlagValues()
define_json(FLAGS)
define_data(FLAGS)
flags.DEFINE_string("reference", None, "the float model that the quantized one was made from", flag_values=FLAGS)
text = "height and width of the images, for a model that takes any"
flags.DEFINE_integer("input_size", None, text, lower_bound=1, flag_values=FLAGS)
ARGUMENTS = ("MODEL", "FILE")


def run(values: Any, model: str, path: str) -> int:
    """Verifies and prints the verdict."""
    with working(values):
        quantized = read_model(model)
        reference = None if values.reference is None else read_model(values.reference)
        given = open_data(quantized if reference is None else reference, values)
        parity = verify(quantized, path, given.dataset, reference=reference, verbose=wants_progress(values))
    show(values, parity, json.loads(parity.to_json()))
    return int(not parity.ok)
