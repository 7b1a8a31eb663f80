"""The page's first picture as plain numbers: each forget track before, after, and in a model that never learned it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from encore.api import Result
from encore.metrics.memorization.verbatim import MATCH
from encore.report.formatting import number, percent, unit_text
from encore.report.run_files import RunFiles

Shares = Mapping[str, float]  # track -> figure


@dataclass(frozen=True)
class Mark:
    """One model's figure of one track. `x`: where on the axis, in percent of its length. `text`: the figure."""

    role: str
    name: str
    x: float
    text: str


@dataclass(frozen=True)
class Strip:
    """One track: its marks on one axis. `failed`: the model reproduces it, and gold does not."""

    track: str
    marks: tuple[Mark, ...]
    failed: bool = False

    @property
    def text(self) -> str:
        """All of it in words, for who can't see it."""
        return ", ".join(f"{mark.name} {mark.text}" for mark in self.marks)


@dataclass(frozen=True)
class Picture:
    """Strips under one axis.

    Args:
        title, caption: what it shows, and what a reader should look for.
        left, right: what the ends of the axis stand for.
        names: role -> what the legend calls it.
        strips: one a track, the worst first.
        limit: where on the axis, in percent, the test's threshold is; None without one.
    """

    title: str
    caption: str
    left: str
    right: str
    names: Mapping[str, str]
    strips: tuple[Strip, ...]
    limit: float | None = None


def pictures(files: RunFiles) -> list[Picture]:
    """How much of each track is reproduced, and how well each is predicted: those there are figures for."""
    return [picture for picture in (_reproduction(files), _prediction(files)) if picture is not None]


# -------------------------------------------------------------------------------------------------------- reproduction


def reproduces(row: Result) -> bool:
    """Whether a row counts verbatim reproductions, by whatever prompt or attack: a share of tracks.

    `per_track` then has the share of each track's tokens, which counts from `MATCH` on.
    """
    verbatim = "verbatim" in row.metric or row.metric.endswith("_generation")
    return row.unit == "share" and verbatim and not row.metric.endswith(("_codes", "_exact"))


def reproduced(results: Sequence[Result]) -> dict[str, list[str]]:
    """Forget tracks that the unlearned model reproduces and gold, under the same test, does not -> those tests."""
    rows = {(row.metric, row.model): row for row in results if row.set == "forget" and reproduces(row)}
    tests: dict[str, list[str]] = {}
    for (metric, model), row in rows.items():
        gold = rows.get((metric, "gold"))
        for track, share in row.per_track.items() if model == "unlearned" else ():
            if (share or 0.0) >= MATCH and not (gold and (gold.per_track.get(track) or 0.0) >= MATCH):
                tests.setdefault(track, []).append(metric)
    return tests


def best_shares(results: Sequence[Result], role: str, clips: str = "forget") -> dict[str, float]:
    """Share of each track's tokens that one role reproduces, under the prompt or attack that recovers most of it."""
    best: dict[str, float] = {}
    for row in results:
        if (row.model, row.set) == (role, clips) and reproduces(row):
            for track, share in _known(row.per_track).items():
                best[track] = max(share, best.get(track, 0.0))
    return best


def worst_first(files: RunFiles) -> list[str]:
    """Ids of the forget tracks, those first that the model still reproduces, then by how near each is to being known.

    A track is as near as the share of it that is reproduced beyond gold's, or as its NLL is below gold's, whichever is
    more; 1 is fully known. Held-out music takes gold's place where there is none.
    """
    failed, nll = reproduced(files.results), nll_shares(files)
    shares, gold = best_shares(files.results, "unlearned"), _unlearnt_shares(files)[1]

    def known(track: str) -> float:
        return max(shares.get(track, 0.0) - gold.get(track, 0.0), 1 - nll.get(track, 1.0))

    tracks = sorted({str(entry["id"]) for entry in files.request["forget"]})
    return sorted(tracks, key=lambda track: (track not in failed, -known(track)))


def nll_shares(files: RunFiles) -> dict[str, float]:
    """Each forget track's NLL relative to gold's; where there is no gold, to the level of held-out music."""
    gold, level = _nll(files, "gold"), files.run["outcome"].get("holdout_nll")
    unlearned = _nll(files, "unlearned")
    return {track: nll / reference for track, nll in unlearned.items() if (reference := gold.get(track) or level)}


def _unlearnt_shares(files: RunFiles) -> tuple[str, dict[str, float]]:
    """What a model that never learned a track reproduces of it: gold, or else the mean of held-out tracks."""
    gold = best_shares(files.results, "gold")
    if gold:
        return "gold", gold
    others = best_shares(files.results, "base", "holdout") or best_shares(files.results, "unlearned", "holdout")
    return "held-out music", _everywhere(others, files)


def _reproduction(files: RunFiles) -> Picture | None:
    level, gold = _unlearnt_shares(files)
    roles = {**{role: best_shares(files.results, role) for role in ("base", "unlearned")}, "gold": gold}
    if not roles["unlearned"]:
        return None
    failed = reproduced(files.results)
    return Picture(
        "How much of each track the model reproduces",
        f"Share of tokens that match the track, under the prompt or attack that recovers most. From {percent(MATCH)} "
        "on (dashed line) the track counts as reproduced.",
        "nothing", "all of it", _legend(roles, level),
        tuple(_strips(files, roles, level, failed, largest=1.0, show=percent)), 100 * MATCH,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- prediction


def _prediction(files: RunFiles) -> Picture | None:
    roles = {role: _nll(files, role) for role in ("base", "unlearned", "gold")}
    if not roles["unlearned"]:
        return None
    level = "gold"
    if not roles["gold"]:
        level, unlearnt = "held-out music", files.run["outcome"].get("holdout_nll")
        roles["gold"] = _everywhere({"": float(unlearnt)} if unlearnt is not None else {}, files)
    unit = f" in {unit_text(files.unit)}" if files.unit != files.loss else ""
    largest = max(value for figures in roles.values() for value in figures.values())
    return Picture(
        "How well the model predicts each track",
        f"{files.loss}{unit}. Far left: the model knows the track. Far right of the diamond: it "
        "predicts it worse than a model that never learnt it, which can be detected too.",
        "0: knows it", f"{number(largest)}: does not", _legend(roles, level),
        tuple(_strips(files, roles, level, {}, largest=largest, show=number)),
    )  # fmt: skip


def _nll(files: RunFiles, role: str) -> dict[str, float]:
    rows = [row for row in files.results if (row.metric, row.model, row.set) == ("nll", role, "forget")]
    return _known(rows[0].per_track) if rows else {}


# --------------------------------------------------------------------------------------------------------------- parts


def _strips(
    files: RunFiles,
    roles: Mapping[str, Shares],
    level: str,
    failed: Container[str],
    *,
    largest: float,
    show: Callable[[float], str],
) -> Iterator[Strip]:
    titles = {str(entry["id"]): str(entry.get("title") or entry["id"]) for entry in files.request["forget"]}
    names = _names(roles, level)

    def mark(role: str, name: str, value: float) -> Mark:
        share = min(max(value / largest, 0.0), 1.0) if largest > 0 else 0.0
        return Mark(role, name, round(100 * share, 1), show(value))

    for track in worst_first(files):
        marks = tuple(mark(role, name, roles[role][track]) for role, name in names.items() if track in roles[role])
        if marks:
            yield Strip(titles[track], marks, track in failed)


def _names(roles: Mapping[str, Shares], level: str) -> dict[str, str]:
    names = {"base": "before", "unlearned": "after", "gold": level}
    return {role: names[role] for role in roles if roles[role]}


def _legend(roles: Mapping[str, Shares], level: str) -> dict[str, str]:
    texts = {"gold": "had it never learned them (gold)", "held-out music": "tracks it never learned (held-out music)"}
    return {role: texts.get(name, name) for role, name in _names(roles, level).items()}


def _everywhere(figures: Shares, files: RunFiles) -> dict[str, float]:
    """The mean of other tracks' figures, as that of each forget track."""
    if not figures:
        return {}
    mean = sum(figures.values()) / len(figures)
    return {str(entry["id"]): mean for entry in files.request["forget"]}


def _known(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {track: float(value) for track, value in figures.items() if value is not None}
