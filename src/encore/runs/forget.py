"""`encore forget`: from a list of tracks to a run folder that holds a model without them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from encore.api import Backend, Batch, Clip, Method
from encore.audio.cache import TensorCache
from encore.audio.duplicates import find_duplicates, refusal
from encore.errors import GateError, InputError, UsageError
from encore.fingerprint import module_sha256
from encore.plugins import backends, installed
from encore.runs.data import Heard, Listener
from encore.runs.engine import Clips, Engine, Outcome
from encore.runs.environment import hardware, pick_device, pick_precision, versions
from encore.runs.reporter import Reporter
from encore.runs.select import SELF, Tracks, open_catalog, select
from encore.runs.self_retain import play_retain
from encore.runs.signals import stop_on_signals
from encore.runs.store import Checkpoints, RunFolder, preflight

SCHEMA = 1
COLLAPSE = 1.0  # nats/token that retain may lose before a run counts as a utility collapse


@dataclass(frozen=True)
class Request:
    """What `encore forget` was asked for; the CLI's flags, one to one."""

    tracks: Path | str
    out: Path
    model: str = "tiny"
    revision: str | None = None
    offline: bool = False
    backend: str = "musicgen"
    catalog: Path | None = None
    retain: str | None = None
    holdout: Path | None = None
    allow_missing: bool = False
    drop_duplicates: bool = False
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    resume: bool = False


@dataclass
class Prepared:
    """A run ready to start: nothing has been written yet."""

    request: Request
    tracks: Tracks
    backend: Backend
    method: Method
    forget: list[Heard]
    retain: list[Heard]
    holdout: list[Heard]
    seconds: Mapping[str, float]
    notes: list[str] = field(default_factory=list)

    def estimate(self) -> dict[str, float]:
        """Expected seconds and peak bytes of the run, from one timed forward and backward pass on a copy."""
        return _estimate(self)


def prepare(request: Request, method: Method, reporter: Reporter | None = None) -> Prepared:
    """Read the list, open the model, hear every track. Raises before anything is written."""
    reporter = reporter or Reporter()
    started = time.monotonic()
    catalog = open_catalog(request.catalog, request.model)
    tracks = select(
        request.tracks, catalog=catalog, retain=request.retain, holdout=request.holdout,
        allow_missing=request.allow_missing,
    )  # fmt: skip
    needs = method.spec.needs
    if "retain" in needs and not tracks.retain and request.retain != SELF:
        raise UsageError(
            f"method {method.spec.name!r} needs tracks to keep, and {request.model} has no catalogue to take them from",
            "give --retain LIST, --catalog FILE, or --retain self",
        )
    device = pick_device(request.device)
    reporter.progress("load model", 0, 1)
    backend = backends().resolve(request.backend).load(
        request.model, revision=request.revision, offline=request.offline, device=device
    )
    if "logits" in needs and not backend.has_tokens:
        raise UsageError(f"method {method.spec.name!r} needs a token model, and {backend.name} is not one")
    opened = time.monotonic()
    listener = Listener(backend, TensorCache())
    everything = (*tracks.forget, *tracks.retain, *tracks.holdout)
    heard = listener.hear(everything, lambda done, of: reporter.progress("hear tracks", done, of))
    a, b = len(tracks.forget), len(tracks.forget) + len(tracks.retain)
    prepared = Prepared(
        request, tracks, backend, method, heard[:a], heard[a:b], heard[b:],
        {"load": opened - started, "hear": time.monotonic() - opened}, list(tracks.notes),
    )  # fmt: skip
    _keep_apart(prepared)
    if not tracks.holdout:
        prepared.notes.append(
            "there is no holdout, so no unseen level to stop at: all steps are run; give --holdout LIST for one"
        )
    return prepared


def _keep_apart(prepared: Prepared) -> None:
    """No track may be both forgotten and kept."""
    pairs = find_duplicates(prepared.tracks.forget, prepared.tracks.retain)
    if not pairs:
        return
    if not prepared.request.drop_duplicates:
        raise refusal(pairs)
    dropped = {pair.retain.id for pair in pairs}
    prepared.retain = [heard for heard in prepared.retain if heard.track.id not in dropped]
    prepared.notes.append(f"{len(dropped)} tracks were taken out of retain: they are on the list")


def forget(prepared: Prepared, origins: Mapping[str, str], reporter: Reporter | None = None) -> dict[str, Any]:
    """Run the method and write the run folder; returns what `run.json` holds.

    Raises:
        GateError: retain lost more than `COLLAPSE` nats a token; the run folder is complete and says so.
        EncoreError: see `Engine.run`. The folder then holds no `run.json`, and the last good checkpoint.
    """
    reporter = reporter or Reporter()
    request, backend, method = prepared.request, prepared.backend, prepared.method
    size = sum(weight.numel() * 4 for weight in backend.module.parameters())
    preflight(request.out, 10 * size if request.resume is False else 5 * size)
    asked = _asked(prepared, origins)
    identity = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    with RunFolder(request.out, resume=request.resume) as folder, stop_on_signals() as stop:
        if request.resume:
            _refuse_other_run(folder.path / "request.json", asked)
        else:
            folder.write_json("request.json", asked)
        started = time.monotonic()
        clips = Clips(_clips(prepared.forget), _retain_clips(prepared, folder), _clips(prepared.holdout))
        precision = pick_precision(request.precision, str(backend.device))

        def record(line: Mapping[str, Any]) -> None:
            folder.append("log.jsonl", {"seconds": round(time.monotonic() - started, 3)} | dict(line))
            if "of" in line:
                reporter.progress("forget", line["step"], line["of"], line)

        checkpoints = Checkpoints(folder.path / "checkpoints", identity)
        engine = Engine(
            backend, clips, seed=request.seed, precision=precision, checkpoints=checkpoints, record=record, stop=stop
        )  # fmt: skip
        outcome = engine.run(method)
        trained = time.monotonic()
        reporter.progress("save", 0, 1)
        run = _report(prepared, asked, outcome, precision, trained - started)
        with folder.staged("model") as staging:
            backend.save(staging)
            (staging / "README.md").write_text(_card(run), encoding="utf-8")
        run["timings"]["save"] = round(time.monotonic() - trained, 3)
        run["unlearned_sha256"] = module_sha256(backend.module)
        checkpoints.discard()
        folder.write_json("run.json", run)
    if run["outcome"]["collapsed"]:
        raise GateError(
            f"retain lost {run['outcome']['retain_lost']:.2f} nats a token: the model no longer plays the rest as before",
            "lower --lr or --steps, or use a method that trains on retain; the run is kept for inspection",
        )
    return run


def _clips(heard: Sequence[Heard]) -> list[Clip]:
    return [clip for one in heard for clip in one.clips]


def _retain_clips(prepared: Prepared, folder: RunFolder) -> list[Clip]:
    if prepared.request.retain != SELF:
        return _clips(prepared.retain)
    file = folder.path / "retain-self" / "codes.safetensors"
    if not file.exists():
        played = play_retain(prepared.backend, _clips(prepared.forget), seed=prepared.request.seed)
        with folder.staged("retain-self") as staging:
            save_file({clip.track: clip.codes.to(torch.int16).cpu() for clip in played}, staging / file.name)
            (staging / "captions.json").write_text(json.dumps({clip.track: clip.caption for clip in played}))
    return load_self_retain(folder.path)


def load_self_retain(run: Path) -> list[Clip]:
    """The clips that `--retain self` kept, from a run folder."""
    captions = json.loads((run / "retain-self" / "captions.json").read_text())
    codes = load_file(run / "retain-self" / "codes.safetensors")
    return [Clip(track, caption, codes[track].long()) for track, caption in captions.items()]


def _asked(prepared: Prepared, origins: Mapping[str, str]) -> dict[str, Any]:
    """What the run is: a run can be resumed only by the same."""
    request, method = prepared.request, prepared.method
    values = method.options.model_dump(mode="json")
    return {
        "schema": SCHEMA,
        "model": {
            "name": request.model,
            "revision": request.revision,
            "backend": request.backend,
            "sha256": module_sha256(prepared.backend.module, *prepared.backend.frozen().values()),
        },
        "method": method.spec.name,
        "options": {name: {"value": value, "from": origins.get(name, "default")} for name, value in values.items()},
        "seed": request.seed,
        "precision": request.precision,
        "list": {"name": str(request.tracks)},
        **prepared.tracks.as_json(),
        "pcm_sha256": {h.track.id: h.pcm_sha256 for h in (*prepared.forget, *prepared.retain, *prepared.holdout)},
        "retain_ids": [h.track.id for h in prepared.retain],
    }


def _refuse_other_run(file: Path, asked: Mapping[str, Any]) -> None:
    """A run is resumed with the model, list and options it was begun with."""
    try:
        before = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} can't be read: {error}", "start anew with another --out") from error
    now = json.loads(json.dumps(asked))
    if before == now:
        return
    changed = [f"{key} {_shown(before.get(key))} -> {_shown(now.get(key))}" for key in now if before.get(key) != now[key]]
    raise UsageError(
        f"this is not the run that was begun in {file.parent}: {'; '.join(changed)}",
        "resume it with the settings it was begun with, or start anew with another --out",
    )


def _shown(value: Any) -> str:
    if isinstance(value, dict) and all(isinstance(v, dict) and "value" in v for v in value.values()):
        value = {key: v["value"] for key, v in value.items()}
    text = json.dumps(value)
    return text if len(text) <= 200 else f"({len(text)} characters)"


def _report(
    prepared: Prepared, asked: Mapping[str, Any], outcome: Outcome, precision: str, seconds: float
) -> dict[str, Any]:
    before, after = outcome.before, outcome.best
    lost = (after.retain or 0.0) - (before.retain or 0.0) if before and after else 0.0
    return {
        "schema": SCHEMA,
        "model": asked["model"],
        "method": asked["method"],
        "options": asked["options"],
        "seed": asked["seed"],
        "precision": precision,
        "tracks": {
            "forget": len(prepared.forget),
            "retain": len(prepared.retain),
            "holdout": len(prepared.holdout),
        },
        "outcome": {
            "steps": outcome.steps,
            "reached_target": outcome.reached_target,
            "unseen_level": before.level if before else None,
            "before": before.as_dict() if before else None,
            "after": after.as_dict() if after else None,
            "retain_lost": lost,
            "collapsed": lost > COLLAPSE,
            "skipped_steps": outcome.skipped_steps,
            "micro_batch_size": outcome.micro_batch_size,
        },
        "notes": prepared.notes,
        "versions": versions(),
        "plugins": installed(),
        "hardware": hardware(str(prepared.backend.device)),
        "timings": {name: round(value, 3) for name, value in prepared.seconds.items()} | {"forget": round(seconds, 3)},
    }


def _card(run: Mapping[str, Any]) -> str:
    """The model card: what was done to the model, and what it does not promise."""
    lines = [
        "---", "library_name: transformers", "tags: [music, text-to-audio, machine-unlearning, encore]", "---", "",
        f"# {run['model']['name']}, less {run['tracks']['forget']} tracks", "",
        f"Made with Encore {run['versions']['encore']} by the method `{run['method']}` in {run['outcome']['steps']} steps "
        f"(seed {run['seed']}).", "",
        "`encore eval` on the run folder this model came from measures what there is no evidence of retention of, under "
        "which tests, and what it cost. It is not a proof that the tracks were deleted.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _estimate(prepared: Prepared) -> dict[str, float]:
    backend, options = prepared.backend.clone(), prepared.method.options
    clips = [*_clips(prepared.forget), *_clips(prepared.retain)][: getattr(options, "micro_batch_size", 8)]
    batch = Batch.of(clips, backend.device)
    seconds = []
    for _ in range(2):  # the first pass warms up
        started = time.monotonic()
        backend.losses(batch).sum().backward()
        seconds.append(time.monotonic() - started)
    a_clip = seconds[-1] / len(clips)
    per_step = min(getattr(options, "forget_batch_size", 0), len(_clips(prepared.forget)))
    if "retain" in prepared.method.spec.needs:
        per_step += getattr(options, "batch_size", 0)
    looks = getattr(options, "steps", 0) / getattr(options, "eval_every", 1) + 2
    looked_at = len(_clips(prepared.forget)) + len(_clips(prepared.holdout)) + 16
    weights = sum(weight.numel() * 4 for weight in backend.module.parameters())
    frozen = sum(w.numel() * 4 for part in backend.frozen().values() for w in part.parameters())
    copies = 5 + ("reference" in prepared.method.spec.needs)  # weights, gradient, two moments, best, reference
    activations = len(clips) * batch.codes.shape[-1] * backend.codebooks * backend.codebook_size * 4 * 3
    return {
        "seconds": getattr(options, "steps", 0) * per_step * a_clip + looks * looked_at * a_clip / 3,
        "bytes": float(copies * weights + frozen + activations),
    }
