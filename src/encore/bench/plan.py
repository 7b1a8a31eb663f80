"""What a bench compares: methods × seeds (× how many requests the tracks come in), all on the same model and tracks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from encore import __version__, assets, plugins
from encore.api import Method, Role
from encore.audio.catalog import Catalog
from encore.audio.tracks import Track
from encore.errors import InputError, UsageError
from encore.runs.documents import refuse_other_run
from encore.runs.evaluate_run import Asked
from encore.runs.evaluation_json import NAME as EVALUATION
from encore.runs.forget import Request, choose
from encore.runs.metrics_json import NAME as METRICS
from encore.runs.open_run import embedded_golds
from encore.runs.select import Tracks
from encore.runs.store import read_json, write_bytes, write_json, writing
from encore.settings import resolve_options

SCHEMA = 1
PLAN = "bench.json"
FORGET = "forget"  # the split of the embedded catalogue that is forgotten where no list is given


class Plan(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A bench, as `bench.json` keeps it; paths are absolute.

    Args:
        methods: name -> its options that were given, as "key=value".
        seeds: of the runs. requests: in how many requests, one after another, the tracks are sent.
        tracks: the list; None for the forget split of the embedded catalogue.
        model, …, precision: as in `encore.runs.forget.Request`.
        golds: "gold" and "gold2"; where there are none, the embedded ones where they fit.
        metrics, …, eval_seed: how every run is measured; see `encore.runs.evaluate_run.Asked`.
    """

    methods: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    requests: tuple[int, ...] = (1,)
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
    draws: int = 1
    full: bool = False
    force: bool = False
    eval_seed: int = 0

    @property
    def cells(self) -> list[Cell]:
        """Seeds outermost, so that a bench that is stopped early has every method."""
        return [
            Cell(method, seed, requests) for seed in self.seeds for requests in self.requests for method in self.methods
        ]

    def request(self, cell: Cell, out: Path) -> Request:
        """What `encore forget` is asked for in a cell of the bench in folder `out`."""
        return Request(
            tracks=Path(self.tracks) if self.tracks else out / f"{FORGET}.txt", out=out / cell.name, model=self.model,
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
        chosen = plugins.methods().resolve(name)
        return chosen(resolve_options(chosen.Options, assignments=self.methods[name]).options)

    def asked(self, forget: tuple[Track, ...]) -> Asked:
        """How a run is measured, with the embedded golds named where the tracks are those they lack."""
        golds: dict[Role, str] = {"gold": self.golds["gold"]} if "gold" in self.golds else {}
        golds |= {"gold2": self.golds["gold2"]} if "gold2" in self.golds else {}
        golds = golds or embedded_golds(self.model, forget)
        return Asked(
            self.metrics, self.full, self.embedder, self.eval_seed, self.force, golds, draws=self.draws
        )  # fmt: skip


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


def write_plan(plan: Plan, out: Path) -> None:
    """Keep the plan; a list of the embedded catalogue's own is written beside it.

    Raises:
        UsageError: the folder holds a bench of another model or other tracks, or no bench at all.
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
    elif out.is_dir() and any(path.name != f"{FORGET}.txt" and path.is_file() for path in out.iterdir()):
        raise UsageError(f"{out} is not empty and holds no bench", "choose another --out")
    if plan.tracks is None and not assets.model_folder(plan.model):
        raise UsageError("--tracks is missing: which tracks should be forgotten?", "name a list, as for forget")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    if plan.tracks is None:
        ids = [track.id for track in Catalog.open(assets.CATALOG).tracks(split=FORGET)]
        write_bytes(out / f"{FORGET}.txt", "".join(f"id:{name}\n" for name in ids).encode())
    write_json(out / PLAN, {"schema": SCHEMA, "encore": __version__, **plan.model_dump(mode="json")})


_MEASURING = ("golds", "metrics", "embedder", "draws", "full", "force", "eval_seed", "device", "offline")


def read_plan(out: Path) -> Plan:
    """The bench in a folder.

    Raises:
        InputError: there is none, or it can't be read.
    """
    found = read_json(out / PLAN)
    try:
        return Plan.model_validate({k: v for k, v in found.items() if k not in ("schema", "encore")})
    except (pydantic.ValidationError, AttributeError) as error:
        raise InputError(f"{out / PLAN} was not written by this version of Encore", "choose another --out") from error


def selected(plan: Plan, out: Path) -> Tracks:
    """The tracks that every cell is about; the same for all."""
    return choose(plan.request(plan.cells[0], out))


def refuse_other_cell(plan: Plan, cell: Cell, run: Path, tracks: Tracks) -> None:
    """A run that is there already must be the one that the plan wants in its place.

    Raises:
        UsageError: it was made with other options or tracks.
    """
    method = plan.method(cell.method)
    options = method.options.model_dump(mode="json")
    refuse_other_run(run / "request.json", {"method": cell.method, "seed": cell.seed, "options": options})
    asked = read_json(run / "request.json")
    for name, own in (("forget", tracks.forget), ("retain", tracks.retain), ("holdout", tracks.holdout)):
        if [entry["sha256"] for entry in asked[name]] != [track.sha256 for track in own]:
            raise UsageError(f"the run in {run} was made with other {name} tracks", "choose another --out")


def is_measured(folder: Path, asked: Asked) -> bool:
    """Whether a folder has figures that were measured as asked for, by the code that is installed now."""
    if not (folder / METRICS).exists() or not (folder / EVALUATION).exists():
        return False
    how = read_json(folder / EVALUATION)
    wanted: dict[str, Any] = {
        "metrics": list(asked.metrics) if asked.metrics is not None else None, "full": asked.full,
        "draws": asked.draws, "seed": asked.seed, "force": asked.force, "golds": dict(asked.golds),
        "plugins": plugins.installed(),
    }  # fmt: skip
    if asked.embedder:
        wanted["embedder"] = asked.embedder
    return all(how.get(key) == value for key, value in wanted.items())


def unfinished(plan: Plan, out: Path, tracks: Tracks) -> Iterator[Cell]:
    """The cells that still have something to do.

    Raises:
        UsageError: a run that is there is not the one that is wanted.
    """
    asked = plan.asked(tracks.forget)
    for cell in plan.cells:
        folder = out / cell.name
        complete = (folder / "run.json").exists()
        if complete and cell.requests == 1:
            refuse_other_cell(plan, cell, folder, tracks)
        if not ((complete or cell.requests > 1) and is_measured(folder, asked)):
            yield cell
