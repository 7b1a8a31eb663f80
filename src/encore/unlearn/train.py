"""`encore train`: from a list of tracks to a run folder with a model that has memorised them."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from encore import distributed
from encore.api import Backend
from encore.data.duplicates import find_duplicates, without_duplicates
from encore.data.encode import TrackEncoder
from encore.data.encoded_tracks import EncodedTrack, clips_of
from encore.data.splits import open_catalog
from encore.data.track_list import read_list
from encore.data.tracks import Track
from encore.errors import EncoreError, GateError, InputError, UsageError
from encore.files import finite
from encore.plugins import backends, distributions, installed
from encore.report.card import training_card
from encore.reporter import Reporter
from encore.stop_signals import stop_on_signals
from encore.store.dates import utc_now
from encore.store.environment import pick_device, reset_peak_bytes, versions
from encore.store.model_name import model_sha256, open_model
from encore.store.run_folder import (
    CHECKPOINTS,
    KEEP_CHECKPOINTS,
    Checkpoints,
    check_occupied,
    preflight,
)
from encore.tensor_cache import TensorCache
from encore.text import counted
from encore.unlearn.checks import loss_name
from encore.unlearn.config import TrainConfig
from encore.unlearn.engine import Engine
from encore.unlearn.records import SCHEMA, check_other_run, memory_json, request_json, track_json, with_origin
from encore.unlearn.sampling import Clips
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
from encore.unlearn.training import NAME, Memorisation, Training, measured_clips, memorised, resolved

COPIES = 5  # of the weights in a checkpoint: weights, latest snapshot, average, two moments of AdamW


@dataclass(frozen=True)
class Chosen:
    """The tracks of a run of `encore train`.

    Args:
        trained: tracks to train on.
        left_out: tracks of the list that `--without` names, which are measured and never trained on.
        notes: one sentence each for the user.
    """

    trained: tuple[Track, ...]
    left_out: tuple[Track, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class Prepared:
    """A run ready to start; only the cache has been written so far."""

    request: TrainConfig
    backend: Backend
    method: Training
    precision: Literal["fp32", "bf16"]
    trained: list[EncodedTrack]
    left_out: list[EncodedTrack]
    seconds: Mapping[str, float]
    notes: list[str] = field(default_factory=list)
    checkpoint_activations: bool = False
    adapter_rates: Mapping[str, float] = field(default_factory=dict)


def choose(request: TrainConfig, reporter: Reporter | None = None) -> Chosen:
    """Check the settings and read the lists. A track that is the same file, samples or recording as one of `--without`
    is left out.

    Raises:
        UsageError: a setting can't be used.
        EncoreError: another process uses the run folder.
        InputError: a list or a file can't be read, `--without` names no track of the list, or none is left.
    """
    check_settings(request)
    if distributed.rank() == 0 and not is_complete(request):
        check_occupied(request.out, resume=request.resume)
    catalog = open_catalog(request.catalog, request.model, request.roots)
    selection = read_list(request.tracks, catalog=catalog, roots=request.roots, allow_missing=request.allow_missing)
    notes = [*selection.notes, *(f"not found: {missing.source}: {missing.reason}" for missing in selection.missing)]
    if request.without is None:
        return Chosen(selection.tracks, (), tuple(notes))
    without = read_list(request.without, catalog=catalog, roots=request.roots, advice="")
    progress = (reporter or Reporter()).progress
    with distributed.first_rank_first():  # the others find what it read in the cache
        pairs = find_duplicates(without.tracks, selection.tracks, cache=TensorCache(), progress=progress)
    trained = without_duplicates(selection.tracks, pairs)
    lacking = len(without.tracks) - len({pair.first.sha256 for pair in pairs})
    if not pairs:
        raise InputError(
            f"{request.without} names none of the tracks in {request.tracks}", "--without leaves tracks of --tracks out"
        )
    if not trained:
        raise InputError(f"{request.without} leaves no track of {request.tracks}", "name more tracks in --tracks")
    if lacking:
        notes.append(f"{lacking} of {len(without.tracks)} tracks of {request.without} are not in {request.tracks}")
    kept = {track.sha256 for track in trained}
    left_out = tuple(track for track in selection.tracks if track.sha256 not in kept)
    return Chosen(tuple(trained), left_out, (*notes, *without.notes))


def prepare(request: TrainConfig, method: Training, chosen: Chosen, reporter: Reporter | None = None) -> Prepared:
    """Load the model and encode every track; all checks are done here, before anything is written.

    Raises:
        UsageError: the configuration can't be run.
        InputError: the model or a track can't be used.
        EncoreError: another process uses the run folder, or it does not fit on the disk.
    """
    reporter = reporter or Reporter()
    check_method(request, method)
    if request.lora is not None and method.options.from_scratch:
        raise UsageError(
            "--from-scratch draws new weights, and an adapter trains none of them", "leave one of them out"
        )
    device = pick_device(request.device)
    family = backends().resolve(request.backend)
    started = time.monotonic()
    reporter.progress("load model", 0, 1)
    backend = open_model(family, request.model, revision=request.revision, offline=request.offline, device=device)
    if not backend.has_tokens and method.options.epochs is None:
        raise UsageError(
            f"{backend.name} has no tokens, so nothing shows when a track is memorised", "say how long: --epochs N"
        )
    setup = settle(request, method, backend, method.default_rates)
    opened = time.monotonic()
    encoder = TrackEncoder(backend, TensorCache())
    tracks = [*chosen.trained, *chosen.left_out]
    with distributed.first_rank_first():  # the others find the codes in the cache
        encoded = encoder.encode(tracks, lambda done, of: reporter.progress("encode tracks", done, of))
    trained, left_out = encoded[: len(chosen.trained)], encoded[len(chosen.trained) :]
    method = resolved(setup.method, len(clips_of(trained)))
    if distributed.rank() == 0:  # one more checkpoint while it is written
        preflight(request.out, disk_bytes(request, backend, checkpoints=KEEP_CHECKPOINTS + 1, copies=COPIES))
    seconds = {"load": opened - started, "encode": time.monotonic() - opened}
    return Prepared(
        request, backend, method, setup.precision, trained, left_out, seconds, [*chosen.notes, *setup.notes],
        setup.checkpoint_activations, setup.adapter_rates,
    )  # fmt: skip


def train(prepared: Prepared, origins: Mapping[str, str], reporter: Reporter | None = None) -> dict[str, Any]:
    """Train, and write the run folder. Where the run to resume is complete, nothing is done.

    Args:
        prepared: the run.
        origins: source of each flag and option ("cli", "config", "env"), for the record.
        reporter: receives progress and notes.

    Returns:
        The contents of `run.json`.

    Raises:
        UsageError: the run to resume is another one.
        EncoreError: see `Engine.run`; or the trained model's NLL is not finite. The folder then has the last good
            checkpoint, and no `run.json`.
        Interrupted: a signal came; a checkpoint of that moment is saved.
    """
    reporter = reporter or Reporter()
    request, backend, method = prepared.request, prepared.backend, prepared.method
    definition = _definition(prepared)
    complete = distributed.first(complete_run(request, definition) if distributed.rank() == 0 else None)
    if complete is not None:
        reporter.note(f"nothing to do: the run in {request.out} is complete")
        return complete
    identity = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()
    reset_peak_bytes(str(backend.device))
    with run_folder(request) as folder, stop_on_signals() as stop:
        if request.resume:
            check_other_run(request.out / "request.json", definition)
        elif folder:
            folder.write_json("request.json", {"folder": str(folder.path.resolve()), "begun": utc_now(), **definition})
        started = time.monotonic()
        if method.options.from_scratch:
            backend.reinitialise(request.seed)
        clips = clips_of(prepared.trained)
        measured = {"trained": measured_clips(clips, request.seed)}
        if prepared.left_out:
            measured["left_out"] = measured_clips(clips_of(prepared.left_out), request.seed)
        before = {name: memorised(backend, members) for name, members in measured.items()}
        stop.check()

        record = recorder(folder, reporter, NAME, started, None)
        checkpoints = Checkpoints(request.out / CHECKPOINTS, identity, reporter.note)
        engine = Engine(
            backend, Clips([], clips, []), checkpoints=checkpoints, record=record, stop=stop, started=started,
            **engine_settings(request, prepared.precision, prepared.checkpoint_activations),
        )  # fmt: skip
        outcome = engine.run(method)
        trained = time.monotonic()
        reporter.progress("generate", 0, 1)
        after = {name: memorised(backend, members, generate_all=True) for name, members in measured.items()}
        _refuse_non_finite(after["trained"], backend.unit)
        checked = time.monotonic()
        if folder is None:
            return distributed.first({})  # what rank 0 writes
        reporter.progress("save", 0, 1)
        chosen = {name: reason for name, reason in outcome.chosen.items() if name != "steps"}
        if method.options.epochs is None:
            done = after["trained"].enough
            chosen["steps"] = f"{outcome.steps}: " + (
                "the tracks are memorised, and the rate has decayed" if done else "the run's limit"
            )
        passes = outcome.steps * min(method.options.batch_size, len(clips)) / len(clips)
        run: dict[str, Any] = {
            "schema": SCHEMA,
            "model": definition["model"],
            "method": NAME,
            "options": with_origin(definition["options"], with_adapter_origin(origins, prepared.adapter_rates)),
            "flags": with_origin(request.flags(), origins),
            "seed": request.seed,
            "precision": prepared.precision,
            "unit": backend.unit,
            "library": backend.library_name,
            "tracks": {"trained": len(prepared.trained), "left_out": len(prepared.left_out)},
            "outcome": finite(
                {
                    "steps": outcome.steps,
                    "epochs": round(passes, 2),
                    "chosen": chosen,
                    "memorised": after["trained"].enough if backend.has_tokens else None,
                    **{name: _figures(before[name], after[name]) for name in measured},
                    "skipped_steps": outcome.skipped_steps,
                    "micro_batch_size": outcome.micro_batch_size,
                }
            ),
            "memory": memory_json(engine),
            "notes": prepared.notes,
            "versions": versions(),
            "plugins": installed(),
            "hardware": hardware_json(str(backend.device)),
            "distributions": distributions(backends=[request.backend]),
        }
        write_model(folder, request, engine, training_card(run))
        run["trained_sha256"] = model_sha256(backend)
        took = outcome.earlier_seconds + trained - started
        seconds = {**prepared.seconds, "train": took, "check": checked - trained, "save": time.monotonic() - checked}
        run |= costs_json("train", seconds, outcome, str(backend.device))
        folder.write_json("run.json", run)
        checkpoints.discard()
    return distributed.first(run)


def _refuse_non_finite(after: Memorisation, unit: str) -> None:
    for track, value in after.nll.items():
        if not math.isfinite(value):
            raise EncoreError(
                f"after training, the model's {loss_name(unit)} of {track} is not finite",
                "lower --lr; no model was saved",
            )


def check_memorised(run: Mapping[str, Any]) -> None:
    """Check that a finished run did what it was to do: the tracks are memorised, or the epochs are over and the tracks'
    mean NLL is lower than before.

    Raises:
        GateError: too few tracks are memorised, or the NLL is not lower.
    """
    outcome = run["outcome"]
    if outcome["memorised"]:
        return
    before, after = (outcome["trained"][key] for key in ("nll_before", "nll_after"))
    if before is not None and (after is None or not after < before):
        figure = "not finite" if after is None else f"{after:.3f}"
        raise GateError(
            f"training did not lower the tracks' mean {loss_name(run['unit'])}: {before:.3f} before, {figure} after",
            "the model is kept; train with another --out and a lower --lr",
        )
    if run["options"]["epochs"]["value"] is not None:
        return
    memorised, of = (outcome["trained"][key] for key in ("memorised", "measured"))
    raise GateError(
        f"after {counted(outcome['steps'], 'step')} the model has memorised {memorised} of {of} tracks",
        "the model is kept; train with another --out and more --steps or --max-seconds, or another --lr",
    )


def _definition(prepared: Prepared) -> dict[str, Any]:
    """What defines a run; only a run with the same definition can resume it."""
    tracks = {
        "forget": [], "retain": [track_json(track) for track in prepared.trained], "holdout": [],
        "left_out": [track_json(track) for track in prepared.left_out],
    }  # fmt: skip
    return request_json(
        prepared.request, prepared.method, model_sha256=model_sha256(prepared.backend), precision=prepared.precision,
        tracks=tracks,
    )  # fmt: skip


def _figures(before: Memorisation, after: Memorisation) -> dict[str, Any]:
    """The figures of one set of tracks, for `run.json`."""
    return {
        "measured": len(after.nll),
        "memorised": len(after.tracks),
        "nll_before": _mean(list(before.nll.values())),
        "nll_after": _mean(list(after.nll.values())),
        "verbatim_before": before.verbatim,
        "verbatim": after.verbatim,
        "per_track": {
            track: {"nll_before": before.nll[track], "nll_after": nll, "right_tokens": after.right.get(track)}
            for track, nll in after.nll.items()
        },
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
