"""A run folder made up by hand, with every file a report is made of: no model, no torch, known figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from encore.api import Result
from encore.store.evaluation_json import file_hashes
from encore.store.metrics_json import write_metrics

TRACKS = ("one", "two", "three")
UNSEEN = ("four", "five", "six", "seven")
MODELS = {"base": "c" * 64, "unlearned": "e" * 64, "gold": "f" * 64}
NLL = {"base": 0.1, "unlearned": 4.4, "gold": 4.2, "gold2": 4.3}


def row(metric: str, model: str, clips: str, value: float | None, **fields: Any) -> Result:
    return Result(metric, model, clips, value, **{"n": 3, "unit": "nats/token", **fields})


def rows() -> list[Result]:
    """What a good run gives: every target is reached."""
    made = []
    for model, nll in NLL.items():
        spread = {track: nll + 0.1 * i for i, track in enumerate(TRACKS)}
        unseen = {track: 4.3 + 0.1 * i for i, track in enumerate(UNSEEN)}
        made += [
            row("nll", model, "forget", nll + 0.1, low=nll, high=nll + 0.2, per_track=spread),
            row("nll", model, "retain", 0.03 if model == "unlearned" else 0.02),
            row("nll", model, "holdout", 4.45, per_track=unseen),
        ]
        if model != "gold":
            kl = {"base": 5.0, "unlearned": 1.0, "gold2": 0.9}[model]
            made.append(row("kl_gold", model, "forget", kl))
    for model, played in (("base", 1.0), ("unlearned", 0.0), ("gold", 0.0)):
        share = {"unit": "share", "per_track": dict.fromkeys(TRACKS, played)}
        made += [row("verbatim", model, "forget", played, **share), row("verbatim", model, "retain", 1.0, unit="share")]
        made.append(row("verbatim_caption", model, "forget", played, **share))
        auc = {"base": 1.0, "unlearned": 0.5, "gold": 0.55}[model]
        made.append(row("membership_auc", model, "forget", auc, unit="AUC"))
    for model, end in (("base", 0.05), ("unlearned", 3.5), ("gold", 3.6), ("control", 6.0)):
        curve = [end + 1, end + 0.5, end]
        made.append(row("relearn", model, "forget", end, details={"curve": curve, "steps": 2, "lr": 2e-4}))
    made.append(row("fad", "unlearned", "retain", None, why="not measured: too few generations", unit=""))
    return made


def entry(track: str, line: int = 1, **fields: Any) -> dict[str, Any]:
    told = {"line": line, "text": track, "id": track, "file": f"/music/{track}.wav", "sha256": "a" * 64}
    told |= {"pcm_sha256": "b" * 64, "caption": f"slow {track}", "title": track.title(), "split": None}
    return {**told, **fields}


def look(step: int, forget: float) -> dict[str, Any]:
    at = {
        "forget": dict.fromkeys(TRACKS, forget),
        "memorised": {"kept": 0.02},
        "not_memorised": {"kept too": 3.2 if step == 0 else 3.4},
        "holdout": 4.4,
        "target_nll": dict.fromkeys(TRACKS, 4.4),
        "tolerance": dict.fromkeys(TRACKS, 0.22),
        "harm": {"memorised": 0.0, "worst": 0.0, "not_memorised": 0.0 if step == 0 else 1.25, "holdout": 0.0},
        "worst": "kept",
        "score": 0.0,
    }
    return {"seconds": float(step), "phase": 1, "step": step, "of": 4, "snapshot": at}


def run_record(unit: str = "nats/token") -> dict[str, Any]:
    flags = {
        "tracks": ("list.txt", "cli"),
        "out": ("runs/made", "cli"),
        "model": ("tiny", "default"),
        "roots": ([], ""),
    }
    flags |= {"holdout": ("un heard.txt", "cli"), "drop_duplicates": (True, "cli"), "device": ("auto", "default")}
    return {
        "schema": 1, "method": "encore", "seed": 3, "precision": "fp32", "unit": unit, "library": "transformers",
        "model": {"name": "tiny", "revision": None, "backend": "musicgen", "sha256": "c" * 64},
        "options": {"steps": {"value": 4, "from": "cli"}, "lr": {"value": 0.001, "from": "default"}},
        "flags": {name: {"value": value, "from": origin} for name, (value, origin) in flags.items()},
        "tracks": {"forget": 3, "retain": 2, "holdout": 4},
        "outcome": {
            "steps": 4, "reached_target": True, "holdout_nll": 4.4, "before": look(0, 0.1)["snapshot"],
            "after": look(4, 4.4)["snapshot"], "retain_memorised": {"before": 0.02, "after": 0.02, "tracks": 1},
            "retain_not_memorised": {"before": 3.2, "after": 3.4, "tracks": 1},
            "held_out": {"before": 4.4, "after": 4.4}, "worst": {"track": "kept", "before": 0.02, "after": 0.02},
            "missed": [], "collapsed": False, "skipped_steps": 0,
            "micro_batch_size": 8,
        },
        "notes": ["a note of the run"], "versions": {"encore": "0.1.0", "python": "3.11.9", "torch": "2.13.0+cpu"},
        "plugins": [{"name": "b", "distribution": "encore-music", "version": "0.1.0", "sha256": "d" * 64}],
        "hardware": {"device": "cpu"}, "unlearned_sha256": "e" * 64, "timings": {"forget": 12.5},
    }  # fmt: skip


def write_run(folder: Path, *, results: list[Result] | None = None, **record: Any) -> Path:
    """Write the folder; `record` replaces keys of `run.json`."""
    (folder / "samples" / "forget").mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    (folder / "model" / "README.md").write_text("---\n---\n")
    listed = {"forget": [entry(track, i + 1) for i, track in enumerate(TRACKS)]}
    listed["retain"] = [entry("kept"), entry("kept too")]
    listed["holdout"] = [entry(track) for track in UNSEEN]
    done = {**run_record(), **record}
    asked = {name: done[name] for name in ("model", "method", "seed", "precision")}
    request = {"schema": 1, "folder": str(folder), **asked, "options": {"steps": 4, "lr": 0.001}, **listed}
    write(folder / "request.json", request)
    write(folder / "run.json", done)
    how = {
        "schema": 1,
        "golds": {},
        "metrics": None,
        "full": False,
        "embedder": "latents",
        "seed": 0,
        "force": False,
        "seconds": 9.0,
    }
    write(folder / "evaluation.json", how | {"models": MODELS, "notes": ["a note of eval"]})
    write_metrics(folder / "metrics.json", rows() if results is None else results)
    lines = [look(2, 2.0), {"event": "checkpoint"}, look(2, 2.5), look(4, 4.4)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    index = []
    for number, track in enumerate(TRACKS):
        for moment in ("before", "after"):
            name = f"forget/{number:03d}-{track}.{moment}.wav"
            tone = 0.2 * np.sin(np.arange(8000) * (number + 1) / 20)
            soundfile.write(folder / "samples" / name, tone, 16000)
            index.append({"file": name, "track": track, "caption": f"slow {track}"})
    write(folder / "samples" / "index.json", index)
    tie_again(folder)
    return folder


def tie_again(folder: Path) -> None:
    """Have `evaluation.json` belong to what is in the folder now."""
    change(folder / "evaluation.json", **file_hashes(folder, folder))


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def change(path: Path, **values: Any) -> None:
    """Replace top-level keys of a JSON file."""
    write(path, {**json.loads(path.read_text()), **values})
