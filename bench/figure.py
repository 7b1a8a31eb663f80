"""The README's figure from what `bench/methods.py --json` wrote: `python bench/figure.py FILE docs/methods.svg`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

REFERENCES = {"base": "#888888", "gold": "#b8860b", "gold2": "#b8860b"}


def main(source: Path, target: Path) -> None:
    """How much of gold's resistance to relearning a method reaches, against what it costs retain."""
    rows = json.loads(source.read_text())
    matplotlib.rcParams.update({"svg.hashsalt": "encore", "font.size": 10})
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for row in rows:
        x, y = row["retain NLL"], row["relearned"]
        name = row["method"]
        colour = REFERENCES.get(name, "#c0392b" if name == "encore" else "#2c5f8a")
        axes.scatter(x, y, color=colour, zorder=3)
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(6, 4), color=colour)
    axes.set_xscale("log")
    axes.set_xlabel("retain NLL, nats/token (left is better)")
    axes.set_ylabel("forget NLL after 8 relearning steps (gold's is right)")
    axes.grid(alpha=0.25)
    figure.tight_layout()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
