"""Pictures for people. `graph` draws an integer graph as an SVG file, with nothing but the standard library."""

from collections.abc import Iterable
from html import escape

from keras_lowbit.deploy.graph import IntegerGraph, Node, Tensor
from keras_lowbit.deploy.graph.operations import operation_of
from keras_lowbit.deploy.graph.operations.operation import KEEP
from keras_lowbit.files import FilePath, atomic_write, name_of

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 210, 58, 24, 34, 20
LETTERS = 34  # that fit into a box
# What a box does -> its colour. What runs in float stands out: it is what one looks for.
COLOURS = {
    "input": "#e8e8e8",
    "weights": "#cfe2ff",
    "float": "#ffd8a8",
    "moves": "#f5f5f5",
    "computes": "#d8f5d8",
}


def graph(graph: IntegerGraph, path: FilePath) -> None:
    """Draw an integer graph into an SVG file: data flows down, what runs in float is orange.

    Each box has the operation, its name, and shape, scale and zero point of what it gives; for weights, the shape and
    the smallest and largest code.
    path: ends in .svg; any browser shows it.   Raises ValueError for another ending, OSError if it cannot be written.

    >>> klb.plot.graph(klb.deploy.lower(model), "model.svg")
    """
    if not name_of(path).lower().endswith(".svg"):
        raise ValueError(f"plot.graph writes SVG, got path {name_of(path)!r}. Give one that ends in .svg.")
    atomic_write(path, svg(graph).encode())


def svg(graph: IntegerGraph) -> str:
    """The text of the SVG picture."""
    places = _places(graph)
    columns = 1 + max(column for column, _ in places.values())
    rows = 1 + max(row for _, row in places.values())
    width = 2 * MARGIN + columns * (WIDTH + GAP_X) - GAP_X
    height = 2 * MARGIN + rows * (HEIGHT + GAP_Y) - GAP_Y
    body = [*_arrows(graph, places), *_boxes(graph, places)]
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
            f"<title>{escape(str(graph.metadata.get('name', 'integer graph')))}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>',
            '<rect width="100%" height="100%" fill="white"/>',
            *body,
            "</svg>\n",
        )
    )


def _places(graph: IntegerGraph) -> dict[str, tuple[int, int]]:
    """Box name -> (column, row): one row below the lowest of its inputs, columns in running order."""
    maker = {output: node.name for node in graph.nodes for output in node.outputs}
    rows = dict.fromkeys((f"input {name}" for name in graph.inputs), 0)
    rows |= {f"node {node.name}": 0 for node in graph.nodes}
    for node in graph.nodes:
        above = [rows[_source(name, maker)] for name in node.inputs if not graph.tensors[name].is_constant]
        rows[f"node {node.name}"] = 1 + max(above, default=0)
    taken: dict[int, int] = {}
    places = {}
    for box, row in rows.items():
        places[box] = (taken.get(row, 0), row)
        taken[row] = taken.get(row, 0) + 1
    return places


def _source(tensor: str, maker: dict[str, str]) -> str:
    return f"node {maker[tensor]}" if tensor in maker else f"input {tensor}"


def _corner(place: tuple[int, int]) -> tuple[int, int]:
    return MARGIN + place[0] * (WIDTH + GAP_X), MARGIN + place[1] * (HEIGHT + GAP_Y)


def _arrows(graph: IntegerGraph, places: dict[str, tuple[int, int]]) -> Iterable[str]:
    maker = {output: node.name for node in graph.nodes for output in node.outputs}
    for node in graph.nodes:
        for name in node.inputs:
            if graph.tensors[name].is_constant:
                continue
            (x0, y0), (x1, y1) = _corner(places[_source(name, maker)]), _corner(places[f"node {node.name}"])
            x0, y0, x1 = x0 + WIDTH // 2, y0 + HEIGHT, x1 + WIDTH // 2
            yield (
                f'<path d="M{x0} {y0}C{x0} {y0 + GAP_Y} {x1} {y1 - GAP_Y} {x1} {y1}" fill="none" stroke="#555" '
                'marker-end="url(#tip)"/>'
            )


def _boxes(graph: IntegerGraph, places: dict[str, tuple[int, int]]) -> Iterable[str]:
    for name in graph.inputs:
        yield _box(_corner(places[f"input {name}"]), "input", ["input", name, _grid(graph.tensors[name])], False)
    for node in graph.nodes:
        lines = [_operation(graph, node), node.name, _grid(graph.tensors[node.outputs[0]])]
        last = any(name in graph.outputs for name in node.outputs)
        yield _box(_corner(places[f"node {node.name}"]), _colour(node), lines, last)


def _colour(node: Node) -> str:
    operation = operation_of(node)
    if operation.weighted:
        return "weights"
    if "int8" not in operation.writes:
        return "float"
    return "moves" if operation.range == KEEP or node.op == "quantize" else "computes"


def _operation(graph: IntegerGraph, node: Node) -> str:
    if not operation_of(node).weighted:
        return node.op
    kernel = graph.tensors[node.inputs[1]]
    shape = "x".join(map(str, kernel.shape))
    return node.op if kernel.data is None else f"{node.op} {shape} [{kernel.data.min()},{kernel.data.max()}]"


def _grid(tensor: Tensor) -> str:
    shape = "x".join(str(size) for size in tensor.shape[1:])
    return f"{shape} float32" if tensor.scale is None else f"{shape}  {tensor.range.scale:.4g} ({tensor.zero_point})"


def _box(corner: tuple[int, int], colour: str, lines: list[str], output: bool) -> str:
    (x, y), whole = corner, " | ".join(lines)
    texts = "".join(_text(x + 8, y + 17 + 16 * i, line, bold=i == 0) for i, line in enumerate(lines))
    return (
        f'<g><title>{escape(whole)}</title><rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" '
        f'fill="{COLOURS[colour]}" stroke="#333" stroke-width="{3 if output else 1}"/>{texts}</g>'
    )


def _text(x: int, y: int, line: str, bold: bool) -> str:
    weight = ' font-weight="bold"' if bold else ""
    shown = line if len(line) <= LETTERS else f"{line[: LETTERS - 1]}…"
    return f'<text x="{x}" y="{y}"{weight}>{escape(shown)}</text>'
