"""Figures that belong to nobody: no window, no global state, nothing to close."""

import io
import os
from functools import partial
from typing import Any

from keras_lowbit.files import FilePath, atomic_write, check_writable, name_of

FLOAT, CODE, RANGE, QUIET = "#9db8d9", "#c2410c", "#4a78b5", "#8a939d"
GOOD, FAIR, POOR, BAD = "#5aa469", "#d9b430", "#e0893f", "#c9463d"


def figure(width: float, height: float, extra: str = "report") -> Any:
    """An empty matplotlib figure, sizes in inches. ImportError, with the remedy, without matplotlib. extra: that brings it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"Pictures need matplotlib: pip install 'keras_lowbit[{extra}]'.") from error
    made: Any = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    made._repr_png_ = partial(_png, made)  # IPython asks for it; by itself it shows the figures of pyplot alone
    return made


def _png(made: Any) -> bytes:
    content = io.BytesIO()
    made.savefig(content, format="png")
    return content.getvalue()


def check_picture(path: FilePath) -> None:
    """Before work that takes long: ImportError without matplotlib, ValueError for an ending that it does not draw, OSError for
    a path that cannot be written.
    """
    kinds = figure(1, 1).canvas.get_supported_filetypes()
    if (kind := os.path.splitext(os.fsdecode(path))[1][1:].lower()) not in kinds:
        raise ValueError(f"{name_of(path)!r} ends in {kind!r}: give the picture one of the endings {', '.join(kinds)}.")
    check_writable(path)


def save(drawn: Any, path: FilePath) -> None:
    """Write a figure; the file appears whole or not at all. Raises what `check_picture` raises."""
    check_picture(path)
    content = io.BytesIO()
    drawn.savefig(content, format=os.path.splitext(os.fsdecode(path))[1][1:].lower())
    atomic_write(path, content.getvalue())


def rows_height(rows: int) -> float:
    """Inches for a chart with so many rows of text."""
    return 1.2 + 0.24 * rows


def shortened(name: str, letters: int = 40) -> str:
    """A name that fits beside a chart: its end tells most."""
    return name if len(name) <= letters else f"…{name[1 - letters :]}"
