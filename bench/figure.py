"""The README's figure from what `bench/methods.py --json` wrote: `python bench/figure.py FILE docs/methods.svg`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

REFERENCES = {"base": "#888888", "gold": "#b8860b", "gold2": "#b8860b"}
OFFSETS = ((6, 4), (6, -10), (-6, 4), (-6, -10), (6, 16), (6, -22), (-6, 16), (6, 28), (6, 40))  # of names, in points


def main(source: Path, target: Path) -> None:
    """How much of gold's resistance to relearning a method reaches, against what it costs retain."""
    rows = json.loads(source.read_text())
    matplotlib.rcParams.update({"svg.hashsalt": "encore", "font.size": 10})
    figure, axes = plt.subplots(figsize=(8, 4.8))
    axes.set_xscale("log")
    axes.set_xlim(min(row["retain NLL"] for row in rows) / 1.5, max(row["retain NLL"] for row in rows) * 3)
    colours = [REFERENCES.get(row["method"], "#c0392b" if row["method"] == "encore" else "#2c5f8a") for row in rows]
    axes.scatter([row["retain NLL"] for row in rows], [row["relearned"] for row in rows], color=colours, zorder=3)
    axes.set_ylim(-0.3, 1.08 * max(row["relearned"] for row in rows))
    axes.set_xlabel("retain NLL, nats/token (left is better)")
    axes.set_ylabel("forget NLL after 8 relearning steps (gold's is right)")
    axes.grid(alpha=0.25)
    figure.tight_layout()
    taken: list[Bbox] = []
    for row, colour in zip(rows, colours, strict=True):
        label(axes, row["method"], (row["retain NLL"], row["relearned"]), colour, taken)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


def label(axes: Axes, name: str, at: tuple[float, float], colour: str, taken: list[Bbox]) -> None:
    """Name a point where no other name stands yet: right of it, else left, above or below, ever farther off."""
    for offset in OFFSETS:
        side = "left" if offset[0] > 0 else "right"
        text = axes.annotate(name, at, textcoords="offset points", xytext=offset, color=colour, ha=side)
        box = text.get_window_extent()
        if offset == OFFSETS[-1] or not any(box.overlaps(other) for other in taken):
            break
        text.remove()
    taken.append(box)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
