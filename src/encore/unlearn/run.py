"""`encore forget`: from a list of tracks to a run folder with the unlearned model."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file

from encore import distributed
from encore.api import Backend, Clip, Method
from encore.data.encode import TrackEncoder, narrow
from encore.data.encoded_tracks import EncodedTrack, StreamedTracks, clips_of
from encore.data.open_files import file_sha256
from encore.data.shards import ShardTracks
from encore.data.splits import SELF, OptionalTracks, Tracks, left_out, open_catalog, select
from encore.data.tracks import Track
from encore.errors import GateError, UsageError
from encore.plugins import backends, distributions
from encore.report.card import model_card
from encore.reporter import Reporter
from encore.settings import cache_folder
from encore.stop_signals import stop_on_signals
from encore.store import schemas
from encore.store.dates import utc_now
from encore.store.environment import pick_device, pick_precision, reset_peak_bytes
from encore.store.generated_retain import load_self_retain
from encore.store.model_name import model_sha256, open_model
from encore.store.run_folder import (
    CHECKPOINTS,
    KEEP_CHECKPOINTS,
    Checkpoints,
    RunFolder,
    check_occupied,
    preflight,
    read_json,
)
from encore.tensor_cache import TensorCache
from encore.text import counted, printable
from encore.unlearn.adapter import RATES
from encore.unlearn.config import ForgetConfig
from encore.unlearn.engine import Engine
from encore.unlearn.learned_offsets import sentences, with_learned_pieces
from encore.unlearn.records import (
    check_other_run,
    listed_places,
    memory_json,
    memory_settings,
    request_json,
    run_json,
    track_json,
)
from encore.unlearn.sampling import Clips
from encore.unlearn.self_retain import generate_retain
from encore.unlearn.setup import (
    check_method,
    check_settings,
    complete_run,
    costs_json,
    disk_bytes,
    engine_settings,
    hardware_json,
    is_complete,
    recorder,
    run_folder,
    settle,
    with_adapter_origin,
    write_model,
)
from encore.unlearn.tracking import tracking
from encore.unlearn.verbatim_check import VerbatimCheck

LARGE, LARGE_LR = 50_000_000, 1e-4  # warn of a larger learning rate on a model of more weights


@dataclass
class Prepared:
    """A run ready to start; only the cache has been written so far.

    `seconds` are durations of preparation by stage; `calibration` is the record of `encore.unlearn.calibrate`;
    `adapter_rates` are the learning rates that an adapter changed, by option.
    """

    request: ForgetConfig
    tracks: Tracks
    backend: Backend
    method: Method
    precision: Literal["fp32", "bf16"]
    forget: list[EncodedTrack]
    retain: Sequence[EncodedTrack]
    holdout: list[EncodedTrack]
    seconds: Mapping[str, float]
    notes: list[str] = field(default_factory=list)
    calibration: dict[str, Any] | None = None
    checkpoint_activations: bool = False
    adapter_rates: Mapping[str, float] = field(default_factory=dict)

    def listed(self) -> dict[str, Any]:
        """The tracks as recorded in `request.json`.

        Of a large retain set in shards some tracks are listed (`listed_places`); the hash of the shards and the number
        of tracks stand for all.
        """
        sets = {"forget": self.forget, "retain": self.retain, "holdout": self.holdout}
        whole = {}
        if isinstance(self.retain, StreamedTracks):
            sets["retain"] = [self.retain.facts(place) for place in listed_places(len(self.retain))]
            content = self.retain.tracks.shards.about["content"]
            whole = {"retain_shards": {"sha256": content, "tracks": len(self.retain)}}
        return {
            **{name: [track_json(encoded) for encoded in tracks] for name, tracks in sets.items()},
            **whole,
            "missing": [{"line": m.line, "text": printable(m.source), "why": m.reason} for m in self.tracks.missing],
            "skipped": list(self.tracks.skipped),
            "retain_source": self.tracks.retain_source,
        }

    def disk_bytes(self) -> int:
        """Largest size of the run folder: the model, and checkpoints of weights, best weights and two moments.

        Checkpoints of an adaptive run also hold the weight average.
        """
        checkpoints = KEEP_CHECKPOINTS + 1  # one more while it is written
        if self.request.resume:
            checkpoints = 1
        copies = 5 if getattr(self.method.options, "schedule", None) == "adaptive" else 4
        return disk_bytes(self.request, self.backend, checkpoints=checkpoints, copies=copies)


def check_unusable(request: ForgetConfig) -> None:
    """Check device, precision, model family, adapter and run folder, before any track is searched for.

    Raises:
        UsageError: one of them can't be used, or there is nothing to resume.
        EncoreError: another process uses the run folder.
    """
    check_settings(request)
    if distributed.rank() == 0:
        check_occupied(request.out, resume=request.resume)


def finished(request: ForgetConfig, method: Method) -> dict[str, Any] | None:
    """As `complete_run`, before the model and the tracks are known."""
    if not is_complete(request):
        return None
    pick_precision(request.precision, pick_device(request.device))
    options = method.options.model_dump(mode="json")
    if request.lora is not None:  # the rates that were not given follow from the model, which is not loaded
        recorded = read_json(request.out / "request.json", schemas.Request).get("options", {})
        free = recorded.keys() & RATES - method.options.model_fields_set
        options |= {name: recorded[name] for name in free}
    settings = {"method": method.spec.name, "seed": request.seed, "options": options, **memory_settings(request)}
    if request.precision != "auto":  # what auto chose follows from the model as well
        settings["precision"] = request.precision
    return complete_run(request, settings)


def choose(request: ForgetConfig, reporter: Reporter | None = None) -> Tracks:
    """Read the list and find every track; see `select`."""
    catalog = open_catalog(request.catalog, request.model, request.roots)
    with distributed.first_rank_first():  # the others find facts and fingerprints of the files in the cache
        return select(
            request.tracks, catalog=catalog, retain=request.retain, holdout=request.holdout, roots=request.roots,
            allow_missing=request.allow_missing, drop_duplicates=request.drop_duplicates,
            skip_unreadable=request.skip_unreadable, progress=(reporter or Reporter()).progress,
        )  # fmt: skip


def prepare(
    request: ForgetConfig, method: Method, reporter: Reporter | None = None, *, tracks: Tracks | None = None
) -> Prepared:
    """Load the model and encode every track; all checks are done here, before anything is written.

    Args:
        request: the configuration.
        method: has not run yet.
        reporter: receives progress.
        tracks: output of `choose`, where it was called before.

    Raises:
        UsageError: the configuration can't be run.
        InputError: the model or a track can't be used.
        EncoreError: another process uses the run folder, or it does not fit on the disk.
    """
    reporter = reporter or Reporter()
    check_unusable(request)
    device = pick_device(request.device)
    tracks = tracks or choose(request, reporter)
    _refuse_unmet(method, tracks, request)
    check_method(request, method)
    family = backends().resolve(request.backend)
    if why := family.unmet(method.spec.needs):
        default = family.default_method()
        raise UsageError(
            f"method {method.spec.name!r} {why}",
            f"the default for this model: --method {default}"
            if method.spec.name != default
            else "choose another --method: encore methods lists what each needs",
        )
    started = time.monotonic()
    reporter.progress("load model", 0, 1)
    backend = open_model(family, request.model, revision=request.revision, offline=request.offline, device=device)
    if "hidden" in method.spec.needs:
        len(backend.blocks)  # raises where this model's are of different widths
    setup = settle(request, method, backend)
    method = setup.method
    opened = time.monotonic()
    streamed = tracks.retain if isinstance(tracks.retain, ShardTracks) else None
    everything = (*tracks.forget, *(tracks.retain if streamed is None else ()), *tracks.holdout)
    encoder = TrackEncoder(backend, TensorCache())
    optional = OptionalTracks(everything[len(tracks.forget) :] if request.skip_unreadable else ())

    def progress(done: int, of: int) -> None:
        reporter.progress("encode tracks", done, of)

    with distributed.first_rank_first():  # the others find the codes in the cache
        by_track = {id(encoded.track): encoded for encoded in encoder.encode(everything, progress, skip=optional.skip)}

        def encoded(chosen: Sequence[Track]) -> list[EncodedTrack]:
            return [by_track[id(track)] for track in chosen if id(track) in by_track]

        forget, holdout = encoded(tracks.forget), encoded(tracks.holdout)
        retain = encoded(tracks.retain) if streamed is None else encoder.stream(streamed)
        encoded_at = time.monotonic()
        forget = with_learned_pieces(encoder, forget, holdout, reporter)
    if optional.lost:
        tracks = replace(
            tracks, retain=tuple(e.track for e in retain) if streamed is None else streamed,
            holdout=tuple(e.track for e in holdout),
            skipped=(*tracks.skipped, *(error.message for error in optional.lost)),
            notes=(*tracks.notes, *left_out(optional.lost)),
        )  # fmt: skip
        _refuse_unmet(method, tracks, request)
    prepared = Prepared(
        request, tracks, backend, method, setup.precision, forget, retain, holdout,
        {"load": opened - started, "encode": encoded_at - opened, "search": time.monotonic() - encoded_at},
        [*tracks.notes, *sentences(forget, backend.sample_rate), *setup.notes],
        checkpoint_activations=setup.checkpoint_activations, adapter_rates=setup.adapter_rates,
    )  # fmt: skip
    if distributed.rank() == 0:
        preflight(request.out, prepared.disk_bytes())
    if not tracks.holdout:
        why = "there is no holdout" if request.holdout is None else "no track of --holdout is left"
        prepared.notes.append(
            f"{why}, so drift on held-out music is not measured, and forget tracks have no target NLL unless the "
            "method computes one; give a --holdout LIST of other tracks for both"
        )
    weights = sum(weight.numel() for weight in backend.module.parameters())
    if request.lora is None and weights > LARGE and (getattr(method.options, "lr", None) or 0.0) > LARGE_LR:
        prepared.notes.append(
            f"lr {method.options.lr:g} was tuned on a model of 2 million weights, and this one has {weights:,}: "  # type: ignore[attr-defined]
            f"it is likely too high; start with --lr {LARGE_LR / 2:g}"
        )
    return prepared


def _refuse_unmet(method: Method, tracks: Tracks, request: ForgetConfig) -> None:
    name, needs = method.spec.name, method.spec.needs
    if "retain" in needs and not tracks.retain and request.retain != SELF:
        given = request.retain is not None or request.catalog is not None
        raise UsageError(
            f"method {name!r} needs tracks to keep, and there are none"
            + (f" in {tracks.retain_source}: all are to be forgotten, held out or left out" if given else ""),
            "give --retain LIST with other tracks, or --retain self"
            if given
            else "give --retain LIST, --catalog FILE, or --retain self",
        )
    if "holdout" in needs and not tracks.holdout:
        given = request.holdout is not None
        raise UsageError(
            f"method {name!r} needs held-out tracks, and there are none" + (" left of --holdout" if given else ""),
            "give a --holdout LIST of other tracks" if given else "give --holdout LIST",
        )


def forget(
    prepared: Prepared, origins: Mapping[str, str], reporter: Reporter | None = None, *, tracker: str | None = None
) -> dict[str, Any]:
    """Run the method and write the run folder.

    Args:
        prepared: the run.
        origins: source of each flag and option ("cli", "config", "env"), for the record.
        reporter: receives progress and notes.
        tracker: name of the experiment tracker that receives the figures; see `encore.unlearn.tracking`.

    Returns:
        The contents of `run.json`.

    Raises:
        EncoreError: see `Engine.run`. The folder then has the last good checkpoint, and no `run.json`.
        Interrupted: a signal came; a checkpoint of that moment is saved.
    """
    reporter = reporter or Reporter()
    request, backend, method = prepared.request, prepared.backend, prepared.method
    definition = request_json(
        request, method, model_sha256=model_sha256(backend), precision=prepared.precision, tracks=prepared.listed(),
    )  # fmt: skip
    identity = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()
    reset_peak_bytes(str(backend.device))
    with run_folder(request) as folder, stop_on_signals() as stop, ExitStack() as stack:
        if request.resume:
            check_other_run(request.out / "request.json", definition)
        elif folder:
            details = {"folder": str(folder.path.resolve()), **_request_details(request)}
            if prepared.calibration:
                details["calibration"] = prepared.calibration
            folder.write_json("request.json", {**details, **definition})
        track = stack.enter_context(
            tracking(
                tracker if folder else None,
                request.out,
                _hyperparameters(prepared),
                reporter.note,
                offline=request.offline,
            )
        )
        started = time.monotonic()
        with distributed.first_rank_first():
            retain = _retain_clips(prepared, folder, reporter)
        clips = Clips(clips_of(prepared.forget), retain, clips_of(prepared.holdout))
        stop.check()

        record = recorder(folder, reporter, "forget", started, track)
        checkpoints = Checkpoints(request.out / CHECKPOINTS, identity, reporter.note)
        engine = Engine(
            backend, clips, checkpoints=checkpoints, fisher_folder=cache_folder() / "fisher", record=record, stop=stop,
            started=started, **engine_settings(request, prepared.precision, prepared.checkpoint_activations),
        )  # fmt: skip
        if known := engine.monitor.memorised_holdout:
            prepared.notes.append(
                f"{len(known)} of {counted(len(prepared.holdout), 'held-out track')} are memorised by the model, such "
                f"as {printable(known[0])}: targets follow from held-out music, so name tracks that the model was not "
                "trained on"
            )
            reporter.note(prepared.notes[-1])
        check = VerbatimCheck(backend, engine.monitor.memorised, clips.forget)
        outcome = engine.run(method)
        trained = time.monotonic()
        reporter.progress("generate", 0, 1)
        verbatim = check.after()
        if check.failed:
            prepared.notes.append(f"generations were not checked: {check.failed}")
            reporter.note(prepared.notes[-1])
        checked = time.monotonic()
        if folder is None:
            return distributed.first({})  # what rank 0 writes
        reporter.progress("save", 0, 1)
        origins = with_adapter_origin(origins, prepared.adapter_rates)
        run = run_json(
            definition, unit=backend.unit, flags=request.flags(), origins=origins, outcome=outcome,
            notes=prepared.notes, verbatim=verbatim,
        )  # fmt: skip
        run["tracks"]["listed"] = prepared.tracks.listed or len(prepared.tracks.forget)
        run["tracks"]["retain_watched"] = engine.monitor.watched
        run["tracks"]["retain_classified"] = engine.monitor.classified
        if prepared.calibration:
            run["calibration"] = prepared.calibration
        run["memory"] = memory_json(engine)
        run["library"] = backend.library_name
        run["hardware"] = hardware_json(str(backend.device))
        run["distributions"] = distributions(methods=[method.spec.name], backends=[request.backend])
        run["request_sha256"] = file_sha256(folder.path / "request.json")
        write_model(folder, request, engine, model_card(run))
        run["unlearned_sha256"] = model_sha256(backend)
        forgot = outcome.earlier_seconds + trained - started
        saved = time.monotonic() - checked
        seconds = {**prepared.seconds, "forget": forgot, "check": checked - trained, "save": saved}
        run |= costs_json("forget", seconds, outcome, str(backend.device))
        folder.write_json("run.json", run)
        checkpoints.discard()
    return distributed.first(run)


def _hyperparameters(prepared: Prepared) -> dict[str, Any]:
    """What a tracker shows of a run: no path of a model, no track's name."""
    model, method = prepared.request.model, prepared.method
    sizes = {f"{name}_tracks": len(getattr(prepared, name)) for name in ("forget", "retain", "holdout")}
    return {
        "method": method.spec.name, "model": Path(model).name if Path(model).exists() else model,
        "seed": prepared.request.seed, "precision": prepared.precision, **sizes,
        **method.options.model_dump(mode="json"),
    }  # fmt: skip


def _request_details(request: ForgetConfig) -> dict[str, Any]:
    """Requester, time, and the list's hash; not part of the run's definition."""
    listed = request.tracks if str(request.tracks) != "-" else None
    return {
        "requester": request.requester,
        "requested": request.requested,
        "begun": utc_now(),
        "list_sha256": file_sha256(Path(listed)) if listed is not None else None,
    }


def check_missed(run: Mapping[str, Any]) -> None:
    """Check a finished run against every target that needs no gold; see `encore.unlearn.gold_free_targets`.

    Args:
        run: contents of `run.json`.

    Raises:
        GateError: targets are missed; the message names each.
    """
    outcome = run["outcome"]
    missed = [target["message"] for target in outcome.get("missed", ())]
    if not missed and not outcome["collapsed"]:
        return
    summary = (
        "the model no longer generates other music as before" if outcome["collapsed"] else "the run missed its targets"
    )
    raise GateError(
        ": ".join(filter(None, (summary, "; ".join(missed)))),
        "the run is kept; try another --steps, --lr or --method, and measure it with `encore eval`",
    )


def _retain_clips(prepared: Prepared, folder: RunFolder | None, reporter: Reporter) -> Sequence[Clip]:
    if prepared.request.retain != SELF:
        return clips_of(prepared.retain)
    if folder and not (folder.path / "retain-self").exists():
        clips = generate_retain(
            prepared.backend, clips_of(prepared.forget), seed=prepared.request.seed,
            progress=lambda done, of: reporter.progress("generate retain", done, of),
        )  # fmt: skip
        with folder.staged("retain-self") as staging:
            save_file({clip.track: narrow(clip.codes).cpu() for clip in clips}, staging / "codes.safetensors")
            (staging / "captions.json").write_text(json.dumps({clip.track: clip.caption for clip in clips}))
    return load_self_retain(prepared.request.out, prepared.backend)
