"""What a bench compares: methods × seeds × lists of tracks (or requests that they come in), all on the same model."""

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
from encore.compare.forget_lists import draw, names_of
from encore.data.catalog import Catalog
from encore.data.splits import Tracks
from encore.data.tracks import Track
from encore.errors import InputError, UsageError
from encore.evaluate.embedder_choice import parsed
from encore.evaluate.inputs import embedded_golds
from encore.evaluate.run import EvalConfig
from encore.settings import resolve_options
from encore.store import schemas
from encore.store.environment import pick_device, pick_precision
from encore.store.evaluation_json import NAME as EVALUATION
from encore.store.metrics_json import NAME as METRICS
from encore.store.model_name import model_name, model_sha256
from encore.store.run_folder import LOCK, OWNER, read_json, write_json, writing
from encore.unlearn.config import ForgetConfig
from encore.unlearn.records import check_other_run
from encore.unlearn.run import choose

SCHEMA = 1
PLAN = "bench.json"
BOARD = ("leaderboard.md", "leaderboard.csv", "leaderboard.json", "pareto.svg", "matrix.csv")


class Plan(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A bench, as `bench.json` keeps it; folders and files are absolute paths.

    Args:
        methods: name -> its options that were given, as "key=value". A name may stand for a variant of a method, which
            is named after an @: "npo@long".
        seeds: of the runs. requests: in how many requests, one after another, the tracks are sent.
        tracks: the list; None for the embedded catalogue's own.
        forget_sizes: sizes of lists that are drawn from it, see `encore.compare.forget_lists.draw`.
        lists: name -> file of further lists, or of such that take the place of a drawn one of that name.
        model, …, precision: as in `encore.unlearn.config.ForgetConfig`.
        golds: "gold" and "gold2", trained without `tracks`; where there are none, the embedded ones where they fit.
        list_golds: name of a list -> "gold" and "gold2" of its own; see `asked` for lists without.
        metrics, …, eval_seed: how every run is measured; see `encore.evaluate.run.EvalConfig`.
    """

    methods: dict[str, tuple[str, ...]]
    seeds: tuple[pydantic.NonNegativeInt, ...]
    requests: tuple[pydantic.PositiveInt, ...] = (1,)
    tracks: str | None = None
    forget_sizes: tuple[pydantic.PositiveInt, ...] = ()
    lists: dict[str, str] = pydantic.Field(default_factory=dict)
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
    list_golds: dict[str, dict[str, str]] = pydantic.Field(default_factory=dict)
    metrics: tuple[str, ...] | None = None
    embedder: str = ""
    draws: pydantic.PositiveInt = 1
    full: bool = False
    force: bool = False
    eval_seed: pydantic.NonNegativeInt = 0

    @property
    def cells(self) -> list[Trial]:
        """Seeds outermost, so that a bench that is stopped early has every method and every list.

        Where there are lists, each comes in one request, and several requests are of all of `tracks`.
        """
        pieces = [("", requests) for requests in self.requests]
        if self.list_names:
            pieces = [*((name, 1) for name in self.list_names), *(piece for piece in pieces if piece[1] > 1)]
        return [
            Trial(method, seed, requests, name)
            for seed in self.seeds
            for name, requests in pieces
            for method in self.methods
        ]

    @property
    def list_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*names_of(self.forget_sizes), *self.lists)))

    def request(self, cell: Trial, out: Path) -> ForgetConfig:
        """What `encore forget` is asked for in a cell of the bench in folder `out`."""
        listing = self.lists.get(cell.list, self.tracks)
        return ForgetConfig(
            tracks=Path(listing) if listing else assets.FORGET, out=out / cell.name, model=self.model,
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

    def asked(self, forget: tuple[Track, ...], name: str = "", whole: tuple[Track, ...] = ()) -> EvalConfig:
        """How a run is measured, with the golds named that fit its tracks.

        A list has golds of its own. Without them it has those that lack all of its tracks, and maybe more: the bench's
        golds where it is a part of `tracks`, or the embedded ones.

        Args:
            forget: the list's tracks.
            name: of the list; empty for `tracks`.
            whole: all of `tracks`, where `name` is given.
        """
        given = self.list_golds.get(name, {}) if name else self.golds
        if not given and {track.sha256 for track in forget} <= {track.sha256 for track in whole}:
            given = self.golds
        golds: dict[Role, str] = {role: given[role] for role in _GOLDS if role in given}
        golds = golds or embedded_golds(self.model, forget, or_fewer=bool(name))
        return EvalConfig(
            self.metrics, self.full, self.embedder, self.eval_seed, self.force, golds, draws=self.draws
        )  # fmt: skip


def gold_note(plan: Plan, forget: tuple[Track, ...], name: str, whole: tuple[Track, ...]) -> str:
    """What a reader should know of the gold that a list is measured against; see `Plan.asked`."""
    if not name or name in plan.list_golds:
        return ""
    golds = plan.asked(forget, name, whole).golds
    if not golds:
        return "it has no gold: give one with --gold NAME=FOLDER"
    lacks = whole if dict(plan.golds) else Catalog.open(assets.CATALOG).tracks(split="forget")
    more = len({track.sha256 for track in lacks} - {track.sha256 for track in forget})
    return f"its gold was trained without {more} more tracks" if more else ""


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
class Trial:
    """One run of the grid, or a row of runs where the tracks come in several requests. `name` is its folder.

    `list` is one of the plan's lists by name; empty for all of its tracks.
    """

    method: str
    seed: int
    requests: int = 1
    list: str = ""

    @property
    def name(self) -> str:
        several = f"-requests-{self.requests}" if self.requests > 1 else ""
        return "/".join(filter(None, [self.list, self.method, f"seed-{self.seed}{several}"]))


# ----------------------------------------------------------------------------------------------------------- on disk


def checked(plan: Plan, out: Path) -> Tracks:
    """The tracks that every cell is about, once all is refused that can be before anything is written.

    Raises:
        UsageError: the folder holds a bench of another model or other tracks, or no bench at all; a name or a value is
            wrong. InputError: the list or a gold can't be used.
    """
    if (out / PLAN).exists():
        before = read_plan(out)
        kept = set(Plan.model_fields) - {"methods", "seeds", "requests", "forget_sizes", "lists", *_MEASURING}
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
    for name in (plan.model, *plan.golds.values(), *(one for own in plan.list_golds.values() for one in own.values())):
        if (Path(name).is_absolute() or name.startswith((".", "~"))) and not Path(name).exists():
            raise InputError(f"there is no model {name!r}", "give `tiny`, a folder, or a hub name like owner/name")
        model_name(name)
    _refuse_names(plan)
    tracks = selected(plan, out)
    for name in plan.list_names:
        of_list(plan, out, name, tracks)
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


_GOLDS: tuple[Role, Role] = ("gold", "gold2")
_MEASURING = ("golds", "list_golds", "metrics", "embedder", "draws", "full", "force", "eval_seed", "device", "offline")


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


def _refuse_names(plan: Plan) -> None:
    """Names of lists are names of folders."""
    for name in plan.lists:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name == "logs" or name in plan.methods:
            raise UsageError(f"{name!r} can't name a list", "use letters, digits, dashes, and no method's name")
    for name in plan.list_golds:
        if name not in plan.list_names:
            known = ", ".join(plan.list_names) or "none"
            raise UsageError(f"a gold is given for {name!r}, which is no list of this bench", f"its lists: {known}")


def selected(plan: Plan, out: Path) -> Tracks:
    """What `tracks` names, what is kept, and what is compared with."""
    return choose(replace(plan.request(plan.cells[0], out), tracks=Path(plan.tracks) if plan.tracks else assets.FORGET))


def of_list(plan: Plan, out: Path, name: str, whole: Tracks) -> Tracks:
    """The tracks of one of the plan's lists.

    Args:
        name: empty for all of `tracks`.
        whole: of `selected`.

    Raises:
        UsageError: there are not that many tracks to draw from.
        InputError: the list can't be used.
    """
    if name in plan.lists:
        return choose(plan.request(Trial("", 0, list=name), out))
    return draw(whole, name) if name else whole


def runs(plan: Plan, cell: Trial, out: Path, tracks: Tracks) -> list[tuple[Path, Tracks]]:
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


def weights(
    plan: Plan, golds: Mapping[Role, str], folder: Path, known: dict[str, str] | None = None
) -> dict[Role, str]:
    """Hashes of the base model and the golds as they are now, to hold what is in a folder against.

    One is opened after the other, and none where no run was begun in the folder: the result is then empty.

    Args:
        known: name of a model -> its hash, where that was taken before; those that are opened are added.

    Raises:
        InputError: one can't be opened.
    """
    if not any(folder.glob("**/request.json")):
        return {}
    family, known = plugins.backends().resolve(plan.backend), {} if known is None else known
    found: dict[Role, str] = {}
    for role, name in {"base": plan.model, **golds}.items():
        key = f"{role == 'base'} {name}"  # a hub's model may have another revision as base
        if key not in known:
            revision = plan.revision if role == "base" else None
            known[key] = model_sha256(family.load(model_name(name), revision=revision, offline=plan.offline))
        found[role] = known[key]
    return found


def check_other_cell(plan: Plan, cell: Trial, run: Path, tracks: Tracks, base: str | None = None) -> None:
    """A run that is there already must be the one that the plan wants in its place.

    Args:
        base: hash of the model that it must have been made from, where that is known.

    Raises:
        UsageError: it was made with other options, tracks or captions, or from another model.
    """
    method = plan.method(cell.method)
    precision = pick_precision(plan.precision, pick_device(plan.device))
    options = method.options.model_dump(mode="json")
    check_other_run(
        run / "request.json",
        {"method": method_of(cell.method), "seed": cell.seed, "options": options, "precision": precision},
    )
    asked = read_json(run / "request.json", schemas.Request)
    if base is not None and asked["model"]["sha256"] != base:
        raise UsageError(
            f"the run in {run} was made from a model that has changed since: its weights differ", "choose another --out"
        )
    for name, own in (("forget", tracks.forget), ("retain", tracks.retain), ("holdout", tracks.holdout)):
        made_with = [(entry["sha256"], tuple(entry.get("captions") or [entry["caption"]])) for entry in asked[name]]
        if made_with != [(track.sha256, track.captions) for track in own]:
            raise UsageError(f"the run in {run} was made with other {name} tracks or captions", "choose another --out")


def is_measured(folder: Path, asked: EvalConfig, models: Mapping[Role, str]) -> bool:
    """Whether a folder has figures that were measured as asked for, by the code that is installed now.

    Args:
        models: hashes of those that must have been measured too.
    """
    if not (folder / METRICS).exists() or not (folder / EVALUATION).exists():
        return False
    how = read_json(folder / EVALUATION, schemas.Evaluation)
    wanted: dict[str, Any] = {
        "metrics": list(asked.metrics) if asked.metrics is not None else None, "full": asked.full,
        "draws": asked.draws, "seed": asked.seed, "force": asked.force, "golds": dict(asked.golds),
        "plugins": plugins.installed(), "asked_embedder": asked.embedder,
    }  # fmt: skip
    measured = how.get("models") or {}
    return all(how.get(key) == value for key, value in wanted.items()) and all(
        measured.get(role) == sha256 for role, sha256 in models.items()
    )


def unfinished(plan: Plan, out: Path, tracks: Tracks) -> Iterator[Trial]:
    """The cells that still have something to do.

    Args:
        tracks: of `selected`.

    Raises:
        UsageError: a run that is there is not the one that is wanted.
    """
    known: dict[str, str] = {}
    lists = {name: of_list(plan, out, name, tracks) for name in dict.fromkeys(cell.list for cell in plan.cells)}
    for cell in plan.cells:
        asked = plan.asked(lists[cell.list].forget, cell.list, tracks.forget)
        models = weights(plan, asked.golds, out, known)
        complete = True
        for number, (run, own) in enumerate(runs(plan, cell, out, lists[cell.list])):
            if (run / "run.json").exists():
                check_other_cell(plan, cell, run, own, models.get("base") if number == 0 else None)
            else:
                complete = False
        if not (complete and is_measured(out / cell.name, asked, models)):
            yield cell
