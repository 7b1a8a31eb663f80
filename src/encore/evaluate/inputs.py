"""The models and clips of an evaluation, from a run folder or from flags."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor

from encore import assets
from encore.api import Backend, Clip, ClipSet, Role
from encore.data.catalog import Catalog
from encore.data.encode import TrackEncoder, recordings
from encore.data.encoded_tracks import EncodedTrack, clips_of
from encore.data.relocate import PathRelocator, listed_track
from encore.data.splits import OptionalTracks, Tracks, left_out, open_catalog, reported, retain_sets, select
from encore.data.tracks import Track
from encore.errors import InputError
from encore.plugins import backends
from encore.reporter import Reporter
from encore.store.environment import pick_device
from encore.store.generated_retain import load_self_retain
from encore.store.model_name import check_golds, model_name, model_sha256
from encore.store.run_folder import complete_run
from encore.tensor_cache import TensorCache

RETAIN_TRACKS = 32  # maximum, if the catalogue has no split "retain"


class OtherWeightsError(InputError):
    """The weights in a run's folder are not those that the run wrote."""


@dataclass
class EvaluationInputs:
    """Models, clips and their provenance.

    Args:
        models: models by role.
        clips: clips by set.
        notes: messages for the user about the models and tracks.
        track_metadata: artist and genre by track id, if known.
        recordings: functions that read a set's audio files, for sets that have files.
        encoded: the encoded tracks of each set.
    """

    models: dict[Role, Backend]
    clips: dict[ClipSet, list[Clip]]
    notes: list[str] = field(default_factory=list)
    track_metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    recordings: dict[ClipSet, Callable[[], Sequence[Tensor]]] = field(default_factory=dict)
    encoded: dict[ClipSet, list[EncodedTrack]] = field(default_factory=dict)

    def set_tracks(self, backend: Backend, encoded: dict[ClipSet, list[EncodedTrack]]) -> None:
        """Use these tracks, which were encoded by `backend`."""
        self.encoded = encoded
        self.clips = {name: list(clips_of(members)) for name, members in encoded.items()}
        self.recordings = {
            name: partial(recordings, backend, [member.track for member in members])
            for name, members in encoded.items()
            if members and all(member.track.shards is None for member in members)
        }


# -------------------------------------------------------------------------------------------------------- from a run


def from_run(
    run: Path,
    *,
    golds: Mapping[Role, str] | None = None,
    roots: Sequence[Path] = (),
    seed: int = 0,
    device: str = "auto",
    offline: bool = False,
    reporter: Reporter | None = None,
) -> EvaluationInputs:
    """Open a complete run: base and unlearned model, the tracks of its request, and the gold models.

    Args:
        golds: folders or names for "gold" and "gold2"; by default the embedded golds, if they match the forget tracks.
        roots: folders that the run's tracks, shards or base were moved to.
        seed: the evaluation's seed, so that runs of several seeds are measured on the same retain tracks.

    Raises:
        InputError: the run is not complete, a file has changed since the run, or a gold is another of the models.
    """
    device = pick_device(device)
    record, request = complete_run(run)
    try:
        tracks = {name: [listed_track(entry) for entry in request[name]] for name in ("forget", "retain", "holdout")}
        paths, model, written = (
            PathRelocator(Path(request["folder"]), run, roots),
            request["model"],
            record["unlearned_sha256"],
        )
        kind, name, revision, sha256 = (model[key] for key in ("backend", "name", "revision", "sha256"))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{run} was not written by this version of Encore: {error!r}", "run it again") from error
    inputs, golds = EvaluationInputs({}, {}), golds or {}
    retain = reported(tracks["retain"], RETAIN_TRACKS, seed)
    if retain:
        inputs.notes.append(retain_sets(tracks["retain"], retain, record.get("tracks", {}).get("retain_watched")))
    present = paths.find_all({"forget": tracks["forget"], "retain": retain, "holdout": tracks["holdout"]})

    family = backends().resolve(kind)
    base = family.load(paths.model(name), revision=revision, offline=offline, device=device)
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
    inputs.models |= {"base": base, "unlearned": unlearned}
    hashes: dict[str, str] = {"base": sha256, "unlearned": written}
    embedded = {} if golds else embedded_golds(name, tracks["forget"])
    if embedded:
        inputs.notes.append("gold and gold2 are the embedded models trained without exactly these tracks")
    for role, gold in {**golds, **embedded}.items():
        inputs.models[role] = family.load(model_name(gold), offline=offline, device=device)
        hashes[role] = model_sha256(inputs.models[role])
    check_golds(hashes)
    inputs.set_tracks(base, _encode(base, present, reporter))
    inputs.track_metadata = _metadata(track for members in present.values() for track in members)
    if (run / "retain-self").exists():
        inputs.clips["retain"] = load_self_retain(run, base)[:RETAIN_TRACKS]
        inputs.recordings.pop("retain", None)
    return inputs


def _metadata(tracks: Iterable[Track]) -> dict[str, dict[str, str]]:
    """Known artists and genres by track id."""
    fields = {track.id: {"artist": track.artist, "genre": track.meta.get("genre")} for track in tracks}
    return {name: known for name, facts in fields.items() if (known := {k: str(v) for k, v in facts.items() if v})}


def embedded_golds(model: str, forget: Sequence[Track], *, allow_subset: bool = False) -> dict[Role, str]:
    """The embedded golds if they were trained without exactly the forget tracks (or, if allowed, a superset)."""
    if model != "tiny":
        return {}
    split = {track.sha256 for track in Catalog.open(assets.CATALOG).tracks(split="forget")}
    hashes = {track.sha256 for track in forget}
    if not (hashes <= split if allow_subset else hashes == split):
        return {}
    names: dict[Role, str] = {"gold": "tiny-gold", "gold2": "tiny-gold2"}
    return {role: name for role, name in names.items() if (folder := assets.model_folder(name)) and folder.exists()}


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

    Args:
        listing: list of the forget tracks.
        others: folders or names of other models by role.
        catalog: catalogue of tracks.
        retain: the retain tracks, see `encore.data.splits.select`.
        holdout: list of the holdout tracks.
        roots: folders that relative paths are searched in.
        skip_unreadable: skip retain and holdout tracks that can't be read.
        seed: the evaluation's seed; it selects the retain tracks if there are many.

    Raises:
        InputError: a model or a track can't be used, or a gold is another of the models.
    """
    check_golds({role: model_name(name) for role, name in {**others, "unlearned": model}.items()})
    chosen = select(
        listing, catalog=open_catalog(catalog, others.get("base", model), roots), retain=retain, holdout=holdout,
        roots=roots, drop_duplicates=True, skip_unreadable=skip_unreadable,
        progress=(reporter or Reporter()).progress,
    )  # fmt: skip
    return open_inputs(
        model, chosen, others=others, backend=backend, skip_unreadable=skip_unreadable, device=device, offline=offline,
        seed=seed, reporter=reporter,
    )  # fmt: skip


def open_inputs(
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
    """Open models on selected tracks; arguments as in `from_flags`, but that `model` may be one of the golds.

    Args:
        chosen: the selected tracks.
        others: folders or names of other models by role.
        skip_unreadable: skip retain and holdout tracks that can't be read.
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
    if golds := {names[role] for role in ("gold", "gold2") if role in names}:
        check_golds(
            {
                role: model_sha256(backend)
                for role, backend in models.items()
                if role != "unlearned" or model not in golds
            }
        )
    retain_tracks = reported(chosen.retain, RETAIN_TRACKS, seed)
    notes = [*chosen.notes, *([retain_sets(chosen.retain, retain_tracks, None)] if retain_tracks else [])]
    tracks: dict[ClipSet, Sequence[Track]] = {
        "forget": chosen.forget, "retain": retain_tracks, "holdout": chosen.holdout,
    }  # fmt: skip
    optional = OptionalTracks((*tracks["retain"], *tracks["holdout"]) if skip_unreadable else ())
    inputs = EvaluationInputs(models, {}, notes, _metadata(track for members in tracks.values() for track in members))
    inputs.set_tracks(models["unlearned"], _encode(models["unlearned"], tracks, reporter, optional))
    inputs.notes += left_out(optional.lost)
    return inputs


def _encode(
    backend: Backend,
    sets: Mapping[ClipSet, Sequence[Track]],
    reporter: Reporter | None,
    optional: OptionalTracks | None = None,
) -> dict[ClipSet, list[EncodedTrack]]:
    encoded = TrackEncoder(backend, TensorCache()).encode(
        [track for tracks in sets.values() for track in tracks],
        partial((reporter or Reporter()).progress, "encode tracks"),
        skip=(optional or OptionalTracks(())).skip,
    )
    by_track = {id(member.track): member for member in encoded}
    return {name: [by_track[id(track)] for track in tracks if id(track) in by_track] for name, tracks in sets.items()}
