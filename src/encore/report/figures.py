"""What is drawn in a report: curves and points as plain numbers, from which a table can be made as well."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from encore.api import Result
from encore.report.formatting import unit_text
from encore.report.run_files import RunFiles
from encore.results.targets import spec_of

NAMES = {
    "base": "before", "unlearned": "after", "gold": "gold", "gold2": "second gold", "control": "never trained",
}  # fmt: skip
KEPT = (  # parts of retain in a snapshot, their labels and roles
    ("memorised", "to keep, memorised", "retain"),
    ("not_memorised", "to keep, not memorised", "base"),
)


@dataclass(frozen=True)
class Line:
    """One curve, or one point. `role` gives it its colour."""

    label: str
    role: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    dashed: bool = False


@dataclass(frozen=True)
class Figure:
    """A figure and what a reader should see in it."""

    name: str
    title: str
    caption: str
    x: str
    y: str
    lines: tuple[Line, ...]
    kind: Literal["lines", "points", "steps"] = "lines"


def figures(files: RunFiles) -> list[Figure]:
    """All figures there are numbers for, in reading order."""
    candidates = [_pareto(files), _steps(files), _utility(files), *_curves(files), _roc(files)]
    return [figure for figure in candidates if figure is not None and figure.lines]


def _rows(files: RunFiles, metric: str, clips: str) -> dict[str, Result]:
    return {
        row.model: row for row in files.results if (row.metric, row.set) == (metric, clips) and row.value is not None
    }


def _value(row: Result | None) -> float | None:
    return row.value if row is not None else None


def _pareto(files: RunFiles) -> Figure | None:
    """Distance from a model that never learned the tracks, against what the rest lost."""
    kl, nll = _rows(files, "kl_gold", "forget"), _rows(files, "nll", "forget")
    retain, holdout = _rows(files, "nll", "retain"), _rows(files, "nll", "holdout")
    before = _value(retain.get("base"))
    if before is None or "unlearned" not in retain:
        return None
    far: dict[str, float | None]
    if "unlearned" in kl:
        far = {role: _value(row) for role, row in kl.items()} | ({"gold": 0.0} if "gold" in retain else {})
        axis, of = f"KL(gold ‖ model), forget tracks ({unit_text(kl['unlearned'].unit)})", "gold"
    else:
        held_out = _value(holdout.get("base"))
        if not held_out:
            return None
        far = {role: abs((_value(row) or 0.0) / held_out - 1) for role, row in nll.items()}
        axis, of = (
            f"distance of {files.loss}, forget tracks, from held-out music (share)",
            "held-out music",
        )
    lines = [
        Line(NAMES[role], role, (there,), (cost - before,))
        for role in NAMES
        if (there := far.get(role)) is not None and (cost := _value(retain.get(role))) is not None
    ]
    return Figure(
        "pareto", "Forgetting against its cost",
        f"Further left is closer to {of}; lower is less loss on the rest of the music. The lower left corner is best.",
        axis, f"rise of {files.loss} on music to keep ({unit_text(files.unit)})", tuple(lines), "points",
    )  # fmt: skip


def _steps(files: RunFiles) -> Figure | None:
    """Forget, retain and holdout during the run."""
    snapshots = _snapshots(files)
    if len(snapshots) < 2:
        return None
    lines = [
        _course("to forget", "unlearned", snapshots, lambda snapshot: _mean(snapshot["forget"].values())),
        *(_course(label, role, snapshots, _mean_of(part)) for part, label, role in KEPT),
        _course("held-out", "holdout", snapshots, lambda snapshot: snapshot.get("holdout")),
        _course("target NLL", "gold", snapshots, _mean_of("target_nll"), dashed=True),
    ]
    return Figure(
        "steps", "During the run",
        "The tracks to forget should rise to the level of held-out music; the tracks to keep should stay low.",
        "step", f"{files.loss} ({unit_text(files.unit)})", tuple(line for line in lines if line.x),
    )  # fmt: skip


def _utility(files: RunFiles) -> Figure | None:
    """What retain lost since base, alone: beside the forget tracks' course its changes can't be seen."""
    snapshots, lines = _snapshots(files), []
    for part, label, role in KEPT:
        course = _course(label, role, snapshots, _mean_of(part))
        if len(course.x) < 2:
            continue
        rises = tuple(y - course.y[0] for y in course.y)
        lines.append(replace(course, y=rises))
        # a snapshot's `harm` is what was lost in units of what the run allows to be lost
        harm = {snapshot["at"]: (snapshot.get("harm") or {}).get(part) or 0.0 for snapshot in snapshots}
        allowed = [rise / harm[at] for at, rise in zip(course.x, rises, strict=True) if harm[at] > 1e-6]
        if allowed:
            limit = (allowed[-1],) * len(rises)
            lines.append(replace(course, label=f"limit, {label.partition(', ')[2]}", y=limit, dashed=True))
    if not lines:
        return None
    return Figure(
        "utility", "Cost for the rest of the music",
        "The lines may rise during the run; what counts is where they end.",
        "step", f"rise of {files.loss} ({unit_text(files.unit)})", tuple(lines),
    )  # fmt: skip


def _mean_of(part: str) -> Callable[[Mapping[str, Any]], float | None]:
    """The mean over the tracks of a part of a snapshot; None where it has none, or one is not finite."""

    def value(snapshot: Mapping[str, Any]) -> float | None:
        known = list((snapshot.get(part) or {}).values())
        return _mean(known) if known and None not in known else None

    return value


def _snapshots(files: RunFiles) -> list[Mapping[str, Any]]:
    """What the engine saw of the model, the base first."""
    before = files.run["outcome"].get("before")
    return [*([{**before, "at": 0}] if before else []), *files.snapshots]


def _course(
    label: str, role: str, snapshots: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], Any],
    dashed: bool = False,
) -> Line:  # fmt: skip
    points = [(snapshot["at"], value(snapshot)) for snapshot in snapshots]
    known = [(float(at), float(y)) for at, y in points if y is not None]
    return Line(label, role, tuple(at for at, _ in known), tuple(y for _, y in known), dashed)


def _curves(files: RunFiles) -> Iterator[Figure]:
    """Every metric whose details have a curve: relearning, and the like."""
    groups: dict[tuple[str, str], list[Line]] = {}
    units: dict[tuple[str, str], str] = {}
    for row in files.results:
        curve = row.details.get("curve")
        if not isinstance(curve, (list, tuple)) or len(curve) < 2:
            continue
        after = row.details.get("after")  # how many steps each value is after; without it, one more each
        steps = after if isinstance(after, (list, tuple)) and len(after) == len(curve) else range(len(curve))
        known = [(float(x), float(y)) for x, y in zip(steps, curve, strict=True) if isinstance(y, (int, float))]
        line = Line(NAMES.get(row.model, row.model), row.model, tuple(x for x, _ in known), tuple(y for _, y in known))
        groups.setdefault((row.metric, row.set), []).append(line)
        units[row.metric, row.set] = row.unit
    for (metric, clips), lines in groups.items():
        spec = spec_of(metric, clips)
        title = spec.plain if spec is not None and spec.plain else f"{metric}, {clips}"
        says = "A model that only suppresses the tracks drops at once; one without them learns as slowly as gold."
        yield Figure(
            f"curve-{metric}-{clips}", title, says if "relearn" in metric else "",
            "training step", f"{files.loss} ({unit_text(units[metric, clips])})", tuple(sorted(lines, key=_order)),
        )  # fmt: skip


def _roc(files: RunFiles) -> Figure | None:
    """Likelihood as a membership test: forget tracks against held-out tracks."""
    forget, held_out = _rows(files, "nll", "forget"), _rows(files, "nll", "holdout")
    lines = []
    for role in ("base", "unlearned", "gold"):
        if role not in forget or role not in held_out:
            continue
        members, others = _finite(forget[role].per_track.values()), _finite(held_out[role].per_track.values())
        if len(members) < 2 or len(others) < 2:
            continue
        limits = sorted({*members, *others})
        wrong, right = _shares_up_to(others, limits), _shares_up_to(members, limits)
        lines.append(Line(NAMES[role], role, (0.0, *wrong), (0.0, *right)))
    if not lines:
        return None
    lines.append(Line("guessing", "guess", (0.0, 1.0), (0.0, 1.0), dashed=True))
    return Figure(
        "roc", "Can an outsider tell that the tracks were trained on?",
        "Near the dotted line no one can tell; towards the upper left corner the model reveals them.",
        "false-positive rate (held-out tracks)", "true-positive rate (forget tracks)", tuple(lines), "steps",
    )  # fmt: skip


def _shares_up_to(values: Sequence[float], limits: Sequence[float]) -> Iterator[float]:
    """The share of the values that are not above each of the limits."""
    ordered = sorted(values)
    return (bisect_right(ordered, limit) / len(ordered) for limit in limits)


def _order(line: Line) -> int:
    return list(NAMES).index(line.role) if line.role in NAMES else len(NAMES)


def _finite(values: Any) -> list[float]:
    return [float(value) for value in values if value is not None]


def _mean(values: Any) -> float | None:
    known: Sequence[float] = _finite(values)
    return sum(known) / len(known) if known else None
