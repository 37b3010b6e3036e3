"""Ranges that LiteRT cannot run: it refuses the file, ends the process, or computes something else.

Found by trying LiteRT 2.3, reference kernels and XNNPACK delegate; `s` are scales. A graph beyond a limit is
refused where it is built, because a file must not be able to end the program that loads it.

    convolutions, dense    s_in * s_w / s_out < 256     beyond: the XNNPACK delegate fails to load the file
    mean                   s_in / s_out < 256           beyond: XNNPACK saturates to the wrong side
    add, sub               max(s_in) / s_out < 2**19    beyond: the kernel ends the process
    softmax                s_in > 2**-26                below: the kernel ends the process
    hard_swish             s_in / s_out < 128           beyond: the kernel refuses
    relu6, also fused      6 / s_out < 2**31            beyond: the upper bound overflows
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras_lowbit.deploy.graph.tensors import Node, Tensor

_FACTOR = 256.0
_WEIGHTED = ("conv2d", "depthwise_conv2d", "transpose_conv", "fully_connected")


def check_limits(node: Node, tensors: Mapping[str, Tensor]) -> None:
    """ValueError, with the value, the limit and what to do, if LiteRT cannot run the node in these ranges."""
    inputs, output = [tensors[n] for n in node.inputs], tensors[node.outputs[0]]
    where = f"{node.op} {node.name!r}"
    scales = [float(t.scale.max()) for t in inputs if t.scale is not None and t.scale.size]
    out = float(output.scale) if output.scale is not None else np.nan
    if node.op in _WEIGHTED:
        _below(scales[0] * scales[1] / out, _FACTOR, f"{where}: input scale * weight scale / output scale", output)
    elif node.op == "mean":
        _below(scales[0] / out, _FACTOR, f"{where}: input scale / output scale", output)
    elif node.op in ("add", "sub"):
        _below(max(scales) / out, 2.0**19, f"{where}: largest input scale / output scale", output)
    elif node.op == "hard_swish":
        _below(scales[0] / out, 128.0, f"{where}: input scale / output scale", output)
    elif node.op == "softmax" and scales[0] <= 2.0**-26:
        raise ValueError(
            f"{where} reads {inputs[0].name!r} of scale {scales[0]:.3g}: LiteRT needs more than "
            f"{2.0**-26:.3g}. "
            "Calibrate the input again; a range this narrow has one value only"
        )
    if node.op == "relu6" or node.attributes.get("activation") == "relu6":
        _below(6 / out, 2.0**31 - 1, f"{where}: 6 / output scale", output)


def _below(factor: float, limit: float, what: str, output: Tensor) -> None:
    if not factor < limit:
        raise ValueError(
            f"{what} is {factor:.6g}: LiteRT takes values below {limit:.6g}. Give "
            f"{output.name!r} a wider range "
            f"(its scale is {output.range.scale:.3g}), or calibrate again"
        )
