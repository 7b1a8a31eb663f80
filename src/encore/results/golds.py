"""Golds that know the tracks themselves, and with which nothing can be compared."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from encore.api import Result

Rows = Mapping[tuple[str, str, str], Result]  # metric, model, set -> row
NAMED = 5  # tracks that a sentence names at most


def golds_that_know(rows: Rows) -> dict[str, str]:
    """The golds that have memorised forget tracks themselves, beside which every model that remembers looks good.

    Continuing one second verbatim shows it only where the NLL is not known: any model continues a simple pattern.

    Args:
        rows: metric, model, set -> row.

    Returns:
        "gold", "gold2" -> what shows it, as the end of a sentence.
    """
    found = {}
    for gold in ("gold", "gold2"):
        nll = rows.get(("nll", gold, "forget"))
        signs = [f"has the NLL of memorised tracks on {listed(known)}"] if (known := memorised(nll)) else []
        tests = {"verbatim_caption": "from caption"}
        if nll is None or nll.value is None:
            tests["verbatim"] = "from 1 s"
        for metric, how in tests.items():
            row = rows.get((metric, gold, "forget"))
            if row is not None and row.value is not None and row.value > held_out(row, rows):
                signs.append(f"generates {round(row.value * row.n)} of {row.n} forget tracks verbatim {how}")
        if signs:
            found[gold] = " and ".join(signs)
    return found


def memorised(row: Result | None) -> list[str]:
    """The memorised tracks that a row of NLLs names."""
    known = row.details.get("memorised") if row is not None else None
    return [str(track) for track in known] if isinstance(known, (list, tuple)) else []


def held_out(row: Result, rows: Rows) -> float:
    """The row's figure on held-out tracks, base's where the model's is missing; 0 without any."""
    found = (rows.get((row.metric, model, "holdout")) for model in (row.model, "base"))
    return next((other.value for other in found if other is not None and other.value is not None), 0.0)


def listed(tracks: Collection[str]) -> str:
    """The first of the tracks, and how many more there are."""
    return ", ".join(sorted(tracks)[:NAMED]) + (f" and {len(tracks) - NAMED} more" if len(tracks) > NAMED else "")
