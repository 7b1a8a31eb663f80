"""What `encore eval` measures: models and clips, from a run folder or from flags."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor

from encore import assets
from encore.api import Backend, Clip, ClipSet, Role
from encore.cache import TensorCache
from encore.data.catalog import Catalog
from encore.data.encode import EncodedTrack, TrackEncoder, recordings
from encore.data.relocate import PathRelocator, listed_track
from encore.data.splits import OptionalTracks, Tracks, left_out, open_catalog, reported, retain_sets, select
from encore.data.tracks import Track
from encore.errors import InputError
from encore.plugins import backends
from encore.reporter import Reporter
from encore.store import schemas
from encore.store.environment import pick_device
from encore.store.model_name import model_name, model_sha256
from encore.store.run_folder import read_json
from encore.store.self_retain import load_self_retain

RETAIN_TRACKS = 32  # at most, where the catalogue has no split "retain"


class OtherWeightsError(InputError):
    """The run's own model is not the one that the run wrote."""


@dataclass
class EvaluationInputs:
    """Models by role, clips by set, and what a reader should know about where they came from.

    Args:
        track_metadata: track id -> its artist and genre, where known.
        recordings: reads a set's files, where there are files.
        heard: the tracks of each set as they were read.
    """

    models: dict[Role, Backend]
    clips: dict[ClipSet, list[Clip]]
    notes: list[str] = field(default_factory=list)
    track_metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    recordings: dict[ClipSet, Callable[[], Sequence[Tensor]]] = field(default_factory=dict)
    heard: dict[ClipSet, list[EncodedTrack]] = field(default_factory=dict)

    def take(self, backend: Backend, heard: dict[ClipSet, list[EncodedTrack]]) -> None:
        """Measure on these tracks, which were encoded for `backend`."""
        self.heard = heard
        self.clips = {name: [clip for one in members for clip in one.clips] for name, members in heard.items()}
        self.recordings = {
            name: partial(recordings, backend, [one.track for one in members])
            for name, members in heard.items()
            if members
        }


# -------------------------------------------------------------------------------------------------------- from a run


def from_run(
    run: Path,
    *,
    golds: Mapping[Role, str] | None = None,
    seed: int = 0,
    device: str = "auto",
    offline: bool = False,
    reporter: Reporter | None = None,
) -> EvaluationInputs:
    """Open a complete run: base and unlearned, the tracks of its request, and gold where one is known.

    Args:
        golds: folders or names for "gold" and "gold2"; without them, the embedded golds are used where they fit.
        seed: the evaluation's, so that runs of several seeds are measured on the same tracks to keep.

    Raises:
        InputError: the run is not complete, or a file is not what it was when the run was made.
    """
    device = pick_device(device)
    done, asked = read_json(run / "run.json", schemas.Run), read_json(run / "request.json", schemas.Request)
    try:
        tracks = {name: [listed_track(entry) for entry in asked[name]] for name in ("forget", "retain", "holdout")}
        here, model, written = PathRelocator(Path(asked["folder"]), run), asked["model"], done["unlearned_sha256"]
        kind, name, revision, sha256 = (model[key] for key in ("backend", "name", "revision", "sha256"))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{run} was not written by this version of Encore: {error!r}", "run it again") from error
    subject, golds = EvaluationInputs({}, {}), golds or {}
    kept = reported(tracks["retain"], RETAIN_TRACKS, seed)
    if kept:
        subject.notes.append(retain_sets(tracks["retain"], kept, done.get("tracks", {}).get("retain_watched")))
    present = here.find_all({"forget": tracks["forget"], "retain": kept, "holdout": tracks["holdout"]})

    family = backends().resolve(kind)
    base = family.load(here.model(name), revision=revision, offline=offline, device=device)
    if model_sha256(base) != sha256:
        raise InputError(
            f"the base model {name} is not the one the run was made from: its weights differ",
            "evaluate with the model it was made from, or run `encore forget` again",
        )
    unlearned = family.load(str(run / "model"), offline=offline, device=device)
    if model_sha256(unlearned) != written:
        raise OtherWeightsError(
            f"the weights in {run / 'model'} are not those the run wrote", "run `encore forget` again"
        )
    subject.models |= {"base": base, "unlearned": unlearned}
    embedded = {} if golds else embedded_golds(name, tracks["forget"])
    if embedded:
        subject.notes.append("gold and gold2 are the embedded models trained without exactly these tracks")
    for role, gold in {**golds, **embedded}.items():
        subject.models[role] = family.load(model_name(gold), offline=offline, device=device)
    subject.take(base, _hear(base, present, reporter))
    subject.track_metadata = _about(track for chosen in present.values() for track in chosen)
    if (run / "retain-self").exists():
        subject.clips["retain"] = load_self_retain(run, base)[:RETAIN_TRACKS]
        subject.recordings.pop("retain", None)
    return subject


def _about(tracks: Iterable[Track]) -> dict[str, dict[str, str]]:
    """Artist and genre of the tracks, of what is known of them."""
    known = {track.id: {"artist": track.artist, "genre": track.meta.get("genre")} for track in tracks}
    return {name: told for name, facts in known.items() if (told := {k: str(v) for k, v in facts.items() if v})}


def embedded_golds(model: str, forget: Sequence[Track], *, or_fewer: bool = False) -> dict[Role, str]:
    """The embedded golds, where the run forgot exactly what they were trained without, or a part of it."""
    if model != "tiny":
        return {}
    split = {track.sha256 for track in Catalog.open(assets.CATALOG).tracks(split="forget")}
    hashes = {track.sha256 for track in forget}
    if not (hashes <= split if or_fewer else hashes == split):
        return {}
    names: dict[Role, str] = {"gold": "tiny-gold", "gold2": "tiny-gold2"}
    return {role: name for role, name in names.items() if (found := assets.model_folder(name)) and found.exists()}


# -------------------------------------------------------------------------------------------------------- from flags


def from_flags(
    model: str,
    listing: Path | str,
    *,
    others: Mapping[Role, str],
    backend: str = "musicgen",
    catalog: Path | None = None,
    retain: str | None = None,
    holdout: Path | None = None,
    roots: Sequence[Path] = (),
    skip_unreadable: bool = False,
    device: str = "auto",
    offline: bool = False,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> EvaluationInputs:
    """Open models and tracks named on the command line; `model` is measured as "unlearned".

    Raises:
        InputError: a model or a track can't be used.
    """
    chosen = select(
        listing, catalog=open_catalog(catalog, others.get("base", model), roots), retain=retain, holdout=holdout,
        roots=roots, drop_duplicates=True, skip_unreadable=skip_unreadable,
        progress=(reporter or Reporter()).progress,
    )  # fmt: skip
    return subject_of(
        model, chosen, others=others, backend=backend, skip_unreadable=skip_unreadable, device=device, offline=offline,
        seed=seed, reporter=reporter,
    )  # fmt: skip


def subject_of(
    model: str,
    chosen: Tracks,
    *,
    others: Mapping[Role, str],
    revision: str | None = None,
    backend: str = "musicgen",
    skip_unreadable: bool = False,
    device: str = "auto",
    offline: bool = False,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> EvaluationInputs:
    """Open models on tracks that were found already; see `from_flags`.

    Args:
        revision: of the base model. seed: the evaluation's; it chooses the tracks to keep where there are many.
    """
    device = pick_device(device)
    family = backends().resolve(backend)
    names: dict[Role, str] = {**others, "unlearned": model}
    models = {
        role: family.load(
            model_name(name), revision=revision if role == "base" else None, device=device, offline=offline
        )
        for role, name in names.items()
    }
    kept = reported(chosen.retain, RETAIN_TRACKS, seed)
    notes = [*chosen.notes, *([retain_sets(chosen.retain, kept, None)] if kept else [])]
    tracks: dict[ClipSet, Sequence[Track]] = {"forget": chosen.forget, "retain": kept, "holdout": chosen.holdout}
    about = _about(track for chosen in tracks.values() for track in chosen)
    optional = OptionalTracks((*tracks["retain"], *tracks["holdout"]) if skip_unreadable else ())
    subject = EvaluationInputs(models, {}, notes, about)
    subject.take(models["unlearned"], _hear(models["unlearned"], tracks, reporter, optional))
    subject.notes += left_out(optional.lost)
    return subject


def _hear(
    backend: Backend,
    sets: Mapping[ClipSet, Sequence[Track]],
    reporter: Reporter | None,
    optional: OptionalTracks | None = None,
) -> dict[ClipSet, list[EncodedTrack]]:
    listener, told = TrackEncoder(backend, TensorCache()), reporter or Reporter()
    everything = [track for tracks in sets.values() for track in tracks]

    def progress(done: int, of: int) -> None:
        told.progress("hear tracks", done, of)

    heard = listener.encode(everything, progress, skip=(optional or OptionalTracks(())).skip)
    by_track = {id(one.track): one for one in heard}
    return {name: [by_track[id(track)] for track in tracks if id(track) in by_track] for name, tracks in sets.items()}
