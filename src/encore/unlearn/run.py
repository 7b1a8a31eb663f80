"""`encore forget`: from a list of tracks to a run folder that holds a model without them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from encore.api import Backend, Clip, Method
from encore.cache import TensorCache
from encore.data.encode import EncodedTrack, TrackEncoder, clips_of, narrow
from encore.data.open_files import file_sha256
from encore.data.splits import SELF, Expendable, Tracks, left_out, open_catalog, select
from encore.errors import GateError, UsageError
from encore.plugins import backends, distributions
from encore.report.card import model_card
from encore.reporter import Reporter
from encore.settings import cache_folder
from encore.signals import stop_on_signals
from encore.store import schemas
from encore.store.dates import utc_now
from encore.store.environment import hardware, peak_bytes, pick_device, pick_precision, reset_peak_bytes
from encore.store.model_name import model_name, model_sha256
from encore.store.run_folder import (
    CHECKPOINTS,
    KEEP_CHECKPOINTS,
    Checkpoints,
    RunFolder,
    check_occupied,
    locked,
    preflight,
    read_json,
)
from encore.store.self_retain import load_self_retain
from encore.text import printable
from encore.unlearn.config import ForgetConfig
from encore.unlearn.engine import Clips, Engine
from encore.unlearn.learned_offsets import sentences, with_known_pieces
from encore.unlearn.records import check_other_run, request_json, run_json, track_json
from encore.unlearn.self_retain import play_retain
from encore.unlearn.verbatim_check import VerbatimCheck

LARGE, LARGE_LR = 50_000_000, 1e-4  # from how many weights on which learning rate is warned of
GIVEN = frozenset({"retain", "holdout", "reference", "logits", "fisher"})  # needs of a method that a run can meet


@dataclass
class Prepared:
    """A run ready to start: nothing has been written yet but the cache.

    `calibration` is what `encore.unlearn.calibrate.calibrate` found, for the record.
    """

    request: ForgetConfig
    tracks: Tracks
    backend: Backend
    method: Method
    precision: Literal["fp32", "bf16"]
    forget: list[EncodedTrack]
    retain: list[EncodedTrack]
    holdout: list[EncodedTrack]
    seconds: Mapping[str, float]
    notes: list[str] = field(default_factory=list)
    calibration: dict[str, Any] | None = None

    def listed(self) -> dict[str, Any]:
        """The tracks as `request.json` keeps them."""
        sets = {"forget": self.forget, "retain": self.retain, "holdout": self.holdout}
        return {
            **{name: [track_json(heard) for heard in tracks] for name, tracks in sets.items()},
            "missing": [{"line": m.line, "text": printable(m.source), "why": m.reason} for m in self.tracks.missing],
            "skipped": list(self.tracks.skipped),
            "retain_source": self.tracks.retain_source,
        }

    def disk_bytes(self) -> int:
        """What the run folder takes at most: the model, and checkpoints of weights, best weights and two moments.

        An adaptive run's checkpoints have the mean of its weights too.
        """
        weights = _bytes(self.backend.module)
        checkpoints = KEEP_CHECKPOINTS + 1  # one more while it is written
        if self.request.resume:
            checkpoints = 1
        copies = 5 if getattr(self.method.options, "schedule", None) == "adaptive" else 4
        return (copies * checkpoints + 1) * weights + sum(map(_bytes, self.backend.frozen().values()))


def check_unusable(request: ForgetConfig) -> None:
    """Refuse what can be refused before a track is looked for: device, precision, model family, the run folder.

    Raises:
        UsageError: one of them can't be used, or there is nothing to resume.
        EncoreError: another process works on the run folder.
    """
    pick_precision(request.precision, pick_device(request.device))
    backends().get(request.backend)
    check_occupied(request.out, resume=request.resume)


def finished(request: ForgetConfig, method: Method) -> dict[str, Any] | None:
    """What `run.json` holds of a run that was to be resumed and is complete; None where there is something to do.

    What a process left behind that was killed at the very end is removed.

    Raises:
        UsageError: it is the run of another method, seed or options. InputError: a file of it can't be read.
        EncoreError: another process works on the folder.
    """
    if not (request.resume and (request.out / "run.json").exists()):
        return None
    precision = pick_precision(request.precision, pick_device(request.device))
    with locked(request.out):
        run: dict[str, Any] = read_json(request.out / "run.json", schemas.Run)
        settings = {"seed": request.seed, "options": method.options.model_dump(mode="json"), "precision": precision}
        check_other_run(request.out / "request.json", {"method": method.spec.name, **settings})
    return run


def choose(request: ForgetConfig, reporter: Reporter | None = None) -> Tracks:
    """Read the list and find every track; see `select`."""
    catalog = open_catalog(request.catalog, request.model, request.roots)
    return select(
        request.tracks, catalog=catalog, retain=request.retain, holdout=request.holdout, roots=request.roots,
        allow_missing=request.allow_missing, drop_duplicates=request.drop_duplicates,
        skip_unreadable=request.skip_unreadable, progress=(reporter or Reporter()).progress,
    )  # fmt: skip


def prepare(
    request: ForgetConfig, method: Method, reporter: Reporter | None = None, *, tracks: Tracks | None = None
) -> Prepared:
    """Open the model and hear every track; whatever can be refused is refused here, before anything is written.

    Args:
        tracks: from `choose`, where they were wanted earlier.

    Raises:
        UsageError, InputError: what was asked for can't be done, or not with these files.
        EncoreError: another process works on the run folder, or it does not fit the disk.
    """
    reporter = reporter or Reporter()
    check_unusable(request)
    device = pick_device(request.device)
    precision = pick_precision(request.precision, device)
    tracks = tracks or choose(request, reporter)
    _refuse_unmet(method, tracks, request)
    started = time.monotonic()
    reporter.progress("load model", 0, 1)
    family = backends().resolve(request.backend)
    backend = family.load(model_name(request.model), revision=request.revision, offline=request.offline, device=device)
    if "logits" in method.spec.needs and not backend.has_tokens:
        raise UsageError(
            f"method {method.spec.name!r} needs a token model, and {backend.name} is not one",
            "npo and graddiff work on any model: --method npo",
        )
    opened = time.monotonic()
    everything = (*tracks.forget, *tracks.retain, *tracks.holdout)
    listener = TrackEncoder(backend, TensorCache())
    optional = Expendable(everything[len(tracks.forget) :] if request.skip_unreadable else ())

    def progress(done: int, of: int) -> None:
        reporter.progress("hear tracks", done, of)

    heard = {id(one.track): one for one in listener.hear(everything, progress, skip=optional.skip)}
    forget, retain, holdout = (
        [heard[id(track)] for track in chosen if id(track) in heard]
        for chosen in (tracks.forget, tracks.retain, tracks.holdout)
    )
    listened = time.monotonic()
    forget = with_known_pieces(listener, forget, holdout, reporter)
    if optional.lost:
        tracks = replace(
            tracks, retain=tuple(one.track for one in retain), holdout=tuple(one.track for one in holdout),
            skipped=(*tracks.skipped, *(error.message for error in optional.lost)),
            notes=(*tracks.notes, *left_out(optional.lost)),
        )  # fmt: skip
        _refuse_unmet(method, tracks, request)
    prepared = Prepared(
        request, tracks, backend, method, precision, forget, retain, holdout,
        {"load": opened - started, "hear": listened - opened, "search": time.monotonic() - listened},
        [*tracks.notes, *sentences(forget, backend.sample_rate)],
    )  # fmt: skip
    preflight(request.out, prepared.disk_bytes())
    if not tracks.holdout:
        prepared.notes.append(
            "there is no holdout, so no held-out level to stop at, and drift on held-out music is not judged; give "
            "--holdout LIST for both"
        )
    weights = sum(weight.numel() for weight in backend.module.parameters())
    if weights > LARGE and (getattr(method.options, "lr", None) or 0.0) > LARGE_LR:
        prepared.notes.append(
            f"lr {method.options.lr:g} was tuned on a model of 2 million weights, and this one has {weights:,}: "  # type: ignore[attr-defined]
            f"it is likely to do harm; start with --lr {LARGE_LR / 2:g}"
        )
    return prepared


def _refuse_unmet(method: Method, tracks: Tracks, request: ForgetConfig) -> None:
    name, needs = method.spec.name, method.spec.needs
    if needs - GIVEN:
        raise UsageError(f"method {name!r} needs {' and '.join(sorted(needs - GIVEN))}, which no run gives yet")
    if "retain" in needs and not tracks.retain and request.retain != SELF:
        raise UsageError(
            f"method {name!r} needs tracks to keep, and there are none",
            "give --retain LIST, --catalog FILE, or --retain self",
        )
    if "holdout" in needs and not tracks.holdout:
        raise UsageError(f"method {name!r} needs tracks never heard, and there are none", "give --holdout LIST")


def forget(prepared: Prepared, origins: Mapping[str, str], reporter: Reporter | None = None) -> dict[str, Any]:
    """Run the method and write the run folder; returns what `run.json` holds.

    Args:
        origins: where each flag and option came from ("cli", "config", "env"), for the record.

    Raises:
        EncoreError: see `Engine.run`. The folder then holds no `run.json`, and the last good checkpoint.
        Interrupted: a signal came; a checkpoint of that moment is kept.
    """
    reporter = reporter or Reporter()
    request, backend, method = prepared.request, prepared.backend, prepared.method
    asked = request_json(
        request, method, model_sha256=model_sha256(backend),
        precision=prepared.precision, tracks=prepared.listed(),
    )  # fmt: skip
    identity = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    reset_peak_bytes(str(backend.device))
    with RunFolder(request.out, resume=request.resume) as folder, stop_on_signals() as stop:
        if request.resume:
            check_other_run(folder.path / "request.json", asked)
        else:
            where = {"folder": str(folder.path.resolve())}
            found = {"calibration": prepared.calibration} if prepared.calibration else {}
            folder.write_json("request.json", {**where, **_circumstances(request), **found, **asked})
        started = time.monotonic()
        clips = Clips(clips_of(prepared.forget), _retain_clips(prepared, folder, reporter), clips_of(prepared.holdout))
        stop.check()

        def record(line: Mapping[str, Any]) -> None:
            folder.log({"seconds": round(time.monotonic() - started, 3), **line})
            if "of" in line:
                reporter.progress(line.get("stage", "forget"), line["step"], line["of"], line)

        checkpoints = Checkpoints(folder.path / CHECKPOINTS, identity, reporter.note)
        engine = Engine(
            backend, clips, seed=request.seed, precision=prepared.precision, checkpoints=checkpoints,
            fishers=cache_folder() / "fisher", record=record, stop=stop, began=started,
        )  # fmt: skip
        check = VerbatimCheck(backend, engine.monitor.memorised, clips.forget)
        outcome = engine.run(method)
        trained = time.monotonic()
        reporter.progress("generate", 0, 1)
        verbatim = check.after()
        if check.failed:
            prepared.notes.append(f"generations were not checked: {check.failed}")
            reporter.note(prepared.notes[-1])
        checked = time.monotonic()
        reporter.progress("save", 0, 1)
        run = run_json(
            asked, unit=backend.unit, flags=request.flags(), origins=origins, outcome=outcome, notes=prepared.notes,
            verbatim=verbatim,
        )  # fmt: skip
        run["tracks"]["listed"] = prepared.tracks.listed or len(prepared.tracks.forget)
        run["tracks"]["retain_watched"] = engine.monitor.watched
        run["tracks"]["retain_classified"] = engine.monitor.classified
        if prepared.calibration:
            run["calibration"] = prepared.calibration
        run["library"] = backend.library_name
        run["hardware"] = hardware(str(backend.device))
        run["distributions"] = distributions(methods=[method.spec.name], backends=[request.backend])
        run["request_sha256"] = file_sha256(folder.path / "request.json")
        with folder.staged("model") as staging:
            backend.save(staging)
            (staging / "README.md").write_text(model_card(run), encoding="utf-8")
        run["unlearned_sha256"] = model_sha256(backend)
        forgot = outcome.earlier_seconds + trained - started
        saved = time.monotonic() - checked
        seconds = {**prepared.seconds, "forget": forgot, "check": checked - trained, "save": saved}
        run["timings"] = {name: round(value, 3) for name, value in seconds.items()}
        run["cost"] = {
            "seconds": run["timings"]["forget"],
            "peak_bytes": peak_bytes(str(backend.device)),
            "tokens_per_second": round(outcome.tokens / seconds["forget"], 1),
        }
        run["finished"] = utc_now()
        folder.write_json("run.json", run)
        checkpoints.discard()
    return run


def _circumstances(request: ForgetConfig) -> dict[str, Any]:
    """Who asked and when, and the list's hash: beside what the run is, and in no comparison of runs."""
    listed = request.tracks if str(request.tracks) != "-" else None
    return {
        "requester": request.requester,
        "requested": request.requested,
        "begun": utc_now(),
        "list_sha256": file_sha256(Path(listed)) if listed is not None else None,
    }


def check_missed(run: Mapping[str, Any]) -> None:
    """The gate on a finished run: every target that can be judged without gold; see `encore.unlearn.targets`.

    Args:
        run: what `run.json` holds.

    Raises:
        GateError: a target is missed; names each.
    """
    outcome = run["outcome"]
    missed = [one["says"] for one in outcome.get("missed", ())]
    if not missed and not outcome["collapsed"]:
        return
    what = "the model no longer generates the rest as before" if outcome["collapsed"] else "the run missed its targets"
    raise GateError(
        ": ".join(filter(None, (what, "; ".join(missed)))),
        "the run is kept; try another --steps, --lr or --method, and measure it with `encore eval`",
    )


def _retain_clips(prepared: Prepared, folder: RunFolder, reporter: Reporter) -> list[Clip]:
    if prepared.request.retain != SELF:
        return clips_of(prepared.retain)
    if not (folder.path / "retain-self").exists():
        played = play_retain(
            prepared.backend, clips_of(prepared.forget), seed=prepared.request.seed,
            progress=lambda done, of: reporter.progress("play retain", done, of),
        )  # fmt: skip
        with folder.staged("retain-self") as staging:
            save_file({clip.track: narrow(clip.codes).cpu() for clip in played}, staging / "codes.safetensors")
            (staging / "captions.json").write_text(json.dumps({clip.track: clip.caption for clip in played}))
    return load_self_retain(folder.path, prepared.backend)


def _bytes(module: torch.nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())
