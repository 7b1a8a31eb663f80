"""`encore forget`: from a list of tracks to a run folder that holds a model without them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

from encore.api import Backend, Batch, Clip, Method
from encore.audio.cache import TensorCache
from encore.audio.files import file_sha256
from encore.audio.text import printable
from encore.errors import GateError, UsageError
from encore.plugins import backends, distributions
from encore.report.card import model_card
from encore.runs.data import Heard, Listener, narrow, wide
from encore.runs.dates import utc_now
from encore.runs.documents import refuse_other_run, request_json, run_json, track_json
from encore.runs.engine import Clips, Engine
from encore.runs.environment import hardware, peak_bytes, pick_device, pick_precision, reset_peak_bytes
from encore.runs.models import model_name, model_sha256
from encore.runs.reporter import Reporter
from encore.runs.select import SELF, Tracks, open_catalog, select
from encore.runs.self_retain import play_retain
from encore.runs.signals import stop_on_signals
from encore.runs.store import KEEP_CHECKPOINTS, Checkpoints, RunFolder, preflight, refuse_occupied
from encore.settings import cache_folder

LARGE, LARGE_LR = 50_000_000, 1e-4  # from how many weights on which learning rate is warned of
GIVEN = frozenset({"retain", "holdout", "reference", "logits", "fisher"})  # needs of a method that a run can meet


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
    roots: tuple[Path, ...] = ()
    allow_missing: bool = False
    drop_duplicates: bool = False
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    resume: bool = False
    requester: str | None = None
    requested: str | None = None

    def flags(self) -> dict[str, Any]:
        """Every value as JSON keeps it."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}


@dataclass
class Prepared:
    """A run ready to start: nothing has been written yet but the cache."""

    request: Request
    tracks: Tracks
    backend: Backend
    method: Method
    precision: Literal["fp32", "bf16"]
    forget: list[Heard]
    retain: list[Heard]
    holdout: list[Heard]
    seconds: Mapping[str, float]
    notes: list[str] = field(default_factory=list)

    def listed(self) -> dict[str, Any]:
        """The tracks as `request.json` keeps them."""
        sets = {"forget": self.forget, "retain": self.retain, "holdout": self.holdout}
        return {
            **{name: [track_json(heard) for heard in tracks] for name, tracks in sets.items()},
            "missing": [{"line": m.line, "text": printable(m.source), "why": m.reason} for m in self.tracks.missing],
            "retain_source": self.tracks.retain_source,
        }

    def disk_bytes(self) -> int:
        """What the run folder takes at most: the model, and checkpoints of weights, best weights and two moments."""
        weights = _bytes(self.backend.module)
        checkpoints = KEEP_CHECKPOINTS + 1  # one more while it is written
        if self.request.resume:
            checkpoints = 1
        return (4 * checkpoints + 1) * weights + sum(map(_bytes, self.backend.frozen().values()))


def refuse_unusable(request: Request) -> None:
    """Refuse what can be refused before a track is looked for: device, precision, model family, the run folder.

    Raises:
        UsageError: one of them can't be used, or there is nothing to resume.
        EncoreError: another process works on the run folder.
    """
    pick_precision(request.precision, pick_device(request.device))
    backends().get(request.backend)
    refuse_occupied(request.out, resume=request.resume)


def choose(request: Request) -> Tracks:
    """Read the list and find every track; see `select`."""
    catalog = open_catalog(request.catalog, request.model, request.roots)
    return select(
        request.tracks, catalog=catalog, retain=request.retain, holdout=request.holdout, roots=request.roots,
        allow_missing=request.allow_missing, drop_duplicates=request.drop_duplicates,
    )  # fmt: skip


def prepare(
    request: Request, method: Method, reporter: Reporter | None = None, *, tracks: Tracks | None = None
) -> Prepared:
    """Open the model and hear every track; whatever can be refused is refused here, before anything is written.

    Args:
        tracks: from `choose`, where they were wanted earlier.

    Raises:
        UsageError, InputError: what was asked for can't be done, or not with these files.
        EncoreError: another process works on the run folder, or it does not fit the disk.
    """
    reporter = reporter or Reporter()
    refuse_unusable(request)
    device = pick_device(request.device)
    precision = pick_precision(request.precision, device)
    tracks = tracks or choose(request)
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
    listener = Listener(backend, TensorCache())
    heard = listener.hear(everything, lambda done, of: reporter.progress("hear tracks", done, of))
    a, b = len(tracks.forget), len(tracks.forget) + len(tracks.retain)
    prepared = Prepared(
        request, tracks, backend, method, precision, heard[:a], heard[a:b], heard[b:],
        {"load": opened - started, "hear": time.monotonic() - opened}, list(tracks.notes),
    )  # fmt: skip
    preflight(request.out, prepared.disk_bytes())
    if not tracks.holdout:
        prepared.notes.append(
            "there is no holdout, so no unseen level to stop at: all steps are run; give --holdout LIST for one"
        )
    weights = sum(weight.numel() for weight in backend.module.parameters())
    if weights > LARGE and getattr(method.options, "lr", 0.0) > LARGE_LR:
        prepared.notes.append(
            f"lr {method.options.lr:g} was tuned on a model of 2 million weights, and this one has {weights:,}: "  # type: ignore[attr-defined]
            f"it is likely to do harm; start with --lr {LARGE_LR / 2:g}"
        )
    return prepared


def _refuse_unmet(method: Method, tracks: Tracks, request: Request) -> None:
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
            refuse_other_run(folder.path / "request.json", asked)
        else:
            where = {"folder": str(folder.path.resolve())}
            folder.write_json("request.json", {**where, **_circumstances(request), **asked})
        started = time.monotonic()
        clips = Clips(_clips(prepared.forget), _retain_clips(prepared, folder, reporter), _clips(prepared.holdout))
        stop.check()

        def record(line: Mapping[str, Any]) -> None:
            folder.log({"seconds": round(time.monotonic() - started, 3), **line})
            if "of" in line:
                reporter.progress(line.get("stage", "forget"), line["step"], line["of"], line)

        checkpoints = Checkpoints(folder.path / "checkpoints", identity, reporter.note)
        engine = Engine(
            backend, clips, seed=request.seed, precision=prepared.precision, checkpoints=checkpoints,
            fishers=cache_folder() / "fisher", record=record, stop=stop, began=started,
        )  # fmt: skip
        outcome = engine.run(method)
        trained = time.monotonic()
        reporter.progress("save", 0, 1)
        run = run_json(
            asked, unit=backend.unit, flags=request.flags(), origins=origins, outcome=outcome, notes=prepared.notes
        )
        run["tracks"]["listed"] = prepared.tracks.listed or len(prepared.tracks.forget)
        run["library"] = backend.library_name
        run["hardware"] = hardware(str(backend.device))
        run["distributions"] = distributions(methods=[method.spec.name], backends=[request.backend])
        run["request_sha256"] = file_sha256(folder.path / "request.json")
        with folder.staged("model") as staging:
            backend.save(staging)
            (staging / "README.md").write_text(model_card(run), encoding="utf-8")
        run["unlearned_sha256"] = model_sha256(backend)
        forgot = outcome.earlier_seconds + trained - started
        seconds = {**prepared.seconds, "forget": forgot, "save": time.monotonic() - trained}
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


def _circumstances(request: Request) -> dict[str, Any]:
    """Who asked and when, and the list's hash: beside what the run is, and in no comparison of runs."""
    listed = request.tracks if str(request.tracks) != "-" else None
    return {
        "requester": request.requester,
        "requested": request.requested,
        "begun": utc_now(),
        "list_sha256": file_sha256(Path(listed)) if listed is not None else None,
    }


def refuse_collapse(run: Mapping[str, Any]) -> None:
    """The gate on a finished run.

    Raises:
        GateError: retain lost more than `documents.COLLAPSE`, or is no longer finite.
    """
    if run["outcome"]["collapsed"]:
        lost = run["outcome"]["retain_lost"]
        loss = "retain is no longer finite" if lost is None else f"retain lost {lost:.2f} {run['unit']}"
        raise GateError(
            f"{loss}: the model no longer plays the rest as before",
            "lower --lr or --steps, or use a method that trains on retain; the run is kept for inspection",
        )


def _clips(heard: Sequence[Heard]) -> list[Clip]:
    return [clip for one in heard for clip in one.clips]


def _retain_clips(prepared: Prepared, folder: RunFolder, reporter: Reporter) -> list[Clip]:
    if prepared.request.retain != SELF:
        return _clips(prepared.retain)
    if not (folder.path / "retain-self").exists():
        played = play_retain(
            prepared.backend, _clips(prepared.forget), seed=prepared.request.seed,
            progress=lambda done, of: reporter.progress("play retain", done, of),
        )  # fmt: skip
        with folder.staged("retain-self") as staging:
            save_file({clip.track: narrow(clip.codes).cpu() for clip in played}, staging / "codes.safetensors")
            (staging / "captions.json").write_text(json.dumps({clip.track: clip.caption for clip in played}))
    return load_self_retain(folder.path)


def load_self_retain(run: Path) -> list[Clip]:
    """The clips that `--retain self` kept, from a run folder."""
    captions = json.loads((run / "retain-self" / "captions.json").read_text())
    codes = load_file(run / "retain-self" / "codes.safetensors")
    return [Clip(track, caption, wide(codes[track])) for track, caption in captions.items()]


def estimate(prepared: Prepared) -> dict[str, float]:
    """Expected seconds and peak bytes of the run, from one timed forward and backward pass on a copy."""
    backend, options = prepared.backend.clone(), prepared.method.options
    clips = [*_clips(prepared.forget), *_clips(prepared.retain)][: getattr(options, "micro_batch_size", 8)]
    batch = Batch.of(clips, backend.device)
    seconds, held = [], 0
    for _ in range(2):  # the first pass warms up
        started = time.monotonic()
        with _held_for_backward() as tensors:
            loss = backend.losses(batch).sum()
        held = sum(tensors.values())
        loss.backward()
        seconds.append(time.monotonic() - started)
    a_clip = seconds[-1] / len(clips)
    per_step = min(getattr(options, "forget_batch_size", 0), len(_clips(prepared.forget)))
    if "retain" in prepared.method.spec.needs:
        per_step += getattr(options, "batch_size", 0)
    passes = (
        len(_clips(prepared.forget)) + len(_clips(prepared.retain)) if "fisher" in prepared.method.spec.needs else 0
    )
    looks = getattr(options, "steps", 0) / getattr(options, "eval_every", 1) + 2
    looked_at = len(_clips(prepared.forget)) + len(_clips(prepared.holdout)) + 16
    weights = _bytes(backend.module)
    frozen = sum(map(_bytes, backend.frozen().values()))
    # weights, gradient, two moments, best; the reference; two Fishers
    copies = 5 + ("reference" in prepared.method.spec.needs) + 2 * ("fisher" in prepared.method.spec.needs)
    activations = held
    if backend.has_tokens:
        activations = len(clips) * batch.codes.shape[-1] * backend.codebooks * backend.codebook_size * 4 * 3
    return {
        "seconds": (getattr(options, "steps", 0) * per_step + passes) * a_clip + looks * looked_at * a_clip / 3,
        "bytes": float(copies * weights + frozen + activations),
    }


@contextmanager
def _held_for_backward() -> Iterator[dict[tuple[str, int], int]]:
    """Storages that a forward pass in here keeps for its backward -> their bytes."""
    held: dict[tuple[str, int], int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held[str(tensor.device), storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield held


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _bytes(module: torch.nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())
