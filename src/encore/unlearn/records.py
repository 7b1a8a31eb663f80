"""The records of a run: `request.json` before it, `run.json` after it."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from encore.api import Method
from encore.data.encoded_tracks import EncodedTrack
from encore.data.open_files import path_sha256
from encore.errors import InputError, UsageError
from encore.files import finite
from encore.options import Options
from encore.plugins import installed
from encore.store import schemas
from encore.store.environment import versions
from encore.store.model_name import model_name
from encore.store.run_folder import read_json
from encore.text import printable
from encore.unlearn.config import RunConfig
from encore.unlearn.engine import Engine, TrainResult
from encore.unlearn.gold_free_targets import missed
from encore.unlearn.monitor import Snapshot, mean

SCHEMA = 1
PATHS = ("line", "text", "file", "shards", "caption_source")  # what may change of a track when a run is resumed
LISTED = 1024  # retain tracks of a catalogue in shards that `request.json` lists
UNUSED = {"adapter": None, "weights": "fp32", "optimizer_states": "fp32"}  # without an entry of `memory_settings`
COLLAPSE = 1.0  # a run has collapsed if the mean NLL of memorised or other retain rises by more nats per token
COLLAPSE_SHARE = 0.5  # the same for a loss that is not in nats, as a share of base's


def listed_places(count: int) -> list[int]:
    """Which of `count` retain tracks in shards `request.json` lists: all, or a sample of `LISTED`, always the same."""
    return sorted(random.Random(0).sample(range(count), min(LISTED, count)))


def track_json(encoded: EncodedTrack) -> dict[str, Any]:
    """A track: its line in the list, its file, the decoding result, and the source of its captions."""
    track, decoding = encoded.track, encoded.decoding
    return {
        "line": track.line,
        "text": printable(track.source),
        "id": track.id,
        "file": str(track.path),
        "sha256": track.sha256,
        "pcm_sha256": encoded.pcm_sha256,
        "seconds": round(decoding.seconds, 3),
        "frames": decoding.frames,
        "frames_declared": decoding.declared,
        "sample_rate": decoding.rate,
        "caption": track.caption,
        "captions": list(track.captions),
        "caption_source": track.caption_source,
        "title": track.title,
        "artist": track.artist,
        "genre": track.meta.get("genre"),
        "split": track.meta.get("split"),
        **({"shards": str(track.shards)} if track.shards is not None else {}),
        **({"pieces": [asdict(piece) for piece in track.pieces]} if track.pieces else {}),
    }


def request_json(
    request: RunConfig,
    method: Method,
    *,
    model_sha256: str,
    precision: str,
    tracks: Mapping[str, Any],
) -> dict[str, Any]:
    """What defines a run; only a run with the same definition can resume it."""
    return {
        "schema": SCHEMA,
        "model": {
            "name": model_name(request.model),
            "revision": request.revision,
            "backend": request.backend,
            "sha256": model_sha256,
        },
        "method": method.spec.name,
        "options": method.options.model_dump(mode="json"),
        **option_files(method.options),
        "seed": request.seed,
        "precision": precision,
        **memory_settings(request),
        **tracks,
    }


def memory_settings(request: RunConfig) -> dict[str, Any]:
    """The entries of a run's definition for settings that save memory; nothing for those that are not used."""
    entries: dict[str, Any] = {} if request.lora is None else {"adapter": asdict(request.lora)}
    types = {"weights": request.weights, "optimizer_states": request.optimizer_states}
    return entries | {name: value for name, value in types.items() if value != UNUSED[name]}


def option_files(options: Options) -> dict[str, dict[str, str]]:
    """The entry `option_files`, option -> SHA-256 of the file or folder it names; nothing without such options."""
    paths = {name: value for name, value in options if isinstance(value, Path)}
    return {"option_files": {name: path_sha256(path) for name, path in paths.items()}} if paths else {}


def check_other_run(file: Path, request: Mapping[str, Any]) -> None:
    """Check that a run is resumed with the same model, tracks and options; paths of tracks may differ.

    Args:
        file: `request.json` of the run to resume.
        request: the entries to compare.

    Raises:
        UsageError: an entry differs; the message names it.
        InputError: `request.json` can't be read.
    """
    try:
        before = read_json(file, schemas.Request)
        request, before = {**UNUSED, **request}, {**UNUSED, **before}
        pairs = {key: (_without_paths(before[key]), _without_paths(value)) for key, value in request.items()}
        changed = [f"{key}: {_change(*pair)}" for key, pair in pairs.items() if pair[0] != pair[1]]
    except KeyError as error:
        raise InputError(f"{file} can't be read: {error}", "start a new run with another --out") from error
    if changed:
        raise UsageError(
            f"this is not the run that was started in {file.parent}: {'; '.join(changed)}",
            "resume it with the same settings, or start a new run with another --out",
        )


def _without_paths(value: Any) -> Any:
    """A list of tracks without their paths; samples, hashes and captions identify them."""
    if not isinstance(value, list):
        return value
    return [{k: v for k, v in entry.items() if k not in PATHS} for entry in value]


def _change(before: Any, now: Any) -> str:
    """A difference in a few words: of tables the keys that differ, of tracks those added and removed."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return ", ".join(f"{key} {_change(before.get(key), now.get(key))}" for key in keys)
    if isinstance(before, list) and isinstance(now, list):
        return f"{_tracks(before, now)} no longer, {_tracks(now, before)} new"
    return f"{before} -> {now}"


def _tracks(entries: list[Any], others: list[Any]) -> str:
    only = [str(entry.get("id", entry)) for entry in entries if entry not in others]
    return ", ".join(only[:5]) + (f" and {len(only) - 5} more" if len(only) > 5 else "") if only else "none"


def run_json(
    request: Mapping[str, Any],
    *,
    unit: str,
    flags: Mapping[str, Any],
    origins: Mapping[str, str],
    outcome: TrainResult,
    notes: Sequence[str],
    verbatim: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The result of a run, with the origin of every setting.

    Args:
        request: output of `request_json`.
        unit: of the NLLs.
        flags: values of the command's flags.
        origins: setting -> "cli", "config" or "env"; others are defaults.
        outcome: of the engine.
        notes: sentences for the user.
        verbatim: output of `VerbatimCheck.after`.
    """
    before, after = outcome.before, outcome.best
    return {
        "schema": SCHEMA,
        "model": request["model"],
        "method": request["method"],
        "options": with_origin(request["options"], origins),
        **({"option_files": request["option_files"]} if "option_files" in request else {}),
        "flags": with_origin(flags, origins),
        "seed": request["seed"],
        "precision": request["precision"],
        "unit": unit,
        "tracks": {
            **{name: len(request[name]) for name in ("forget", "retain", "holdout")},
            **({"retain": request["retain_shards"]["tracks"]} if "retain_shards" in request else {}),
        },
        "outcome": finite(
            {
                "steps": outcome.steps,
                "chosen": outcome.chosen,
                "reached_target": outcome.reached_target,
                "holdout_nll": before.holdout if before else None,
                "before": before.as_dict() if before else None,
                "after": after.as_dict() if after else None,
                **(_changes(before, after) if before and after else {}),
                "verbatim": verbatim,
                "missed": missed(before, after, unit, verbatim) if before and after else [],
                "collapsed": bool(before and after and _collapsed(before, after, unit)),
                "skipped_steps": outcome.skipped_steps,
                "micro_batch_size": outcome.micro_batch_size,
            }
        ),
        "notes": list(notes),
        "versions": versions(),
        "plugins": installed(),
    }


def memory_json(engine: Engine) -> dict[str, Any]:
    """What a finished run trained and kept in memory: the entry `memory` of `run.json`."""
    weights = sum(weight.numel() for weight in engine.backend.module.parameters())
    trained = [weight for weight in engine.backend.module.parameters() if weight.requires_grad]
    adapter = engine.adapter
    return {
        "weights": weights,
        "trained_weights": sum(w.numel() for w in (adapter.parameters.values() if adapter else trained)),
        "adapter": adapter.as_dict() if adapter else None,
        "reference": engine.outcome.reference,
        "checkpoint_activations": engine.checkpoint_activations,
        **({"weight_type": engine.weight_type} if engine.weight_type != "fp32" else {}),
        **({"optimizer_states": engine.optimizer_states} if engine.optimizer_states != "fp32" else {}),
    }


def with_origin(settings: Mapping[str, Any], origins: Mapping[str, str]) -> dict[str, Any]:
    """Settings by name, each with its value and its origin, which is "default" where `origins` has none."""
    return {name: {"value": value, "from": origins.get(name, "default")} for name, value in settings.items()}


def _changes(before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """Changes of the other music: means of memorised, other and held-out tracks, and the worst track."""

    def change(was: Mapping[str, float], now: Mapping[str, float]) -> dict[str, Any] | None:
        return {"before": mean(was), "after": mean(now), "tracks": len(was)} if was else None

    worst = after.worst
    return {
        "retain_memorised": change(before.memorised, after.memorised),
        "retain_not_memorised": change(before.not_memorised, after.not_memorised),
        "held_out": {"before": before.holdout, "after": after.holdout} if before.holdout is not None else None,
        "worst": worst and {"track": worst, "before": before.memorised[worst], "after": after.memorised[worst]},
    }


def _collapsed(before: Snapshot, after: Snapshot, unit: str) -> bool:
    for was, now in ((before.memorised, after.memorised), (before.not_memorised, after.not_memorised)):
        if not was:
            continue
        rise = mean(now) - mean(was)
        allowed = COLLAPSE if unit == "nats/token" else COLLAPSE_SHARE * mean(was)
        if not (math.isfinite(rise) and rise <= allowed):
            return True
    return False
