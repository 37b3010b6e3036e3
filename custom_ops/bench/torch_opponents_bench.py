"""PyTorch's kernels for the work of the CUDA benchmark's jobs (torch_bench.py)."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch_bench import CALLS, COLD_BYTES, MOST_COPIES

Run = Callable[[], float]


class Opponents:
    """What PyTorch runs on a device. "cpu": in float32, by the processor's clock, for tests of this file alone."""

    def __init__(self, device: str) -> None:
        """device: "cuda", or "cpu"."""
        self.device = device
        self.kind = torch.float16 if device == "cuda" else torch.float32
        torch.backends.cudnn.benchmark = True

    def versions(self) -> dict[str, Any]:
        """PyTorch, its CUDA and its cuDNN."""
        return {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}

    def runners(self, job: dict[str, Any]) -> dict[str, Callable[[], Run]]:
        """Name -> what makes the runner of a job: milliseconds of a call."""
        if "steps" in job:
            make = functools.partial(self.network, job["steps"])
            return {"PyTorch float16": make, "PyTorch float16, compiled": functools.partial(make, compiled=True)}
        shape = job["shape"]
        if job["list"] == "dense":
            return {
                "cuBLAS float16": functools.partial(self.product, shape, self.kind),
                "cuBLAS int8": functools.partial(self.product, shape, torch.int8),
            }
        found = {"cuDNN float16": functools.partial(self.convolution, shape)}
        if shape["kernel"] == shape["stride"] == 1:
            found["cuBLAS int8"] = functools.partial(self.product, shape, torch.int8)
        return found

    def convolution(self, shape: dict[str, int]) -> Run:
        """A convolution in float16, channels last; an image with uneven padding comes padded."""
        pads = [shape[f"pad_{side}"] for side in ("left", "right", "top", "bottom")]
        even = len(set(pads)) == 1
        sizes = shape["batch"], shape["in_channels"], shape["in_height"], shape["in_width"]
        x = self._random(sizes)
        x = (x if even else torch.nn.functional.pad(x, pads)).contiguous(memory_format=torch.channels_last)
        kernel = self._random((shape["out_channels"], shape["in_channels"], shape["kernel"], shape["kernel"]))
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        bias = self._random((shape["out_channels"],))
        padding = pads[0] if even else 0
        return self._timed(
            lambda w: torch.nn.functional.conv2d(x, w, bias, stride=shape["stride"], padding=padding), kernel
        )

    def product(self, shape: dict[str, int], kind: torch.dtype) -> Run:
        """Rows times a matrix: float16 with a bias, or int8 with int32 sums (`torch._int_mm`, which wants 17 rows)."""
        rows = shape["batch"] * shape["in_height"] * shape["in_width"]
        x, weights = self._random((rows, shape["in_channels"]), kind), (shape["in_channels"], shape["out_channels"])
        if kind == torch.int8:
            if rows <= 16:  # zeros behind the rows: what a user of it has to do
                x = torch.cat([x, torch.zeros((32 - rows, x.shape[1]), dtype=kind, device=self.device)])
            return self._timed(lambda w: torch._int_mm(x, w.t()), self._random(weights[::-1], kind))
        bias = self._random(weights[1:])
        return self._timed(lambda w: torch.nn.functional.linear(x, w, bias), self._random(weights[::-1], kind))

    def network(self, steps: list[dict[str, Any]], compiled: bool = False) -> Run:
        """The whole network, as it stands or compiled with a CUDA graph."""
        model = Network(steps).to(self.device, self.kind, memory_format=torch.channels_last).eval()
        first = steps[0]["shape"]
        x = self._random((first["batch"], first["in_channels"], first["in_height"], first["in_width"]))
        x = x.contiguous(memory_format=torch.channels_last)
        run = torch.compile(model, mode="reduce-overhead") if compiled else model
        with torch.inference_mode():
            for _ in range(3):
                run(x)
        return self._timed(lambda _: run(x), None)

    def _random(self, sizes: tuple[int, ...], kind: torch.dtype | None = None) -> torch.Tensor:
        if kind == torch.int8:
            return torch.randint(-127, 128, sizes, dtype=torch.int8, device=self.device)
        return torch.randn(sizes, device=self.device, dtype=self.kind) * 0.1

    def _timed(self, call: Callable[[Any], Any], weights: torch.Tensor | None) -> Run:
        """Weights that would stay in the second-level cache are copies by turns, as ours."""
        copies = [weights]
        if weights is not None and call(weights).numel() // call(weights).shape[1 if weights.ndim == 4 else -1] <= 64:
            size = weights.numel() * weights.element_size()
            copies += [weights.clone() for _ in range(min(COLD_BYTES // size, MOST_COPIES - 1))]
        turn = iter(range(1 << 62))

        @torch.inference_mode()
        def run() -> float:
            begin = self._now()
            for _ in range(CALLS):
                call(copies[next(turn) % len(copies)])
            return self._since(begin) / CALLS

        return run

    def _now(self) -> Any:
        if self.device != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _since(self, begin: Any) -> float:
        if self.device != "cuda":
            return (time.perf_counter() - begin) * 1e3
        end = self._now()
        end.synchronize()
        return begin.elapsed_time(end)


class Network(torch.nn.Module):
    """A network of the benchmark's steps, batch norms folded as there."""

    def __init__(self, steps: list[dict[str, Any]]) -> None:
        """steps: as `KlbBenchJobs` describes them."""
        super().__init__()
        self.steps = steps
        self.layers = torch.nn.ModuleList(_layer(step) for step in steps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The output of the last step."""
        tensors = {0: x}
        for step, layer in zip(self.steps, self.layers, strict=True):
            y = layer(tensors[step["input"]])
            if step["residual"] >= 0:
                y = y + tensors[step["residual"]]
            tensors[step["output"]] = torch.relu(y) if step["relu"] and step["kind"] == "conv" else y
        return tensors[self.steps[-1]["output"]]


def _layer(step: dict[str, Any]) -> torch.nn.Module:
    shape = step["shape"]
    kernel, stride = shape["kernel"], shape["stride"]
    pads = [shape[f"pad_{side}"] for side in ("left", "right", "top", "bottom")]
    even = len(set(pads)) == 1
    if step["kind"] == "average":
        return torch.nn.AdaptiveAvgPool2d(1)
    padding = pads[0] if even else 0
    layer: torch.nn.Module = (
        torch.nn.MaxPool2d(kernel, stride, padding)
        if step["kind"] == "max_pool"
        else torch.nn.Conv2d(shape["in_channels"], shape["out_channels"], kernel, stride, padding)
    )
    return layer if even else torch.nn.Sequential(torch.nn.ZeroPad2d(tuple(pads)), layer)
