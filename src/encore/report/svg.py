"""Figures as SVG, drawn by matplotlib where it is installed.

An SVG stands in the page as an image of its own, where no style of the page reaches it. Its colours are therefore
variables, defined in the SVG for a light and a dark page.
"""

from __future__ import annotations

import importlib.util
import io
import textwrap
from typing import Any

from encore.report.figures import Figure

# A stand-in that matplotlib writes -> its name, on a light page, on a dark one.
INK = ("#010101", "ink", "#3b4148", "#c9ced6")
GRID = ("#020202", "grid", "#d9dde2", "#3a4048")
ROLES = {
    "base": ("#030303", "base", "#7a828c", "#98a1ac"),
    "unlearned": ("#040404", "unlearned", "#c2410c", "#fb8b4b"),
    "gold": ("#050505", "gold", "#a67c00", "#e3b341"),
    "gold2": ("#060606", "gold2", "#c9a94a", "#a58a3c"),
    "control": ("#070707", "control", "#6d5bb5", "#a99af0"),
    "retain": ("#080808", "retain", "#1d6fa5", "#5fb0e8"),
    "holdout": ("#090909", "holdout", "#2f855a", "#5cc493"),
}
SIZE = (4.2, 3.7)  # inches: 302 points, about as many as the page of a narrow phone is wide in pixels
TEXT = 12.0  # points, which then are pixels
LABEL = 30  # characters of an axis' label, or a row of the legend, that fit in one line
MARKS = {"base": "s", "unlearned": "o", "gold": "D", "gold2": "d", "control": "^"}
PALETTE = [INK, GRID, *ROLES.values()]


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def svg(figure: Figure) -> str:
    """The figure as an SVG document, the same bytes every time."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "encore", "font.size": TEXT, "font.family": ["sans-serif"],
        "font.sans-serif": ["DejaVu Sans"], "text.color": INK[0], "axes.labelcolor": INK[0], "xtick.color": INK[0],
        "ytick.color": INK[0], "axes.edgecolor": GRID[0], "text.parse_math": False,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        canvas = Canvas(figsize=SIZE, layout="constrained")
        axes = canvas.add_subplot()
        axes.grid(color=GRID[0], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(textwrap.fill(figure.x, LABEL))
        axes.set_ylabel(textwrap.fill(figure.y, LABEL))
        for line in figure.lines:
            label = textwrap.shorten(line.label, LABEL, placeholder="…")
            stepped = figure.kind == "steps" and not line.dashed
            colour = ROLES.get(line.role, INK)[0]
            if figure.kind == "points":
                mark = MARKS.get(line.role, "o")
                axes.scatter(line.x, line.y, s=64, color=colour, marker=mark, label=label, zorder=3)
            else:
                axes.plot(
                    line.x, line.y, color=colour, label=label, linewidth=1.4 if line.dashed else 2.0,
                    linestyle=":" if line.dashed else "-", drawstyle="steps-post" if stepped else "default",
                )  # fmt: skip
        if figure.kind == "points":
            axes.margins(0.12)
        elif figure.kind == "lines":
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        columns = 2 if 2 * max(len(line.label) for line in figure.lines) <= LABEL else 1
        canvas.legend(frameon=False, loc="outside lower center", ncols=columns)  # below the curves, never over them
        file = io.StringIO()
        FigureCanvasSVG(canvas).print_svg(file, metadata={"Date": None, "Creator": None})
    return _coloured(file.getvalue())


def _coloured(drawn: str) -> str:
    """Stand-ins become variables; the white ground goes."""
    for stand_in, name, _, _ in PALETTE:
        drawn = drawn.replace(stand_in, f"var(--{name})")
    light = "".join(f"--{name}:{colour};" for _, name, colour, _ in PALETTE)
    dark = "".join(f"--{name}:{colour};" for _, name, _, colour in PALETTE)
    style = f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}text{{font-family:sans-serif}}"
    drawn = drawn.replace('<style type="text/css">', f'<style type="text/css">{style}', 1)
    return drawn.replace("fill: #ffffff", "fill: none")
