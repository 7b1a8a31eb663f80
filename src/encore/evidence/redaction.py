"""A run's records for publication: without local folders, and with only hashes of retain and held-out tracks.

Retain and held-out tracks become `retain-0001`, `holdout-0001`, numbered in the order of their ids, so that sorting by
id gives the same order. The result is deterministic, so that it can be reproduced from the run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

from encore.data.splits import RETAIN
from encore.errors import InputError
from encore.store.evaluation_json import NAME as EVALUATION
from encore.store.metrics_json import NAME as METRICS
from encore.store.run_folder import read_json

REQUEST, RUN = "request.json", "run.json"
HIDDEN = ("retain", "holdout")  # sets that are reduced to hashes
TABLES = ("memorised", "not_memorised")  # values by retain track in a run's outcome
HASHES = ("sha256", "pcm_sha256")
PATHS = ("tracks", "out", "catalog", "retain", "holdout", "roots", "model")  # flags with paths
FOLDERS = re.compile(r"(?<![\w./:~-])~?/(?:[^\s/'\"]+/)+")  # of an absolute path in a sentence, all but its last part
WITHHELD = "(withheld)"
LEAST = 4  # characters; shorter names are not replaced in sentences

Names = Mapping[str, Mapping[str, str]]  # set -> id -> id in the bundle


def public_records(run: Path, *, catalog: bool = False, measured: bool = True) -> dict[str, bytes]:
    """`request.json`, `run.json`, `metrics.json` and `evaluation.json` of a run, as a bundle has them.

    Args:
        catalog: keep titles, captions and ids of the retain and held-out tracks.
        measured: include the last two, which the folder must then have.

    Raises:
        InputError: a record can't be read, or is not of this version.
    """
    request, record = read_json(run / REQUEST), read_json(run / RUN)
    metrics, how = (read_json(run / METRICS), read_json(run / EVALUATION)) if measured else ({}, {})
    try:
        names: Names = {} if catalog else pseudonyms(request)
        clean = _sentences(request, record, names)
        files = {REQUEST: canonical(_request(request, names, clean))}
        files[RUN] = canonical(_run(record, names, clean) | {"request_sha256": sha256(files[REQUEST])})
        if measured:
            rows = [public_row(row, names, clean) for row in metrics["results"]]
            files[METRICS] = canonical({**metrics, "results": rows})
            tied = {tie_name(name): sha256(content) for name, content in files.items()}
            files[EVALUATION] = canonical(_evaluation(how, clean) | tied)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{run} was not written by this version of Encore: {error!r}", "run it again") from error
    return files


def public_rows(run: Path, rows: list[dict[str, Any]], *, catalog: bool) -> list[dict[str, Any]]:
    """Rows measured of a run's folder, in the form of its bundle."""
    request, record = read_json(run / REQUEST), read_json(run / RUN)
    names = {} if catalog else pseudonyms(request)
    clean = _sentences(request, record, names)
    return [public_row(row, names, clean) for row in rows]


def canonical(value: Any) -> bytes:
    """JSON in the one form that all members have, so that parsers can't disagree.

    Raises:
        ValueError: a number is not finite.
    """
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tie_name(member: str) -> str:
    """The key of a member's hash in `evaluation.json`."""
    return f"{member.partition('.')[0]}_sha256"


def described_sha256(entry: Mapping[str, Any]) -> str:
    """Hash of a track's captions, artist and genre, which metrics read."""
    captions = entry.get("captions") or [entry.get("caption")]
    return sha256(json.dumps([captions, entry.get("artist"), entry.get("genre")]).encode())


def pseudonyms(request: Mapping[str, Any]) -> Names:
    """Pseudonyms by set and id, numbered in the order of the ids."""
    ids = {name: sorted(str(entry["id"]) for entry in request[name]) for name in HIDDEN}
    return {name: {key: f"{name}-{i + 1:0{max(4, len(str(len(keys))))}}" for i, key in enumerate(keys)}
            for name, keys in ids.items()}  # fmt: skip


def public_row(row: Mapping[str, Any], names: Names, clean: Callable[[str], str]) -> dict[str, Any]:
    """A row of `metrics.json` with redacted ids and sentences."""
    every = {**names.get("holdout", {}), **names.get("retain", {})}
    ids = names.get(str(row["set"]), {})
    texts = {key: clean(row[key]) for key in ("why", "note") if isinstance(row.get(key), str)}
    tracks = {ids.get(track, track): value for track, value in row["per_track"].items()}
    details = {key: _renamed(value, every, clean) for key, value in row["details"].items()}
    return {**row, **texts, "per_track": tracks, "details": details}


def model_name(name: str) -> str:
    """The last part of a model folder's path; names of hub models, as `owner/name`, and of embedded ones are kept."""
    is_path = os.path.isabs(name) or name.startswith((".", "~")) or name.count("/") > 1
    return PurePath(name).name if is_path else name


def _request(request: Mapping[str, Any], names: Names, clean: Callable[[str], str]) -> dict[str, Any]:
    hidden = {} if not names else {
        name: [
            {
                "id": names[name][str(entry["id"])],
                **{key: entry[key] for key in HASHES},
                "described_sha256": described_sha256(entry),
                "split": RETAIN if entry.get("split") == RETAIN else None,
            }
            for entry in request[name]
        ]
        for name in HIDDEN
    }  # fmt: skip
    kept = {key: value for key, value in request.items() if key not in ("folder", *hidden)}
    sets = {name: [_entry(entry) for entry in request[name]] for name in ("forget", *HIDDEN) if name not in hidden}
    missing = [{"line": item["line"], "text": _file_name(item["text"])} for item in request.get("missing", [])]
    model = {**request["model"], "name": model_name(str(request["model"]["name"]))}
    source = {key: clean(kept[key]) for key in ("retain_source",) if isinstance(kept.get(key), str)}
    skipped = {"skipped": [clean(sentence) for sentence in kept["skipped"]]} if "skipped" in kept else {}
    return {
        **kept,
        **source,
        **skipped,
        **_calibration(request, names, clean),
        **sets,
        **hidden,
        "missing": missing,
        "model": model,
    }


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A forget track's entry without folders."""
    shown = {key: value for key, value in entry.items() if key != "shards"}
    return {**shown, "file": _file_name(entry["file"]), "text": _file_name(entry.get("text") or "")}


def _run(run: Mapping[str, Any], names: Names, clean: Callable[[str], str]) -> dict[str, Any]:
    flags = {
        name: {**setting, "value": _flag(name, setting["value"])} if name in PATHS else setting
        for name, setting in run["flags"].items()
    }
    if "model" in flags and os.path.isabs(str(run["model"]["name"])):  # a folder, however it was given
        flags["model"] = {**flags["model"], "value": _file_name(str(flags["model"]["value"]))}
    return {
        **run,
        "model": {**run["model"], "name": model_name(str(run["model"]["name"]))},
        "flags": flags,
        "notes": [clean(note) for note in run["notes"]],
        "outcome": _outcome(run["outcome"], names, clean),
        **_calibration(run, names, clean),
    }


def _calibration(record: Mapping[str, Any], names: Names, clean: Callable[[str], str]) -> dict[str, Any]:
    """The calibration; its sentences name decoys, which are retain tracks."""
    calibration = record.get("calibration")
    return {"calibration": _renamed(calibration, names.get("retain", {}), clean)} if calibration else {}


def _evaluation(how: Mapping[str, Any], clean: Callable[[str], str]) -> dict[str, Any]:
    return {
        **how,
        "golds": {role: model_name(str(model)) for role, model in how["golds"].items()},
        "notes": [clean(note) for note in how["notes"]],
        **{key: _weights(how[key]) for key in ("embedder", "requested_embedder") if key in how},
        **({"embedders": _renamed(how["embedders"], {}, clean)} if "embedders" in how else {}),
    }


def _sentences(request: Mapping[str, Any], run: Mapping[str, Any], names: Names) -> Callable[[str], str]:
    """A function that removes folders and names of hidden tracks from a sentence."""
    entries = [(name, entry) for name in ("forget", *HIDDEN) for entry in request[name]]
    known = {str(request["folder"]), *(os.path.dirname(str(entry["file"])) for _, entry in entries)}
    known |= {os.path.dirname(str(run["model"]["name"]))}
    known |= {os.path.dirname(str(entry["shards"])) for _, entry in entries if entry.get("shards")}
    given = [value for name in PATHS for value in _texts(run["flags"].get(name, {}).get("value"))]
    known |= {os.path.dirname(path) for path in given}
    hub = () if os.path.isabs(str(run["model"]["name"])) else (run["flags"].get("model", {}).get("value"),)
    relative = [path for path in given if os.path.dirname(path) and not os.path.isabs(path) and path not in hub]
    withheld = [str(sentence) for sentence in request.get("skipped", ())] if names else []
    folders = sorted(
        (folder for folder in known if os.path.isabs(folder) and folder != "/"),
        key=lambda folder: (-len(folder), folder),
    )
    hidden: dict[str, str] = {}
    for name, entry in reversed(entries):
        if name in names:
            pseudonym = names[name][str(entry["id"])]
            texts = (entry["id"], entry.get("title"), os.path.basename(str(entry["file"])), entry.get("text"))
            hidden |= {str(text): pseudonym for text in texts if text and len(str(text)) >= LEAST}
    words = sorted(map(re.escape, hidden), key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)") if words else None

    def clean(text: str) -> str:
        for sentence in withheld:  # on retain and held-out tracks that are in no set
            text = text.replace(sentence, WITHHELD)
        for path in relative:
            text = text.replace(path, os.path.basename(path))
        for folder in folders:
            text = text.replace(folder + "/", "").replace(folder, PurePath(folder).name)
        text = FOLDERS.sub("", text)
        return pattern.sub(lambda match: hidden[match[0]], text) if pattern else text

    return clean


def _texts(value: Any) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def _renamed(value: Any, names: Mapping[str, str], clean: Callable[[str], str]) -> Any:
    """Replace ids anywhere in a value."""
    if isinstance(value, Mapping):
        return {names.get(key, key): _renamed(item, names, clean) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names, clean) for item in value]
    return names.get(value) or clean(value) if isinstance(value, str) else value


def _outcome(value: Any, names: Names, clean: Callable[[str], str]) -> Any:
    """Redact tables by retain track, the worst track, and sentences."""
    ids = names.get("retain", {})
    if isinstance(value, Mapping):
        return {
            key: _renamed(item, ids, clean) if key in TABLES else _outcome(item, names, clean)
            for key, item in value.items()
        }
    return [_outcome(item, names, clean) for item in value] if isinstance(value, list) else _renamed(value, ids, clean)


def _flag(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_flag(name, item) for item in value]
    if not isinstance(value, str):
        return value
    return model_name(value) if name == "model" else _file_name(value)


def _file_name(text: str) -> str:
    """The last part of a path; other text, such as `id:one`, is kept."""
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] or text


def _weights(embedder: Any) -> str:
    """`clap=/folder/weights,latents` without the folder."""
    parts = (part.partition("=") for part in str(embedder).split(","))
    return ",".join(name + equals + model_name(weights) for name, equals, weights in parts)
