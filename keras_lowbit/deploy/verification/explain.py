"""What in the data explains a verdict of `verify`."""

import numpy as np

from keras_lowbit.convert.post_training.input_checks import FeatureSpans, lost_features
from keras_lowbit.deploy.graph import IntegerGraph


class InputNotes:
    """Looks at what the int8 inputs of a graph are given, and says which of their features a step swallows."""

    def __init__(self, graph: IntegerGraph) -> None:
        self._graph = graph
        self._spans = {
            place: FeatureSpans() for place, name in enumerate(graph.inputs) if graph.tensors[name].scale is not None
        }

    def add(self, arrays: list[np.ndarray]) -> None:
        """Take in a batch of real inputs, in the order of the graph's."""
        for place, spans in self._spans.items():
            spans.see(arrays[place])

    def sentences(self) -> tuple[str, ...]:
        """One for each input with such features."""
        found = []
        for place, spans in self._spans.items():
            name = self._graph.inputs[place]
            grid = self._graph.tensors[name].range
            low, high = (grid.scale * (code - grid.zero_point) for code in grid.limits)
            found.append(lost_features(name, spans, low, high, 8 * np.dtype(grid.dtype).itemsize))
        return tuple(said for said in found if said)
