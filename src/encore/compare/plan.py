"""The plan of a bench: methods × seeds × forget lists (or sequential requests) on one model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pydantic

from encore import __version__, assets, plugins
from encore.api import Method, Role
from encore.compare.forget_lists import draw, list_names, part
from encore.data.catalog import Catalog
from encore.data.duplicates import Pair, find_duplicates, without_duplicates
from encore.data.shards import ShardTracks
from encore.data.splits import Tracks, joined, open_catalog
from encore.data.track_list import read_list
from encore.data.tracks import Track
from encore.errors import InputError, UsageError
from encore.evaluate.embedder_choice import parsed
from encore.evaluate.inputs import embedded_golds
from encore.evaluate.run import EvalConfig
from encore.settings import resolve_options
from encore.store import schemas
from encore.store.environment import pick_device, pick_precision
from encore.store.evaluation_json import NAME as EVALUATION
from encore.store.meta_json import NAME as META
from encore.store.metrics_json import NAME as METRICS
from encore.store.model_name import check_golds, model_name, model_sha256
from encore.store.run_folder import LOCK, OWNER, read_json, write_json, writing
from encore.tensor_cache import TensorCache
from encore.unlearn.config import ForgetConfig
from encore.unlearn.records import check_other_run, listed_places
from encore.unlearn.run import choose

SCHEMA = 1
PLAN = "bench.json"
LEADERBOARD = "leaderboard.json"
BOARD = ("leaderboard.md", "leaderboard.csv", LEADERBOARD, "pareto.svg", "matrix.csv")


class Pretrained(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The model that a bench trains base and golds from, and the recipe; see `encore.compare.finetuned`.

    Args:
        model: name or folder.
        revision: of a hub model.
        options: of the recipe, as "key=value".
    """

    model: str
    revision: str | None = None
    options: tuple[str, ...] = ()


class Plan(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The contents of `bench.json`; folders and files are absolute paths.

    Fields from `model` to `offline` are those of `encore.unlearn.config.ForgetConfig`, fields from `metrics` to
    `eval_seed` those of `encore.evaluate.run.EvalConfig`.

    Args:
        methods: options by method, as "key=value". A name may have a variant after an @: "npo@long".
        seeds: seeds of the runs.
        requests: numbers of sequential requests that the tracks are split into.
        tracks: the forget list; None for the embedded catalogue's.
        forget_sizes: sizes of lists that are drawn from it, see `encore.compare.forget_lists.draw`.
        lists: files of further lists by name; a drawn list of the same name is replaced.
        golds: "gold" and "gold2", trained without `tracks`; by default the embedded ones, if they match.
        list_golds: "gold" and "gold2" by name of the list; see `eval_config` for lists without.
        pretrained: what base and golds are trained from, where the bench trains them: `model` and the golds are then
            its own folders.
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
    samples_per_caption: pydantic.PositiveInt = 1
    full: bool = False
    force: bool = False
    eval_seed: pydantic.NonNegativeInt = 0
    pretrained: Pretrained | None = None

    @property
    def trials(self) -> list[Trial]:
        """All trials, seeds outermost, so that an interrupted bench covers every method and list.

        With lists, each list is one request, and several requests are of all `tracks`.
        """
        targets = [("", requests) for requests in self.requests]
        if self.list_names:
            targets = [*((name, 1) for name in self.list_names), *(target for target in targets if target[1] > 1)]
        return [
            Trial(method, seed, requests, name)
            for seed in self.seeds
            for name, requests in targets
            for method in self.methods
        ]

    @property
    def list_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*list_names(self.forget_sizes), *self.lists)))

    def request(self, trial: Trial, out: Path) -> ForgetConfig:
        """The forget request of a trial of the bench in folder `out`."""
        listing = self.lists.get(trial.list, self.tracks)
        return ForgetConfig(
            tracks=Path(listing) if listing else assets.FORGET, out=out / trial.name, model=self.model,
            revision=self.revision, offline=self.offline, backend=self.backend,
            catalog=Path(self.catalog) if self.catalog else None, retain=self.retain,
            holdout=Path(self.holdout) if self.holdout else None, roots=tuple(map(Path, self.roots)), seed=trial.seed,
            device=self.device, precision=self.precision,
        )  # fmt: skip

    def method(self, name: str) -> Method:
        """The method with its options.

        Raises:
            UnknownNameError: there is no such method.
            MissingExtraError: a package of the method is not installed.
            UsageError: the method has no such option.
        """
        method = plugins.methods().resolve(method_of(name))
        return method(resolve_options(method.Options, assignments=self.methods[name]).options)

    def eval_config(self, forget: tuple[Track, ...], name: str = "", whole: tuple[Track, ...] = ()) -> EvalConfig:
        """The settings of a run's evaluation, with gold models that match its tracks.

        A list without golds of its own uses golds that were trained without its tracks and maybe others: the bench's
        golds if it is a subset of `tracks`, or the embedded ones.

        Args:
            forget: the list's tracks.
            name: name of the list; empty for `tracks`.
            whole: all of `tracks`, if `name` is given.
        """
        chosen = self.list_golds.get(name, {}) if name else self.golds
        if not chosen and {track.sha256 for track in forget} <= {track.sha256 for track in whole}:
            chosen = self.golds
        golds: dict[Role, str] = {role: chosen[role] for role in _GOLDS if role in chosen}
        golds = golds or embedded_golds(self.model, forget, allow_subset=bool(name))
        return EvalConfig(
            self.metrics, self.full, self.embedder, self.eval_seed, self.force, golds,
            samples_per_caption=self.samples_per_caption,
        )  # fmt: skip


def gold_note(plan: Plan, forget: tuple[Track, ...], name: str, whole: tuple[Track, ...]) -> str:
    """A note on the gold model of a list; see `Plan.eval_config`."""
    if not name or name in plan.list_golds:
        return ""
    golds = plan.eval_config(forget, name, whole).golds
    if not golds:
        return "no gold, which most rows need: give one with --gold NAME=FOLDER"
    lacks = whole if dict(plan.golds) else Catalog.open(assets.CATALOG).tracks(split="forget")
    more = len({track.sha256 for track in lacks} - {track.sha256 for track in forget})
    return f"its gold was trained without {more} more tracks" if more else ""


def method_of(name: str) -> str:
    """The method of a name with an optional variant: "npo" of "npo@long".

    Raises:
        UsageError: the variant's name is not a valid folder name.
    """
    method, at, variant = name.partition("@")
    if at and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", variant):
        raise UsageError(f"{name!r} can't name a variant of {method!r}", "use letters, digits, dashes: METHOD@VARIANT")
    return method


def label_of(method: str, options: Iterable[str]) -> str:
    """The label of a method with options: "npo (steps=30)"."""
    values = dict(item.partition("=")[::2] for item in options)  # the last of a key counts
    return f"{method} ({', '.join(f'{key}={value}' for key, value in values.items())})" if values else method


@dataclass(frozen=True)
class Trial:
    """A trial of the grid: one run, or a sequence of runs with several requests.

    Args:
        method: name of the method, with its variant.
        seed: seed of the runs.
        requests: number of sequential requests.
        list: name of one of the plan's lists; empty for all of its tracks.
    """

    method: str
    seed: int
    requests: int = 1
    list: str = ""

    @property
    def name(self) -> str:
        """The trial's folder."""
        several = f"-requests-{self.requests}" if self.requests > 1 else ""
        return "/".join(filter(None, [self.list, self.method, f"seed-{self.seed}{several}"]))


# ----------------------------------------------------------------------------------------------------------- on disk


def check_plan(plan: Plan, out: Path, *, local: bool = True) -> Tracks:
    """Validate a plan before anything is written; returns the tracks of all trials.

    Args:
        local: whether the trials run on this machine, which must then have the device.

    Raises:
        UsageError: the folder has a bench of another model or other tracks, or other files; a name or a value is
            invalid.
        InputError: the list or a gold can't be used.
    """
    if (out / PLAN).exists():
        before = read_plan(out)
        fixed = set(Plan.model_fields) - {"methods", "seeds", "requests", "forget_sizes", "lists", *_MEASURING}
        changed = [
            f"{name} {getattr(before, name)} -> {getattr(plan, name)}"
            for name in sorted(fixed)
            if getattr(before, name) != getattr(plan, name)
        ]
        if changed:
            raise UsageError(f"{out} holds another bench: {'; '.join(changed)}", "choose another --out")
    elif out.is_dir() and any(
        path.name not in (LOCK, OWNER, META, *BOARD) and path.is_file() for path in out.iterdir()
    ):
        raise UsageError(f"{out} is not empty and holds no bench", "choose another --out")
    if plan.tracks is None and not assets.model_folder(plan.model):
        raise UsageError(
            f"--tracks is missing: which tracks should {plan.model} forget?", "give a list, as for `encore forget`"
        )
    plugins.backends().get(plan.backend)
    for name in plan.metrics or ():
        plugins.metrics().get(name)
    for name in plan.methods:
        plan.method(name)
    if plan.embedder:
        parsed(plan.embedder)
    pick_precision(plan.precision, pick_device(plan.device) if local else "cpu")
    models = (plan.model, *plan.golds.values(), *(name for g in plan.list_golds.values() for name in g.values()))
    for name in models if plan.pretrained is None else (plan.pretrained.model,):
        if (Path(name).is_absolute() or name.startswith((".", "~"))) and not Path(name).exists():
            raise InputError(f"there is no model {name!r}", "give `tiny`, a folder, or a hub name like owner/name")
        model_name(name)
    if plan.pretrained is None:
        base = {} if plan.revision else {"the model": model_name(plan.model)}
        for golds in (plan.golds, *plan.list_golds.values()):
            check_golds({**base, **{role: model_name(name) for role, name in golds.items()}})
    _check_list_names(plan)
    tracks = plan_tracks(plan, out)
    for name in plan.list_names:
        list_tracks(plan, out, name, tracks)
    if plan.pretrained is not None and not tracks.retain:
        raise UsageError("there are no tracks to keep, and gold is trained on them", "give --retain LIST or --catalog")
    if max(plan.requests) > len(tracks.forget):
        raise UsageError(
            f"{len(tracks.forget)} tracks can't be split into {max(plan.requests)} requests",
            "leave --sequential out, or name more tracks",
        )
    return tracks


def write_plan(plan: Plan, out: Path) -> None:
    """Write a plan that `check_plan` has accepted."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write_json(out / PLAN, {"schema": SCHEMA, "encore": __version__, **plan.model_dump(mode="json")})


_GOLDS: tuple[Role, Role] = ("gold", "gold2")
_MEASURING = (
    "golds", "list_golds", "metrics", "embedder", "samples_per_caption", "full", "force", "eval_seed", "device",
    "offline",
)  # fmt: skip


def read_plan(out: Path) -> Plan:
    """The bench in a folder.

    Raises:
        InputError: there is none, or it can't be read.
    """
    if not (out / PLAN).exists():
        raise InputError(f"there is no bench in {out}", f"begin it: encore bench --out {out} --methods …")
    try:
        contents = read_json(out / PLAN)
        return Plan.model_validate({k: v for k, v in contents.items() if k not in ("schema", "encore")})
    except (InputError, pydantic.ValidationError, AttributeError) as error:
        raise InputError(
            f"{out / PLAN} is incomplete or was written by another version of Encore",
            "remove it and run the bench's command again: completed runs are kept",
        ) from error


def changed_measurement(plan: Plan, before: Plan) -> list[str]:
    """Descriptions of the changed evaluation settings; if there are any, all trials are measured again."""
    pairs = ((name, getattr(before, name), getattr(plan, name)) for name in _MEASURING)
    return [f"{name} {_text(old)} -> {_text(new)}" for name, old, new in pairs if old != new]


def kept_trials(plan: Plan, before: Plan, out: Path) -> list[str]:
    """Names of the trials of an earlier plan that are on disk, and not in this one."""
    planned = set(plan.trials)
    return [t.name for t in before.trials if t not in planned and (out / t.name / "run.json").exists()]


def _text(setting: object) -> str:
    return ",".join(map(str, setting)) if isinstance(setting, tuple) else str(setting or "by default")


def _check_list_names(plan: Plan) -> None:
    """Names of lists must be valid folder names, and golds must belong to a list."""
    for name in plan.lists:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name == "logs" or name in plan.methods:
            raise UsageError(f"{name!r} can't name a list", "use letters, digits, dashes, and no method's name")
    for name in plan.list_golds:
        if name not in plan.list_names:
            known = ", ".join(plan.list_names) or "none"
            raise UsageError(f"a gold is given for {name!r}, which is not a list of this bench", f"its lists: {known}")


def plan_tracks(plan: Plan, out: Path) -> Tracks:
    """The forget tracks of `plan.tracks`, the retain and the holdout tracks."""
    return choose(
        replace(plan.request(plan.trials[0], out), tracks=Path(plan.tracks) if plan.tracks else assets.FORGET)
    )


def list_tracks(plan: Plan, out: Path, name: str, whole: Tracks) -> Tracks:
    """The tracks of one of the plan's lists; copies of its tracks are not among those to keep.

    Where the bench trains base and golds, its lists are parts of what base is trained on.

    Args:
        name: name of the list; empty for all tracks.
        whole: the result of `plan_tracks`.

    Raises:
        UsageError: there are too few tracks to draw from, or a list names a track that base is not trained on.
        InputError: the list can't be used.
    """
    if not name:
        return whole
    if name not in plan.lists:
        tracks = draw(whole, name)
    else:
        request = plan.request(Trial("", 0, list=name), out)
        if plan.pretrained is None:
            return choose(request)
        catalog = open_catalog(request.catalog, request.model, request.roots)
        listed = read_list(request.tracks, catalog=catalog, roots=request.roots, advice="").tracks
        tracks = part(whole, listed, name)
    key = _identity(tracks.forget, tracks.retain)
    if key not in _DUPLICATES:
        _DUPLICATES[key] = find_duplicates(tracks.forget, tracks.retain, cache=TensorCache())
    pairs = _DUPLICATES[key]
    return replace(tracks, retain=without_duplicates(tracks.retain, pairs)) if pairs else tracks


_DUPLICATES: dict[str, list[Pair]] = {}  # of a process, by `_identity`: a bench asks for the same list several times


def _identity(*sets: Sequence[Track]) -> str:
    """Hash of which tracks these are, without reading those of shards."""
    digest = hashlib.sha256()
    for tracks in sets:
        if isinstance(tracks, ShardTracks):
            digest.update(str(tracks.shards.folder).encode() + tracks.numbers.tobytes())
        else:
            digest.update(json.dumps([(track.id, str(track.path), track.sha256) for track in tracks]).encode())
    return digest.hexdigest()


def runs(plan: Plan, trial: Trial, out: Path, tracks: Tracks) -> list[tuple[Path, Tracks]]:
    """Folder and tracks of each of a trial's runs: one run, or one per request.

    Several requests split the list in order into parts of about equal size. Tracks of earlier requests are never
    trained on again. If retain is the catalogue without the list, tracks of later requests are retain tracks until
    then, as they would be if the requests were not known in advance.
    """
    if trial.requests == 1:
        return [(out / trial.name, tracks)]
    ends = [len(tracks.forget) * number // trial.requests for number in range(trial.requests + 1)]
    from_catalogue = plan.retain is None and bool(tracks.retain)
    return [
        (
            out / trial.name / str(number),
            replace(
                tracks, forget=tracks.forget[begin:end],
                retain=joined(tracks.retain, tracks.forget[end:]) if from_catalogue else tracks.retain,
            ),
        )
        for number, (begin, end) in enumerate(pairwise(ends), 1)
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------------------- existing runs


def model_hashes(
    plan: Plan, golds: Mapping[Role, str], folder: Path, known: dict[str, str] | None = None
) -> dict[Role, str]:
    """Current hashes of the base model and the golds; empty if the folder has no runs.

    Args:
        known: hashes by model, to which those of newly opened models are added.

    Raises:
        InputError: a model can't be opened.
    """
    if not any(folder.glob("**/request.json")):
        return {}
    family, known = plugins.backends().resolve(plan.backend), {} if known is None else known
    hashes: dict[Role, str] = {}
    for role, name in {"base": plan.model, **golds}.items():
        key = f"{role == 'base'} {name}"  # the revision applies to base only
        if key not in known:
            revision = plan.revision if role == "base" else None
            known[key] = model_sha256(family.load(model_name(name), revision=revision, offline=plan.offline))
        hashes[role] = known[key]
    return hashes


def check_same_run(plan: Plan, trial: Trial, run: Path, tracks: Tracks, base: str | None = None) -> None:
    """Check that an existing run is the one that the plan requires.

    Args:
        trial: the trial of the run.
        tracks: the run's tracks.
        base: required hash of the run's base model, if known.

    Raises:
        UsageError: the run has other options, tracks or captions, or another base model.
    """
    method = plan.method(trial.method)
    settings = {
        "method": method_of(trial.method),
        "seed": trial.seed,
        "options": method.options.model_dump(mode="json"),
    }
    if plan.precision != "auto":  # what auto chose depends on the model
        settings["precision"] = plan.precision
    check_other_run(run / "request.json", settings)
    request = read_json(run / "request.json", schemas.Request)
    if base is not None and request["model"]["sha256"] != base:
        raise UsageError(
            f"the run in {run} was made from a model that has changed since: its weights differ", "choose another --out"
        )
    check_same_tracks(run, request, {"forget": tracks.forget, "retain": tracks.retain, "holdout": tracks.holdout})


def check_same_tracks(run: Path, request: Mapping[str, Any], sets: Mapping[str, Iterable[Track]]) -> None:
    """Check that a run was made with these tracks, by their hashes and captions.

    Args:
        run: its folder.
        request: its `request.json`.
        sets: name in `request` -> the required tracks.

    Raises:
        UsageError: it was made with others.
    """
    for name, required in sets.items():
        if isinstance(required, ShardTracks):
            required = [required[place] for place in listed_places(len(required))]
        entries = [(entry["sha256"], tuple(entry.get("captions") or [entry["caption"]])) for entry in request[name]]
        if entries != [(track.sha256, track.captions) for track in required]:
            raise UsageError(f"the run in {run} was made with other {name} tracks or captions", "choose another --out")


def is_measured(folder: Path, config: EvalConfig, models: Mapping[Role, str]) -> bool:
    """Whether a folder has results of these settings and of the installed plugins' versions.

    Args:
        models: required hashes of models.
    """
    if not (folder / METRICS).exists() or not (folder / EVALUATION).exists():
        return False
    record = read_json(folder / EVALUATION, schemas.Evaluation)
    required: dict[str, Any] = {
        "metrics": list(config.metrics) if config.metrics is not None else None, "full": config.full,
        "samples_per_caption": config.samples_per_caption, "seed": config.seed, "force": config.force,
        "golds": dict(config.golds),
        "plugins": plugins.installed(), "requested_embedder": config.embedder,
    }  # fmt: skip
    measured = record.get("models") or {}
    return all(record.get(key) == value for key, value in required.items()) and all(
        measured.get(role) == sha256 for role, sha256 in models.items()
    )


def unfinished(plan: Plan, out: Path, tracks: Tracks) -> Iterator[Trial]:
    """The trials that are not complete.

    Args:
        tracks: the result of `plan_tracks`.

    Raises:
        UsageError: an existing run is not the one that the plan requires.
    """
    known: dict[str, str] = {}
    lists = {name: list_tracks(plan, out, name, tracks) for name in dict.fromkeys(trial.list for trial in plan.trials)}
    for trial in plan.trials:
        config = plan.eval_config(lists[trial.list].forget, trial.list, tracks.forget)
        models = model_hashes(plan, config.golds, out, known)
        if not is_complete(plan, trial, out, lists[trial.list], config, models):
            yield trial


def is_complete(
    plan: Plan, trial: Trial, out: Path, tracks: Tracks, config: EvalConfig, models: Mapping[Role, str]
) -> bool:
    """Whether all runs of a trial are complete, and the trial is measured as the plan requires.

    Args:
        tracks: of the trial's list.
        config: settings of its evaluation.
        models: required hashes of base and golds.

    Raises:
        UsageError: a run is not the one that the plan requires.
    """
    complete = True
    for number, (run, run_tracks) in enumerate(runs(plan, trial, out, tracks)):
        if (run / "run.json").exists():
            base = models.get("base") if number == 0 else None
            check_same_run(plan, trial, run, run_tracks, base)
        else:
            complete = False
    return complete and is_measured(out / trial.name, config, models)
