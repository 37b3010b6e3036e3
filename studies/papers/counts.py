"""How many multiplications clusters of ternary weights leave: arithmetic on shapes, no weights and no data.

python -m studies.papers.counts           # writes counts.json
"""

import json
import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from keras_lowbit.deploy.multiplications import multiplications_left
from keras_lowbit.quantizers import Clustered, Ternary
from studies.runner.runs import PAPERS

CLUSTERS = (4, 64)


def multiplications(layer: Any, quantizer: Any) -> int:
    """Of a convolution or dense layer for one image, as `klb.summary` counts them: one for each cluster and output value."""
    outputs = int(np.prod(layer.output.shape[1:]))
    return outputs * multiplications_left(quantizer, tuple(layer.kernel.shape), (-1,))


def removed(model: Any, cluster_size: int) -> float:
    """Share of the multiplications that ternary clusters take away; first and last layer keep 8 bits and all of theirs."""
    layers = [layer for layer in model.layers if hasattr(layer, "kernel")]
    before = sum(multiplications(layer, None) for layer in layers)
    clustered = Clustered(Ternary(), cluster_size)
    after = sum(multiplications(layer, clustered) for layer in layers[1:-1])
    after += sum(multiplications(layer, None) for layer in (layers[0], layers[-1]))
    return 1 - after / before


def main() -> None:
    """Counts ResNet-101, the network of the paper."""
    import keras

    model = keras.applications.ResNet101(weights=None)
    rows = [
        {"network": "resnet101", "cluster_size": size, "share": round(removed(model, size), 5)} for size in CLUSTERS
    ]
    rows.append({"network": "resnet101", "cluster_size": None, "share": 0.0})
    lines = ",\n ".join(map(json.dumps, rows))
    (PAPERS / "counts.json").write_text(f'{{"runs": [\n {lines}\n]}}\n')
    print(lines)


if __name__ == "__main__":
    main()
