"""Which operators of a file XNNPACK took: LiteRT's delegate runs those fast, the rest run on its built-in kernels."""

import dataclasses
from collections import Counter
from typing import Any

from keras_lowbit.deploy.interpreters import make_interpreter
from keras_lowbit.files import FilePath


@dataclasses.dataclass(frozen=True)
class DelegateCoverage:
    """taken: names of output tensors whose operator XNNPACK runs.   left: (operator, output tensor) that it does not."""

    taken: tuple[str, ...]
    left: tuple[tuple[str, str], ...]

    @property
    def operators(self) -> int:
        """How many operators the file has."""
        return len(self.taken) + len(self.left)

    @property
    def left_by_operator(self) -> dict[str, int]:
        """Operator name -> how many of it stay on LiteRT's built-in kernels."""
        return dict(Counter(kind for kind, _ in self.left))

    def __str__(self) -> str:
        left = ", ".join(f"{kind} x{count}" for kind, count in self.left_by_operator.items())
        return f"XNNPACK runs {len(self.taken)} of {self.operators} operators{f'; not {left}' if left else ''}"


def delegate_coverage(path: FilePath, content: bytes = b"") -> DelegateCoverage:
    """Which operators of a .tflite file the XNNPACK delegate takes on this machine. content: its bytes, if they are known."""
    interpreter = make_interpreter("xnnpack", model_path=path, model_content=content)
    # The only way to ask: a private method, which lists the file's operators and then one DELEGATE for each partition.
    operators = interpreter._get_ops_details()
    names = {detail["index"]: detail["name"] for detail in interpreter.get_tensor_details()}
    plain = [op for op in operators if op["op_name"] != "DELEGATE"]
    taken = _inside([op for op in operators if op["op_name"] == "DELEGATE"], plain)
    ends = [(op["op_name"], names.get(int(op["outputs"][0]), ""), op["index"] in taken) for op in plain]
    return DelegateCoverage(
        tuple(name for _, name, inside in ends if inside),
        tuple((kind, name) for kind, name, inside in ends if not inside),
    )


def _inside(delegates: list[Any], plain: list[Any]) -> set[int]:
    """Operators of the partitions: backwards from what a delegate gives to what it takes."""
    writer = {int(tensor): op for op in plain for tensor in op["outputs"]}
    found: set[int] = set()
    for delegate in delegates:
        takes = {int(tensor) for tensor in delegate["inputs"]}
        open_ends = [int(tensor) for tensor in delegate["outputs"]]
        while open_ends:
            op = writer.get(open_ends.pop())
            if op is not None and op["index"] not in found:
                found.add(op["index"])
                open_ends += [int(tensor) for tensor in op["inputs"] if int(tensor) not in takes]
    return found
