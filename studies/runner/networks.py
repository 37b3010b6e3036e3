"""The network of a run: built, quantized, with the callbacks of its schedule and its optimizer."""

import dataclasses
import platform
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_lowbit as klb
from keras_lowbit.distill import losses, thresholds
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.quantizers import Incremental
from studies.common import cifar_resnet
from studies.common.machine import has_flag
from studies.common.restarts import Restarts
from studies.common.vgg9 import vgg9
from studies.runner.batch_norm import FusedBatchNormalization
from studies.runner.runs import Run

CALIBRATION_IMAGES, STATISTICS_IMAGES = 64, 2048


def recipe_of(run: Run) -> klb.recipes.Recipe | None:
    """The recipe of a method; None for a float network.

    recipe: a name of `klb.recipes`.   dfp: arguments of `klb.recipes.dfp`.   kernel: a quantizer for every layer instead.
    schedule: instead of the recipe's.   activations: "recipe" for quantized ones; float otherwise, as SQ and INQ have them.
    """
    what = run.what
    if "recipe" not in what and "dfp" not in what:
        return None
    recipe = klb.recipes.dfp(**what["dfp"]) if "dfp" in what else klb.recipes.get(what["recipe"])
    if "kernel" in what:
        recipe = recipe.replace(plan=(klb.recipes.Rule(klb.quantizers.get(what["kernel"])),))
    if "schedule" in what:
        recipe = recipe.replace(schedule=what["schedule"])
    return recipe if what.get("activations") == "recipe" else recipe.replace(activations=None)


def precision_of(run: Run) -> str:
    """The dtype policy that a run trains in here. "auto": mixed_bfloat16 but where that is slow, which is TensorFlow on a
    processor without AVX-512: oneDNN leaves bfloat16 to other kernels there."""
    if run.settings["precision"] != "auto":
        return str(run.settings["precision"])
    slow = keras.backend.backend() == "tensorflow" and platform.machine() == "x86_64" and not has_flag("avx512f")
    return "float32" if slow else "mixed_bfloat16"


def build(run: Run, folder: Path, precision: str | None = None) -> keras.Model:
    """The network at the start of a run, as its seed and settings say.

    precision: instead of the run's, to measure in float32 what was trained in another one.
    """
    keras.utils.set_random_seed(run.seed)
    recipe = recipe_of(run)
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision or precision_of(run))
    try:
        model = _float_network(run, folder, plain=recipe is not None and recipe.activations is not None)
        return model if recipe is None else klb.quantize_model(model, recipe)[0]
    finally:
        keras.config.set_dtype_policy(previous)


def _float_network(run: Run, folder: Path, plain: bool) -> keras.Model:
    """plain: with Keras' own batch norms, which conversion knows how to give ranges."""
    norm = keras.layers.BatchNormalization if plain else FusedBatchNormalization
    if run.settings["start"] == "random":
        vgg = run.settings.get("network") == "vgg9"
        model = vgg9(norm=norm) if vgg else cifar_resnet.cifar_resnet(run.settings["depth"], norm=norm)
        return draw_kernels(model, run.seed)
    model = cifar_resnet.pretrained(folder, run.settings["depth"], norm=norm)
    if "prune" in run.what:
        prune(model, run.what["prune"])
    return model


def draw_kernels(model: keras.Model, seed: int) -> keras.Model:
    """Random kernels, normal with variance 2 / fan-in (He et al. 2015, arXiv:1502.01852), the same on every backend."""
    rng = np.random.default_rng((seed, 0x4E))  # apart from the stream of the epochs
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            shape = tuple(layer.kernel.shape)
            layer.kernel.assign(rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32))
    return model


def prune(model: keras.Model, share: float) -> None:
    """Sets the smallest `share` of the weights of every kernel to 0, where INQ leaves them."""
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            kernel = to_numpy(layer.kernel).copy()
            smallest = np.argsort(np.abs(kernel), axis=None, kind="stable")[: round(share * kernel.size)]
            kernel.ravel()[smallest] = 0
            layer.kernel.assign(kernel)


def prepare(model: keras.Model, run: Run, images: np.ndarray) -> None:
    """Ranges of quantized activations, and batch norms with quantized weights in front; nothing for float activations."""
    if run.what.get("activations") != "recipe":
        return
    few = cifar_resnet.normalize(images[:CALIBRATION_IMAGES])
    klb.calibrate(model, few, batch_size=64, verbose=0)
    seen = cifar_resnet.augment(images[:STATISTICS_IMAGES], np.random.default_rng(run.seed))
    klb.reestimate_batch_norms(model, cifar_resnet.normalize(seen), batch_size=128, check=False, verbose=0)
    klb.calibrate(model, few, batch_size=64, verbose=0)


def teacher_of(run: Run, folder: Path) -> keras.Model | None:
    """The pretrained float network, whose logits a taught run follows in place of labels."""
    if not run.what.get("teacher"):
        return None
    return build(dataclasses.replace(run, what={}, settings=run.settings | {"start": "pretrained"}), folder)


def callbacks_of(run: Run) -> list[keras.callbacks.Callback]:
    """What changes the network between epochs: the recipe's schedule, or restarts alone."""
    recipe = recipe_of(run)
    if recipe is None or not recipe.schedule:
        return [Restarts(run.stage_epochs)] if run.stages > 1 else []
    if any(isinstance(rule.kernel, Incremental) for rule in recipe.plan):
        # The schedule gives the last step one epoch; what follows belongs to that step, so it is as long as the others.
        return recipe.callbacks(epochs=(run.stages - 1) * run.stage_epochs + 1, seed=run.seed)
    return recipe.callbacks(epochs=run.epochs)


def optimizer_of(run: Run, model: keras.Model, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """SGD with momentum; the rate falls to 0 with a cosine over one stage.

    Keras' weight_decay is decoupled: it acts once, not through the momentum buffer. L2 of a solver with momentum m
    shrinks a weight by rate * l2 / (1 - m) per step in the long run, so that is the value given here. Trained steps and
    scales are not shrunk.
    """
    settings = run.settings
    rate = keras.optimizers.schedules.CosineDecay(settings["learning_rate"], run.stage_epochs * steps_per_epoch)
    decay = settings["l2"] / (1 - settings["momentum"])
    optimizer = keras.optimizers.SGD(rate, momentum=settings["momentum"], weight_decay=decay)
    optimizer.exclude_from_weight_decay(var_list=thresholds(model))
    return optimizer


def loss_of(run: Run) -> Any:
    """(targets, logits) -> scalar: cross-entropy with classes, or the distance to a teacher's logits (KL, temperature 4)."""
    if run.what.get("teacher"):
        return losses.get("kl", 4.0)
    return losses.cross_entropy
