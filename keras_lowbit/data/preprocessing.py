"""Which numbers a model wants in place of pixels of 0 to 255: the modes of keras.applications, and finding out which.

A wrong one is the commonest cause of a bad int8 model: nothing fails, every range is just found on other data.
"""

import re
from typing import Any

from keras_lowbit.keras_graph.calls import CallGraph, calls_of

MODES = {
    "tf": "-1 to 1: x / 127.5 - 1 (MobileNet, Inception, NASNet, ResNet V2, Xception)",
    "torch": "(x / 255 - mean) / std of ImageNet (DenseNet)",
    "caffe": "BGR, x - mean of ImageNet (VGG, ResNet)",
    "unit": "0 to 1: x / 255",
    "none": "pixels of 0 to 255 as they are, and arrays as they are stored",
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, of pixels in 0..1
BGR_MEAN = (103.939, 116.779, 123.68)
# Names that keras.applications gives its networks -> what their `preprocess_input` does. Those that have layers for it, and may
# have been made without them, are not here: their front tells.
NETWORKS = {
    r"mobilenet_\d.*|mobilenetv2_.*|inception_v3|inception_resnet_v2|xception|NASNet|nasnet_\w+|resnet\d+v2": "tf",
    r"densenet\d+": "torch",
    r"vgg1[69]|resnet\d+": "caffe",
}
_PREPARING = ("Rescaling", "Normalization")
_ARITHMETIC = ("TrueDivide", "Divide", "Multiply", "Subtract", "Add", "GetItem")


def apply_mode(mode: str, images: Any) -> Any:
    """Float32 images [..., channels], RGB of 0 to 255, as a mode of `MODES` prepares them; TensorFlow."""
    import tensorflow as tf

    if mode == "tf":
        return images / 127.5 - 1.0
    if mode == "unit":
        return images / 255.0
    if mode == "torch":
        return (images / 255.0 - tf.constant(MEAN)) / tf.constant(STD)
    return images[..., ::-1] - tf.constant(BGR_MEAN) if mode == "caffe" else images


def found_mode(model: Any) -> tuple[str, str] | None:
    """The mode that a model wants and how that is known, in words; None if nothing tells.

    From what stands at its front (a Rescaling or Normalization layer, or arithmetic with constants: the model prepares pixels
    itself, "none"), or from the name that keras.applications gave it or the network inside it.
    model: Functional or Sequential.
    Returns (mode, how it is known), or None.

    >>> scaled = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255, name="scale"), model])
    >>> klb.data.found_mode(scaled)
    ('none', "'scale' at the front of the model prepares pixels itself")
    """
    try:
        graph = calls_of(model, inline=True)
    except TypeError:  # a subclassed model, of which nothing is known
        return _by_name([str(model.name)])
    first = _first_call(graph)
    if first is not None and (first.kind in _PREPARING or (first.kind in _ARITHMETIC and _with_constant(first))):
        return "none", f"{first.path!r} at the front of the model prepares pixels itself"
    names = [str(model.name), *(call.path.split("/")[0] for call in graph.calls[:3] if "/" in call.path)]
    return _by_name(names)


def _by_name(names: list[str]) -> tuple[str, str] | None:
    for name in dict.fromkeys(names):
        for pattern, mode in NETWORKS.items():
            if re.fullmatch(pattern, name):
                return mode, f"the network {name!r} of keras.applications is trained so"
    return None


def _first_call(graph: CallGraph) -> Any:
    """The first call of a model with one input that computes something."""
    if len(graph.inputs) != 1:
        return None
    key = graph.inputs[0]
    while readers := graph.consumers(key):
        if len(readers) > 1:  # "caffe" takes the channels apart
            return readers[0] if all(reader.kind == "GetItem" for reader in readers) else None
        if readers[0].kind not in ("Identity", "QuantActivation", "InputLayer", "Cast"):
            return readers[0]
        key = readers[0].outputs[0]
    return None


def _with_constant(call: Any) -> bool:
    parts = call.constants()
    numbers = (
        (isinstance(part, int | float) and not isinstance(part, bool)) or hasattr(part, "dtype") for part in parts
    )
    return call.kind == "GetItem" or any(numbers)
