"""The page of a report: Jinja2 and a template, with small pictures as SVG that follow light and dark."""

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

TEMPLATE = "page.html.j2"
_FEW = 40  # codes that are drawn one by one
_WIDTH, _HEIGHT = 240, 80  # of a histogram
_BYTES = (("MB", 1e6), ("kB", 1e3))


def check_jinja() -> None:
    """ImportError, with the remedy, without Jinja2."""
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise ImportError("The page of a report needs Jinja2: pip install 'keras_lowbit[report]'.") from error


def html(contents: Mapping[str, Any]) -> str:
    """The page of `Report.contents`."""
    check_jinja()
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    def breakable(name: str) -> str:
        """A name whose lines end behind a sign rather than inside of a word."""
        return Markup(re.sub(r"([/_.])", r"\1<wbr>", str(escape(name))))

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "bytes": _bytes,
        "number": _number,
        "percent": _percent,
        "decibels": _decibels,
        "breakable": breakable,
    }
    environment.globals |= {"histogram": histogram, "interval": interval}
    source = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(contents)


def histogram(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the picture of a row of `weights` is made of: bars of float weights, stems of codes as (x, y, width of line).

    Both heights are relative to the largest of their kind. Stems for grids of few codes only.
    """
    low, high = row["edges"][0], row["edges"][-1]
    wide, most = _WIDTH / len(row["counts"]), max(row["counts"]) or 1
    bars = "".join(
        f"M{place * wide:.1f} {_HEIGHT}v{-_HEIGHT * count / most:.2f}h{wide * 0.9:.2f}V{_HEIGHT}z"
        for place, count in enumerate(row["counts"])
        if count
    )
    stems = []
    if len(row["codes"]) <= _FEW:
        largest = max(row["code_counts"])
        for code, count in zip(row["codes"], row["code_counts"], strict=True):
            x = _WIDTH * (code - low) / (high - low)
            stems.append((round(x, 1), round(_HEIGHT * (1 - count / largest), 1)))
    return {"width": _WIDTH, "height": _HEIGHT, "bars": bars, "stems": stems}


def interval(row: Mapping[str, Any]) -> dict[str, float] | None:
    """Ends in percent of a common axis: of the range, of what was seen, and where 0 lies; None for an unknown range."""
    if row["minimum"] is None:
        return None
    names = [name for name in ("minimum", "maximum", "seen_minimum", "seen_maximum") if row[name] is not None]
    values = [*(row[name] for name in names), 0.0]
    low, width = min(values), (max(values) - min(values)) or 1.0
    return {name: round(100 * (value - low) / width, 2) for name, value in zip([*names, "zero"], values, strict=True)}


def _bytes(size: float | None) -> str:
    if size is None:
        return "–"
    unit, factor = next(((unit, factor) for unit, factor in _BYTES if size >= factor), ("B", 1))
    return f"{size / factor:,.1f} {unit}" if factor > 1 else f"{size:,.0f} B"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else _said(value)


def _percent(share: float | None) -> str:
    """Never "0 %" for a little, nor "100 %" for nearly all."""
    if share is None or share in (0, 1):
        return "–" if share is None else f"{100 * share:.0f} %"
    percent = 100 * share
    if percent < 0.1:
        return f"{percent:.2g} %"
    return f"{percent:.2f} %" if percent <= 99.99 else f"{min(percent, 99.9999):.4f} %"


def _decibels(ratio: Any) -> str:
    return "equal" if ratio == "inf" else f"{ratio:.1f} dB" if isinstance(ratio, float) else _said(ratio)


def _said(value: Any) -> str:
    words: Sequence[tuple[Any, str]] = ((None, "–"), (True, "yes"), (False, "no"))
    return next((word for known, word in words if value is known), str(value))
