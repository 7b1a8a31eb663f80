"""Pareto plot: forgetting against its cost, one point per method."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from encore.compare.leaderboard import Leaderboard, Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

COST = "retain NLL"
PANELS = (  # column, whether lower is better, axis label
    ("KL gold, forget", True, "KL(gold ‖ model), forget: down is nearer"),
    ("relearned", False, "NLL after relearning: up is harder to bring back"),
)
COLOURS = {"base": "#888888", "gold": "#b8860b", "gold2": "#b8860b"}
FIRST, OTHERS = "#c0392b", "#2c5f8a"
OFFSETS = ((6, 4), (6, -10), (-6, 4), (-6, -10), (6, 16), (6, -22), (-6, 16), (6, 28), (6, 40))  # of names, in points


def frontier(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the Pareto-optimal points (lower is better on both axes), in the order of x."""
    optimal = [
        name
        for name, (x, y) in points.items()
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values())
    ]
    return sorted(optimal, key=points.__getitem__)


def pareto_svg(board: Leaderboard) -> str | None:
    """One panel per measured column against the retain NLL, with the Pareto front as a line; None without data."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    panels = [panel for panel in PANELS if _points(board.lines, panel[0])]
    if not panels:
        return None
    with matplotlib.rc_context({"svg.hashsalt": "encore", "font.size": 10}):
        canvas = Figure(figsize=(7.6, 4.6 * len(panels)), layout="tight")
        FigureCanvasSVG(canvas)
        drawn = [canvas.add_subplot(len(panels), 1, number + 1) for number in range(len(panels))]
        for axes, (title, low, axis) in zip(drawn, panels, strict=True):
            _draw(axes, board, title, low, axis)
        canvas.draw_without_rendering()  # computes the layout, for the positions of the names
        for axes, (title, _, _) in zip(drawn, panels, strict=True):
            _name_all(axes, board, title)
        file = io.StringIO()
        canvas.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _draw(axes: Axes, board: Leaderboard, title: str, low: bool, axis: str) -> None:
    methods, references = _points(board.lines, title), _points(board.references, title)
    points = {**references, **methods}
    if all(x > 0 for x, _ in points.values()):
        axes.set_xscale("log")
    best = frontier({name: (x, y if low else -y) for name, (x, y) in methods.items()})
    axes.plot(*zip(*(methods[name] for name in best), strict=True), color=OTHERS, alpha=0.35, zorder=2)
    colours = _colours(board)
    axes.scatter(*zip(*points.values(), strict=True), color=[colours[name] for name in points], zorder=3)
    axes.margins(0.15)
    axes.set_xlabel(f"{COST}, nats/token: left is cheaper")
    axes.set_ylabel(axis)
    axes.grid(alpha=0.25)


def _name_all(axes: Axes, board: Leaderboard, title: str) -> None:
    taken: list[Bbox] = []
    colours = _colours(board)
    for name, point in _points([*board.lines, *board.references], title).items():
        _name(axes, name, point, colours[name], taken)


def _colours(board: Leaderboard) -> dict[str, str]:
    """Colour of each point: references, the first method, the others."""
    names = [_label(line) for line in board.lines]
    return dict.fromkeys(names, OTHERS) | dict.fromkeys(names[:1], FIRST) | COLOURS


def _label(line: Line) -> str:
    return line.label if line.requests == 1 else f"{line.label} ×{line.requests}"


def _points(lines: Sequence[Line], title: str) -> dict[str, tuple[float, float]]:
    points = {}
    for line in lines:
        x, y = line.median(COST), line.median(title)
        if x is not None and y is not None:
            points[_label(line)] = (x, y)
    return points


def _name(axes: Axes, name: str, at: tuple[float, float], colour: str, taken: list[Bbox]) -> None:
    """Label a point at the first offset that overlaps no other label."""
    for offset in OFFSETS:
        side = "left" if offset[0] > 0 else "right"
        text = axes.annotate(
            name, at, textcoords="offset points", xytext=offset, color=colour, ha=side, parse_math=False
        )
        box = text.get_window_extent()
        if offset == OFFSETS[-1] or not any(box.overlaps(other) for other in taken):
            break
        text.remove()
    taken.append(box)
