"""Graphs of boxes and arrows, laid out and drawn by Graphviz, which pygraphviz brings along."""

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

FORMATS = ("svg", "png", "pdf")
_LETTERS = 44  # of a line
_FONT = "sans-serif"


class Box(NamedTuple):
    """name: unique.   lines: of text, the first one bold.   colour: of the inside.   marked: whether it has a thick edge."""

    name: str
    lines: tuple[str, ...]
    colour: str
    marked: bool = False


def draw_graph(
    title: str, boxes: Sequence[Box], arrows: Sequence[tuple[str, str]], legend: Mapping[str, str], note: str, form: str
) -> bytes:
    """The picture: data flow down. legend: what a colour means -> colour.   note: under it.   form: one of `FORMATS`.

    Raises ImportError, with the remedy, without pygraphviz.
    """
    try:
        import pygraphviz
    except ImportError as error:
        raise ImportError("Graphs are drawn by pygraphviz: pip install 'keras_lowbit[report]'.") from error
    graph = pygraphviz.AGraph(directed=True, strict=False)
    graph.graph_attr.update(
        rankdir="TB", ranksep=0.35, nodesep=0.25, fontname=_FONT, fontsize=11, labelloc="t", pad=0.2
    )
    graph.graph_attr["label"] = _legend(title, legend, note)
    graph.node_attr.update(
        shape="box", style="rounded,filled", fontname=_FONT, fontsize=11, margin="0.15,0.08", color="#333333"
    )
    graph.edge_attr.update(color="#555555", arrowsize=0.7)
    places = {box.name: f"box{place}" for place, box in enumerate(boxes)}  # Graphviz's names have signs of their own
    for box in boxes:
        width = 3 if box.marked else 1
        tip = " | ".join(box.lines)
        graph.add_node(places[box.name], label=_label(box.lines), fillcolor=box.colour, penwidth=width, tooltip=tip)
    for source, target in arrows:
        graph.add_edge(places[source], places[target])
    return graph.draw(format=form, prog="dot")


def _label(lines: Sequence[str]) -> str:
    first, *rest = ("<br/>".join(map(escape, textwrap.wrap(line, _LETTERS) or [""])) for line in lines)
    return f"<{'<br/>'.join([f'<b>{first}</b>', *rest])}>"


def _legend(title: str, legend: Mapping[str, str], note: str) -> str:
    """Under the title a row of coloured cells, the last of which says what a thick edge is, and the note."""
    whole = f'colspan="{len(legend) + 1}"'
    cells = "".join(f'<td bgcolor="{colour}" border="1">{escape(meaning)}</td>' for meaning, colour in legend.items())
    rows = (
        f"<td {whole}><b>{escape(title)}</b></td>",
        f'{cells}<td border="3">output</td>',
        f"<td {whole}>{escape(note)}</td>",
    )
    return f'<<table border="0" cellspacing="4" cellpadding="4">{"".join(f"<tr>{row}</tr>" for row in rows)}</table>>'
