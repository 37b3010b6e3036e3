"""Which LiteRT operators each Keras call becomes, read from the models of the zoo, and which targets take them.

`python -m tests.support.operator_table` writes docs/operators.md; a test compares it.
"""

import dataclasses
import os
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the tests have it

import keras

from keras_lowbit.convert.analysis.operations import stock_kind
from keras_lowbit.convert.expansion.expand import expand
from keras_lowbit.deploy.graph.operations import operation_of
from keras_lowbit.deploy.graph.operations.operation import Use
from keras_lowbit.deploy.litert.target import named_target
from keras_lowbit.deploy.lowering.lower import lower
from keras_lowbit.keras_graph.calls import calls_of
from tests.support.lowering_zoo import ZOO, trained

PATH = Path(__file__).parents[2] / "docs" / "operators.md"
TARGETS = ("microcontroller", "edgetpu", "npu-per-tensor")
LEFT_OUT = {"InputLayer", "QuantActivation", "KeepFloat", "Functional", "Sequential", "?"}
HEAD = """# Operators

What Keras' layers and `keras.ops` become in a file, as the models of the tests show it: all codes equal LiteRT's reference
kernels on every element. Several rows of a call are its forms (other shapes, ranges or constants). QUANTIZE stands where two
ranges meet, DEQUANTIZE where a part in float begins: both are left out. "None of its own": it fuses with its neighbours, or is
the tensor itself. A call whose form has no integers runs in float; the report of `quantize_model` says which, and why.

`python -m tests.support.operator_table` writes this table. yes: every operator of the row is one that the target takes in some
form (`export_litert(target=)` checks sizes, types and strides too; FULLY_CONNECTED is CONV_2D in files for the first two).
16 bits: whether LiteRT has a kernel of every operator for [16-bit activations](concepts.md#activations-of-16-bits); what has
none runs in float there.

| Keras | LiteRT operators | 16 bits | """


NARROW, WIDE = set(), set()  # operators of the integer operations that have no int16 kernel, and of the others


def operators_of(graph):
    """Name of each node -> the LiteRT operators that it is written as."""
    found = {}
    for node in graph.nodes:
        record = operation_of(node)
        if record.builtin is not None:
            ends = (tuple(graph.tensors[name] for name in names) for names in (node.inputs, node.outputs))
            found[node.name] = [step.kind for step in record.operators(Use(node, *ends))]
            narrow = record.int16 is None and "int8" in (*record.reads, *record.writes)  # masks have no codes
            (NARROW if narrow else WIDE).update(found[node.name])
    return found


def of_model(model, quantized, graph):
    """Kind of a call -> the operators of its nodes, of compositions those of all their parts; what runs in float is left out.

    model: the float one, None for a network of drop-in layers.
    """
    floats = {found["path"] for found in graph.metadata["float_fallbacks"]}
    made = None if model is None else expand(model)
    whole = {} if made is None else made.whole
    kinds = {call.path: stock_kind(call.operation) for call in calls_of(quantized, inline=True).calls}
    if made is not None:
        kinds |= {path: stock_kind(operation) for path, operation in made.operations.items()}
    operators, found = operators_of(graph), defaultdict(set)
    for path, kind in kinds.items():
        parts = {path, *(part for part, owner in whole.items() if owner == path)}
        names = [name for name in operators if any(name == part or name.startswith(f"{part}/") for part in parts)]
        is_part = whole.get(path, path) != path
        if kind not in LEFT_OUT and parts.isdisjoint(floats) and not is_part:
            kept = {operator for name in names for operator in operators[name]} - {"QUANTIZE", "DEQUANTIZE"}
            found[kind].add(tuple(sorted(kept)))
    return found


def table(found):
    """The Markdown of kinds and the forms of their operators."""
    targets = [named_target(name) for name in TARGETS]
    lines = [HEAD + " | ".join(TARGETS) + " |", "|" + "---|" * (3 + len(TARGETS))]
    for kind in sorted(found, key=str.lower):
        for form in sorted(found[kind], key=lambda form: (len(form), form)):
            takes = [_yes((NARROW - WIDE).isdisjoint(form))]
            takes += [_yes(all(_takes(target, operator) for operator in form)) for target in targets]
            lines.append(f"| {kind} | {', '.join(form) or 'none of its own'} | {' | '.join(takes)} |")
    return "\n".join(lines) + "\n"


def _yes(fits):
    return "yes" if fits else "no"


def _takes(target, operator):
    return target.takes(operator) or (operator == "FULLY_CONNECTED" and target.takes("CONV_2D"))


def of_zoo(entries):
    """The Markdown of the models of a zoo, and the integer operations that they have."""
    found, made = defaultdict(set), set()
    for seed, entry in enumerate(entries):
        keras.utils.set_random_seed(seed)  # ranges decide some forms
        model = entry.make()
        quantized, _ = trained(dataclasses.replace(entry, make=lambda model=model: model))
        graph = lower(quantized, entry.input_shapes)
        made |= {node.op for node in graph.nodes}
        for kind, forms in of_model(None if entry.quantized else model, quantized, graph).items():
            found[kind] |= forms
    return table(found), made


def main():
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(of_zoo(ZOO.values())[0], encoding="utf-8")


if __name__ == "__main__":
    main()
