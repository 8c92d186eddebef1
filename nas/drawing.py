"""A found graph as a picture: pyramid levels as rows, cells from left to right in the order in which they merge."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.architecture import LEVELS, NUM_LEVELS, Architecture
from detector.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png")
NO_DATE = {"Date": None}  # equal pictures are equal files
SYMBOLS = {"sum": "+", "attention": "A"}
INK, FAINT, CHANGED, OUTPUT, GROUND = "#1f2933", "#c5ccd3", "#d1600a", "#cfe3f5", "#ffffff"
NODE_RADIUS = 0.27
CLEARANCE = 0.4  # between an edge and the centre of a node that it passes
BENDS = (0.0, 0.14, -0.14, 0.26, -0.26, 0.38, -0.38, 0.5, -0.5, 0.65, -0.65)
POINTS = 24  # of an edge, where overlaps are looked for

Point = NDArray[np.float64]


class Edge(NamedTuple):
    """What a cell reads. source and target count features; a leaf is added after the merge."""

    source: int
    target: int
    is_leaf: bool
    is_changed: bool


class Changes(NamedTuple):
    """How a graph differs from its prior: cells with another level or op, and inputs, as (cell, source)."""

    cells: frozenset[int]
    inputs: frozenset[tuple[int, int]]


def changes(architecture: Architecture, prior: Architecture | None) -> Changes:
    """Of a graph in the order closest to the prior's; none against a prior with another number of cells."""
    if prior is None or len(prior.cells) != len(architecture.cells):
        return Changes(frozenset(), frozenset())
    pairs = list(enumerate(zip(architecture.cells, prior.cells, strict=True)))
    cells = frozenset(i for i, (ours, theirs) in pairs if (ours.level, ours.op) != (theirs.level, theirs.op))
    inputs = frozenset((i, source) for i, (ours, theirs) in pairs for source in {*ours.inputs} - {*theirs.inputs})
    return Changes(cells, inputs)


def feature_names(architecture: Architecture) -> list[str]:
    """P3..P7 for the inputs, then #0, #1, ... for the cells."""
    return [f"P{level}" for level in LEVELS] + [f"#{i}" for i in range(len(architecture.cells))]


def text(architecture: Architecture, prior: Architecture | None = None) -> str:
    """For a terminal: outputs in brackets, what differs from the prior with a star."""
    graph = architecture.aligned_with(prior) if prior else architecture
    changed, names = changes(graph, prior), feature_names(graph)
    columns = []
    for index, cell in enumerate(graph.cells):
        symbol = SYMBOLS[cell.op] + ("*" if index in changed.cells else "")
        symbol = f"[{symbol}]" if index >= graph.num_intermediate else f" {symbol} "
        rows = [symbol if cell.level == level else "." for level in reversed(LEVELS)]
        inputs = [names[i] + ("*" if (index, i) in changed.inputs else "") for i in cell.inputs]
        leaves = "+".join(names[leaf] for leaf in graph.leaves_into(index))
        columns.append([f"#{index}", *rows, *inputs, leaves])
    heads = ["cell", *(f"P{level}  o" for level in reversed(LEVELS)), "inputs", "", "leaves"]
    width = max(5, *(len(entry) for column in columns for entry in column)) + 1
    lines = [f"{head:8}" + "".join(f"{column[row]:^{width}}" for column in columns) for row, head in enumerate(heads)]
    legend = "+ sum, A attention, [ ] output" + (", * not in the prior" if any(changed) else "")
    repeats = f", the whole {graph.repeats} times" if graph.repeats > 1 else ""
    return "\n".join(line.rstrip() for line in [*lines, "", legend + repeats])


def draw(architecture: Architecture, path: Path, prior: Architecture | None = None, title: str = "") -> None:
    """Write an SVG or PNG, by the suffix of path. Raises UserError if it cannot be written."""
    figure = picture(architecture, prior, title)
    try:
        figure.savefig(path, dpi=200, facecolor=GROUND, metadata=NO_DATE if path.suffix == ".svg" else None)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def svg(architecture: Architecture, prior: Architecture | None = None) -> str:
    """The picture as the text of an SVG file, whose letters stay letters."""
    from matplotlib import rc_context

    content = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": architecture.hash}):
        picture(architecture, prior).savefig(content, format="svg", facecolor=GROUND, metadata=NO_DATE)
    return content.getvalue()


def picture(architecture: Architecture, prior: Architecture | None = None, title: str = "") -> "Figure":
    """Every cell stands at its level, with + or A (attention) for its operation; outputs are filled; the leaves that
    are added to outputs are dashed. What differs from the prior is coloured.
    """
    from matplotlib.figure import Figure

    graph = architecture.aligned_with(prior) if prior else architecture
    changed = changes(graph, prior)
    places = positions(graph)
    columns = len(graph.cells) + 1
    figure = Figure(figsize=(0.75 * columns + 1.0, 4.1), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(-1.1, columns - 0.3), ylim=(-1.4, NUM_LEVELS - 0.4), aspect="equal")
    axes.axis("off")
    for row, level in enumerate(LEVELS):
        axes.plot([-0.4, columns - 0.4], [row, row], color=FAINT, lw=0.6, zorder=0)
        axes.text(-0.55, row, f"P{level}", ha="right", va="center", color=INK, size=11)
    _draw_edges(axes, graph, changed, places)
    _draw_nodes(axes, graph, changed, places)
    _draw_legend(axes, any(changed))
    if title:
        axes.set_title(title, color=INK, size=11)
    return figure


def check_picture(path: Path) -> None:
    """Raises UserError for a name that is no picture's, or in no folder."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--picture {path}: give a name that ends in {' or '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise UserError(f"--picture {path}: its folder {path.parent} does not exist")


def positions(architecture: Architecture) -> Point:
    """Where each feature stands, (features, 2): column by order, row by level. The inputs share column 0."""
    columns = [0] * NUM_LEVELS + list(range(1, len(architecture.cells) + 1))
    rows = [LEVELS.index(level) for level in architecture.feature_levels]
    return np.array(list(zip(columns, rows, strict=True)), float)


def edges(architecture: Architecture, changed: Changes) -> Iterator[Edge]:
    """What every cell reads, cell by cell."""
    for index, cell in enumerate(architecture.cells):
        target = NUM_LEVELS + index
        for source in cell.inputs:
            yield Edge(source, target, False, (index, source) in changed.inputs)
        for leaf in architecture.leaves_into(index):
            yield Edge(leaf, target, True, False)


def _draw_edges(axes: Any, graph: Architecture, changed: Changes, places: Point) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    drawn: list[Point] = []
    for edge in sorted(edges(graph, changed), key=lambda edge: _length(edge, places)):
        control = _control(edge, places, drawn)
        start, end = places[edge.source], places[edge.target]
        drawn.append(_curve(start, control, end))
        colour = CHANGED if edge.is_changed else INK
        begin, stop = (_border(centre, control, NODE_RADIUS + 0.02) for centre in (start, end))
        axes.add_patch(
            FancyArrowPatch(
                path=Curve([begin, control, stop], [Curve.MOVETO, Curve.CURVE3, Curve.CURVE3]),
                arrowstyle="-|>",
                mutation_scale=11,
                lw=2.2 if edge.is_changed else 1.2,
                ls=(0, (4, 3)) if edge.is_leaf else "-",
                color=colour,
                fill=False,
                zorder=2 if edge.is_changed else 1,
            )
        )


def _length(edge: Edge, places: Point) -> float:
    return float(np.linalg.norm(places[edge.target] - places[edge.source]))


def _control(edge: Edge, places: Point, drawn: list[Point]) -> Point:
    """The control point of the straightest curve that keeps clear of other nodes and of edges drawn before."""
    start, end = places[edge.source], places[edge.target]
    others = np.delete(places, [edge.source, edge.target], axis=0)
    across = np.array([start[1] - end[1], end[0] - start[0]])
    middle = (start + end) / 2

    def cost(bend: float) -> float:
        curve = _curve(start, middle + bend * across, end)
        blocked = int((_distances(curve, others).min(0) < CLEARANCE).sum())
        overlap = sum(int((_distances(curve[4:-4], other).min(1) < 0.06).sum()) for other in drawn)
        outside = int((curve[:, 1] < -0.7).any() or (curve[:, 1] > NUM_LEVELS - 0.5).any())
        return 10 * blocked + overlap + 6 * outside + 3 * abs(bend)

    best: Point = middle + min(BENDS, key=cost) * across
    return best


def _curve(start: Point, control: Point, end: Point) -> Point:
    """Points of a quadratic Bezier curve."""
    t = np.linspace(0, 1, POINTS)[:, None]
    points: Point = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
    return points


def _distances(ours: Point, theirs: Point) -> Point:
    gaps: Point = np.linalg.norm(ours[:, None] - theirs[None], axis=2)
    return gaps


def _border(centre: Point, towards: Point, radius: float) -> Point:
    """Where the edge of a node is met on the way to another point."""
    way = towards - centre
    place: Point = centre + radius * way / np.linalg.norm(way)
    return place


def _draw_nodes(axes: Any, graph: Architecture, changed: Changes, places: Point) -> None:
    from matplotlib.patches import Circle, FancyBboxPatch

    for x, y in places[:NUM_LEVELS]:
        side = 2 * NODE_RADIUS - 0.12
        axes.add_patch(
            FancyBboxPatch(
                (x - side / 2, y - side / 2), side, side, boxstyle="round,pad=0.06", fc=FAINT, ec=INK, lw=1, zorder=3
            )
        )
    for index, (cell, (x, y)) in enumerate(zip(graph.cells, places[NUM_LEVELS:], strict=True)):
        is_output, is_changed = index >= graph.num_intermediate, index in changed.cells
        axes.add_patch(
            Circle(
                (x, y),
                NODE_RADIUS,
                fc=OUTPUT if is_output else GROUND,
                ec=CHANGED if is_changed else INK,
                lw=2.4 if is_changed else 1.2,
                zorder=3,
            )
        )
        axes.text(x, y - 0.02, SYMBOLS[cell.op], ha="center", va="center", size=14, color=INK, zorder=4)
        axes.text(x, -0.62, f"#{index}", ha="center", va="center", size=9, color=INK)


def _draw_legend(axes: Any, has_changes: bool) -> None:
    from matplotlib.lines import Line2D

    def marker(face: str, edge: str = INK) -> Line2D:
        return Line2D([], [], marker="o", ls="", mfc=face, mec=edge, ms=10)

    entries = [(marker(OUTPUT), "output"), (marker(GROUND), "inner cell"), (Line2D([], [], color=INK, ls="--"), "leaf")]
    if has_changes:
        entries.append((Line2D([], [], color=CHANGED, lw=2.4), "not in the prior"))
    handles, names = zip(*entries, strict=True)
    axes.legend(
        handles,
        [*names],
        loc="lower left",
        bbox_to_anchor=(0.02, -0.02),
        ncols=len(entries),
        frameon=False,
        fontsize=9,
        title="+ sum,  A attention",
        title_fontsize=9,
        alignment="left",
    )
