"""What `encore eval` measures: models and clips, from a run folder or from flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encore import assets
from encore.api import Backend, Clip, ClipSet, Role
from encore.audio.cache import TensorCache
from encore.audio.files import file_sha256
from encore.audio.tracks import Track
from encore.errors import InputError
from encore.fingerprint import module_sha256
from encore.plugins import backends
from encore.runs.data import Listener
from encore.runs.environment import pick_device
from encore.runs.forget import load_self_retain
from encore.runs.reporter import Reporter
from encore.runs.select import open_catalog, reported, select
from encore.runs.store import read_json

RETAIN_TRACKS = 32  # at most, where the catalogue has no split "retain"


@dataclass
class Subject:
    """Models by role, clips by set, and what a reader should know about where they came from."""

    models: dict[Role, Backend]
    clips: dict[ClipSet, list[Clip]]
    notes: list[str] = field(default_factory=list)


def from_run(
    run: Path, *, golds: Mapping[Role, str] | None = None, device: str = "auto", reporter: Reporter | None = None
) -> Subject:
    """Open a complete run: base and unlearned, the tracks of its request, and gold where one is known.

    Args:
        golds: folders or names for "gold" and "gold2"; without them, the embedded golds are used where they fit.

    Raises:
        InputError: the run is not complete, or a file is not what it was when the run was made.
    """
    done, asked = read_json(run / "run.json"), read_json(run / "request.json")
    device = pick_device(device)
    family = backends().resolve(asked["model"]["backend"])
    where = {"revision": asked["model"]["revision"], "device": device}
    base = family.load(asked["model"]["name"], **where)
    if module_sha256(base.module, *base.frozen().values()) != asked["model"]["sha256"]:
        raise InputError(
            f"the base model {asked['model']['name']} is not the one the run was made from: its weights differ",
            "evaluate with the model it was made from, or run `encore forget` again",
        )
    unlearned = family.load(str(run / "model"), device=device)
    if module_sha256(unlearned.module) != done["unlearned_sha256"]:
        raise InputError(f"the weights in {run / 'model'} are not those the run wrote", "run `encore forget` again")
    models: dict[Role, Backend] = {"base": base, "unlearned": unlearned}
    subject = Subject(models, {})
    embedded = not golds
    for role, name in (golds or _embedded_golds(asked)).items():
        models[role] = family.load(name, device=device)
    if embedded and "gold" in models:
        subject.notes.append("gold and gold2 are the embedded models trained without exactly these tracks")
    kept = [track for track in asked["retain"] if track["id"] in set(asked["retain_ids"])]
    chosen = reported(kept, RETAIN_TRACKS, asked["seed"])
    if len(chosen) < len(kept):
        subject.notes.append(f"retain is measured on {len(chosen)} of {len(kept)} tracks")
    named: dict[ClipSet, Sequence[dict[str, Any]]] = {
        "forget": asked["forget"], "retain": chosen, "holdout": asked["holdout"]
    }  # fmt: skip
    tracks = {name: [_track(entry) for entry in entries] for name, entries in named.items()}
    subject.clips = _hear(base, tracks, reporter)
    if not asked["retain"] and (run / "retain-self").exists():
        subject.clips["retain"] = load_self_retain(run)[:RETAIN_TRACKS]
    return subject


def from_flags(
    model: str,
    listing: Path | str,
    *,
    others: Mapping[Role, str],
    backend: str = "musicgen",
    catalog: Path | None = None,
    retain: str | None = None,
    holdout: Path | None = None,
    device: str = "auto",
    offline: bool = False,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Subject:
    """Open models and tracks named on the command line; `model` is measured as "unlearned"."""
    family = backends().resolve(backend)
    device = pick_device(device)
    opened = open_catalog(catalog, others.get("base", model))
    chosen = select(listing, catalog=opened, retain=retain, holdout=holdout)
    names: dict[Role, str] = {**others, "unlearned": model}
    models = {role: family.load(name, device=device, offline=offline) for role, name in names.items()}
    kept = {track.id: track for track in chosen.retain}
    entries = [{"id": track.id, "split": track.meta.get("split")} for track in chosen.retain]
    retained = [kept[entry["id"]] for entry in reported(entries, RETAIN_TRACKS, seed)]
    tracks: dict[ClipSet, list[Track]] = {
        "forget": list(chosen.forget), "retain": retained, "holdout": list(chosen.holdout)
    }  # fmt: skip
    return Subject(models, _hear(models["unlearned"], tracks, reporter), list(chosen.notes))


def _hear(
    backend: Backend, tracks: Mapping[ClipSet, Sequence[Track]], reporter: Reporter | None
) -> dict[ClipSet, list[Clip]]:
    listener, reporter = Listener(backend, TensorCache()), reporter or Reporter()
    return {
        name: [
            clip
            for heard in listener.hear(chosen, lambda done, of, name=name: reporter.progress(f"hear {name}", done, of))
            for clip in heard.clips
        ]
        for name, chosen in tracks.items()
    }


def _track(entry: Mapping[str, Any]) -> Track:
    """A track of `request.json`, if its file is still what it was."""
    path = Path(entry["file"])
    try:
        found = file_sha256(path)
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}", "put the file back where the run found it") from error
    if found != entry["sha256"]:
        raise InputError(f"{path} is not the file that the run heard: its hash differs", "put the original file back")
    return Track(id=entry["id"], path=path, caption=entry["caption"], sha256=found)


def _embedded_golds(asked: Mapping[str, Any]) -> dict[Role, str]:
    """The embedded golds, where the run forgot exactly what they were trained without."""
    if asked["model"]["name"] != "tiny":
        return {}
    catalog = open_catalog(None, "tiny")
    assert catalog is not None
    forgotten = {track.sha256 for track in catalog.tracks(split="forget")}
    if {track["sha256"] for track in asked["forget"]} != forgotten:
        return {}
    return {
        role: name for role, name in (("gold", "tiny-gold"), ("gold2", "tiny-gold2"))
        if (folder := assets.model_folder(name)) and folder.exists()
    }  # fmt: skip
