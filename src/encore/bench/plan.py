"""What a bench compares: methods × seeds (× how many requests the tracks come in), all on the same model and tracks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pydantic

from encore import __version__, assets, plugins
from encore.api import Method, Role
from encore.audio.tracks import Track
from encore.errors import InputError, UsageError
from encore.runs import shapes
from encore.runs.documents import refuse_other_run
from encore.runs.embedders import parsed
from encore.runs.environment import pick_device, pick_precision
from encore.runs.evaluate_run import Asked
from encore.runs.evaluation_json import NAME as EVALUATION
from encore.runs.forget import Request, choose
from encore.runs.metrics_json import NAME as METRICS
from encore.runs.models import model_name, model_sha256
from encore.runs.open_run import embedded_golds
from encore.runs.select import Tracks
from encore.runs.store import LOCK, OWNER, read_json, write_json, writing
from encore.settings import resolve_options

SCHEMA = 1
PLAN = "bench.json"
BOARD = ("leaderboard.md", "leaderboard.csv", "leaderboard.json", "pareto.svg")


class Plan(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A bench, as `bench.json` keeps it; folders and files are absolute paths.

    Args:
        methods: name -> its options that were given, as "key=value". A name may stand for a variant of a method, which
            is named after an @: "npo@long".
        seeds: of the runs. requests: in how many requests, one after another, the tracks are sent.
        tracks: the list; None for the embedded catalogue's own.
        model, …, precision: as in `encore.runs.forget.Request`.
        golds: "gold" and "gold2"; where there are none, the embedded ones where they fit.
        metrics, …, eval_seed: how every run is measured; see `encore.runs.evaluate_run.Asked`.
    """

    methods: dict[str, tuple[str, ...]]
    seeds: tuple[pydantic.NonNegativeInt, ...]
    requests: tuple[pydantic.PositiveInt, ...] = (1,)
    tracks: str | None = None
    model: str = "tiny"
    revision: str | None = None
    backend: str = "musicgen"
    catalog: str | None = None
    retain: str | None = None
    holdout: str | None = None
    roots: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "auto"
    offline: bool = False
    golds: dict[str, str] = pydantic.Field(default_factory=dict)
    metrics: tuple[str, ...] | None = None
    embedder: str = ""
    draws: pydantic.PositiveInt = 1
    full: bool = False
    force: bool = False
    eval_seed: pydantic.NonNegativeInt = 0

    @property
    def cells(self) -> list[Cell]:
        """Seeds outermost, so that a bench that is stopped early has every method."""
        return [
            Cell(method, seed, requests) for seed in self.seeds for requests in self.requests for method in self.methods
        ]

    def request(self, cell: Cell, out: Path) -> Request:
        """What `encore forget` is asked for in a cell of the bench in folder `out`."""
        return Request(
            tracks=Path(self.tracks) if self.tracks else assets.FORGET, out=out / cell.name, model=self.model,
            revision=self.revision, offline=self.offline, backend=self.backend,
            catalog=Path(self.catalog) if self.catalog else None, retain=self.retain,
            holdout=Path(self.holdout) if self.holdout else None, roots=tuple(map(Path, self.roots)), seed=cell.seed,
            device=self.device, precision=self.precision,
        )  # fmt: skip

    def method(self, name: str) -> Method:
        """The method with its options.

        Raises:
            UnknownNameError, MissingExtraError: there is no such method here. UsageError: it has no such option.
        """
        chosen = plugins.methods().resolve(method_of(name))
        return chosen(resolve_options(chosen.Options, assignments=self.methods[name]).options)

    def asked(self, forget: tuple[Track, ...]) -> Asked:
        """How a run is measured, with the embedded golds named where the tracks are those they lack."""
        golds: dict[Role, str] = {"gold": self.golds["gold"]} if "gold" in self.golds else {}
        golds |= {"gold2": self.golds["gold2"]} if "gold2" in self.golds else {}
        golds = golds or embedded_golds(self.model, forget)
        return Asked(
            self.metrics, self.full, self.embedder, self.eval_seed, self.force, golds, draws=self.draws
        )  # fmt: skip


def method_of(name: str) -> str:
    """The method that a name of a bench stands for: "npo" of "npo@long".

    Raises:
        UsageError: the variant's name is not one that a folder may have.
    """
    method, at, variant = name.partition("@")
    if at and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", variant):
        raise UsageError(f"{name!r} can't name a variant of {method!r}", "use letters, digits, dashes: METHOD@VARIANT")
    return method


def label_of(method: str, options: Iterable[str]) -> str:
    """What a method with some options is called: "npo (steps=30)"."""
    given = dict(item.partition("=")[::2] for item in options)  # the last of a key counts
    return f"{method} ({', '.join(f'{key}={value}' for key, value in given.items())})" if given else method


@dataclass(frozen=True)
class Cell:
    """One run of the grid, or a row of runs where the tracks come in several requests. `name` is its folder."""

    method: str
    seed: int
    requests: int = 1

    @property
    def name(self) -> str:
        several = f"-requests-{self.requests}" if self.requests > 1 else ""
        return f"{self.method}/seed-{self.seed}{several}"


# ----------------------------------------------------------------------------------------------------------- on disk


def checked(plan: Plan, out: Path) -> Tracks:
    """The tracks that every cell is about, once all is refused that can be before anything is written.

    Raises:
        UsageError: the folder holds a bench of another model or other tracks, or no bench at all; a name or a value is
            wrong. InputError: the list or a gold can't be used.
    """
    if (out / PLAN).exists():
        before = read_plan(out)
        kept = set(Plan.model_fields) - {"methods", "seeds", "requests", *_MEASURING}
        changed = [
            f"{name} {getattr(before, name)} -> {getattr(plan, name)}"
            for name in sorted(kept)
            if getattr(before, name) != getattr(plan, name)
        ]
        if changed:
            raise UsageError(f"{out} holds another bench: {'; '.join(changed)}", "choose another --out")
    elif out.is_dir() and any(path.name not in (LOCK, OWNER, *BOARD) and path.is_file() for path in out.iterdir()):
        raise UsageError(f"{out} is not empty and holds no bench", "choose another --out")
    if plan.tracks is None and not assets.model_folder(plan.model):
        raise UsageError(
            f"--tracks is missing: which tracks should {plan.model} forget?", "name a list, as for `encore forget`"
        )
    plugins.backends().get(plan.backend)
    for name in plan.metrics or ():
        plugins.metrics().get(name)
    for name in plan.methods:
        plan.method(name)
    if plan.embedder:
        parsed(plan.embedder)
    pick_precision(plan.precision, pick_device(plan.device))
    for name in (plan.model, *plan.golds.values()):
        model_name(name)
    tracks = selected(plan, out)
    if max(plan.requests) > len(tracks.forget):
        raise UsageError(
            f"{len(tracks.forget)} tracks can't be sent in {max(plan.requests)} requests, one after another",
            "leave --sequential out, or name more tracks",
        )
    return tracks


def write_plan(plan: Plan, out: Path) -> None:
    """Keep the plan, which `checked` has passed."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write_json(out / PLAN, {"schema": SCHEMA, "encore": __version__, **plan.model_dump(mode="json")})


_MEASURING = ("golds", "metrics", "embedder", "draws", "full", "force", "eval_seed", "device", "offline")


def read_plan(out: Path) -> Plan:
    """The bench in a folder.

    Raises:
        InputError: there is none, or it can't be read.
    """
    if not (out / PLAN).exists():
        raise InputError(f"there is no bench in {out}", f"begin it: encore bench --out {out} --methods …")
    try:
        found = read_json(out / PLAN)
        return Plan.model_validate({k: v for k, v in found.items() if k not in ("schema", "encore")})
    except (InputError, pydantic.ValidationError, AttributeError) as error:
        raise InputError(
            f"{out / PLAN} is not whole, or was written by another version of Encore",
            "remove it and give the bench's command again: what is done stays done",
        ) from error


def measured_otherwise(plan: Plan, before: Plan) -> list[str]:
    """What a plan asks of measuring that the bench in its folder did not, in words: all of it is measured anew then."""
    pairs = ((name, getattr(before, name), getattr(plan, name)) for name in _MEASURING)
    return [f"{name} {_words(old)} -> {_words(new)}" for name, old, new in pairs if old != new]


def _words(setting: object) -> str:
    return ",".join(map(str, setting)) if isinstance(setting, tuple) else str(setting or "by default")


def selected(plan: Plan, out: Path) -> Tracks:
    """The tracks that every cell is about; the same for all."""
    return choose(plan.request(plan.cells[0], out))


def runs(plan: Plan, cell: Cell, out: Path, tracks: Tracks) -> list[tuple[Path, Tracks]]:
    """The folders of a cell's runs, with the tracks of each: one run, or one a request.

    Of several requests each has a piece of the list, of about the same size and in its order. What was forgotten is
    never trained on again. What is yet to be asked for is kept until then, where retain is the catalogue less the
    list, as it would be if nobody knew of it.
    """
    if cell.requests == 1:
        return [(out / cell.name, tracks)]
    ends = [len(tracks.forget) * number // cell.requests for number in range(cell.requests + 1)]
    from_catalogue = plan.retain is None and bool(tracks.retain)
    return [
        (
            out / cell.name / str(number),
            replace(
                tracks, forget=tracks.forget[begin:end],
                retain=(*tracks.retain, *tracks.forget[end:]) if from_catalogue else tracks.retain,
            ),
        )
        for number, (begin, end) in enumerate(pairwise(ends), 1)
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------- what is there already


def weights(plan: Plan, golds: Mapping[Role, str], folder: Path) -> dict[Role, str]:
    """Hashes of the base model and the golds as they are now, to hold what is in a folder against.

    One is opened after the other, and none where no run was begun in the folder: the result is then empty.

    Raises:
        InputError: one can't be opened.
    """
    if not any(folder.glob("**/request.json")):
        return {}
    family = plugins.backends().resolve(plan.backend)
    base = family.load(model_name(plan.model), revision=plan.revision, offline=plan.offline)
    found: dict[Role, str] = {"base": model_sha256(base)}
    for role, name in golds.items():
        found[role] = model_sha256(family.load(model_name(name), offline=plan.offline))
    return found


def refuse_other_cell(plan: Plan, cell: Cell, run: Path, tracks: Tracks, base: str | None = None) -> None:
    """A run that is there already must be the one that the plan wants in its place.

    Args:
        base: hash of the model that it must have been made from, where that is known.

    Raises:
        UsageError: it was made with other options, tracks or captions, or from another model.
    """
    method = plan.method(cell.method)
    precision = pick_precision(plan.precision, pick_device(plan.device))
    options = method.options.model_dump(mode="json")
    refuse_other_run(
        run / "request.json",
        {"method": method_of(cell.method), "seed": cell.seed, "options": options, "precision": precision},
    )
    asked = read_json(run / "request.json", shapes.Request)
    if base is not None and asked["model"]["sha256"] != base:
        raise UsageError(
            f"the run in {run} was made from a model that has changed since: its weights differ", "choose another --out"
        )
    for name, own in (("forget", tracks.forget), ("retain", tracks.retain), ("holdout", tracks.holdout)):
        made_with = [(entry["sha256"], tuple(entry.get("captions") or [entry["caption"]])) for entry in asked[name]]
        if made_with != [(track.sha256, track.captions) for track in own]:
            raise UsageError(f"the run in {run} was made with other {name} tracks or captions", "choose another --out")


def is_measured(folder: Path, asked: Asked, models: Mapping[Role, str]) -> bool:
    """Whether a folder has figures that were measured as asked for, by the code that is installed now.

    Args:
        models: hashes of those that must have been measured too.
    """
    if not (folder / METRICS).exists() or not (folder / EVALUATION).exists():
        return False
    how = read_json(folder / EVALUATION, shapes.Evaluation)
    wanted: dict[str, Any] = {
        "metrics": list(asked.metrics) if asked.metrics is not None else None, "full": asked.full,
        "draws": asked.draws, "seed": asked.seed, "force": asked.force, "golds": dict(asked.golds),
        "plugins": plugins.installed(), "asked_embedder": asked.embedder,
    }  # fmt: skip
    measured = how.get("models") or {}
    return all(how.get(key) == value for key, value in wanted.items()) and all(
        measured.get(role) == sha256 for role, sha256 in models.items()
    )


def unfinished(plan: Plan, out: Path, tracks: Tracks) -> Iterator[Cell]:
    """The cells that still have something to do.

    Raises:
        UsageError: a run that is there is not the one that is wanted.
    """
    asked = plan.asked(tracks.forget)
    models = weights(plan, asked.golds, out)
    for cell in plan.cells:
        complete = True
        for number, (run, own) in enumerate(runs(plan, cell, out, tracks)):
            if (run / "run.json").exists():
                refuse_other_cell(plan, cell, run, own, models.get("base") if number == 0 else None)
            else:
                complete = False
        if not (complete and is_measured(out / cell.name, asked, models)):
            yield cell
