"""A run's records without what they say of other things: nobody's folders, and of the catalogue only hashes.

Tracks to retain and held-out tracks become `retain-0001`, `holdout-0001`, numbered in the order of their ids, so that
whatever sorts by id sorts alike. The same run always gives the same records, so that they can be made again from it.
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
HIDDEN = ("retain", "holdout")  # sets of which only hashes are given
TABLES = ("memorised", "not_memorised")  # figures by retain track in a run's outcome
HASHES = ("sha256", "pcm_sha256")
PATHS = ("tracks", "out", "catalog", "retain", "holdout", "roots", "model")  # flags that name files
FOLDERS = re.compile(r"(?<![\w./:~-])~?/(?:[^\s/'\"]+/)+")  # of an absolute path in a sentence, all but its last part
LEAST = 4  # characters of a name that is looked for in sentences

Names = Mapping[str, Mapping[str, str]]  # set -> id -> id in the bundle


def public_records(run: Path, *, catalog: bool = False, measured: bool = True) -> dict[str, bytes]:
    """`request.json`, `run.json`, `metrics.json` and `evaluation.json` of a run, as a bundle has them.

    Args:
        run: folder of a complete run.
        catalog: keep titles, captions and ids of the tracks to retain and the held-out tracks.
        measured: also the last two, which the folder must then have.

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
    """Rows measured of a run's folder, as that run's bundle has them."""
    request, record = read_json(run / REQUEST), read_json(run / RUN)
    names = {} if catalog else pseudonyms(request)
    clean = _sentences(request, record, names)
    return [public_row(row, names, clean) for row in rows]


def canonical(value: Any) -> bytes:
    """JSON as every member has it: one spelling, so that no two readers read different things.

    Raises:
        ValueError: a number is not finite.
    """
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tie_name(member: str) -> str:
    """Under which `evaluation.json` has the hash of a member."""
    return f"{member.partition('.')[0]}_sha256"


def described_sha256(entry: Mapping[str, Any]) -> str:
    """Hash of what metrics read of a track beside its audio: captions, artist, genre."""
    captions = entry.get("captions") or [entry.get("caption")]
    return sha256(json.dumps([captions, entry.get("artist"), entry.get("genre")]).encode())


def pseudonyms(request: Mapping[str, Any]) -> Names:
    """The ids of the hidden sets -> numbers in the order of the ids."""
    ids = {name: sorted(str(entry["id"]) for entry in request[name]) for name in HIDDEN}
    return {name: {one: f"{name}-{i + 1:0{max(4, len(str(len(own))))}}" for i, one in enumerate(own)}
            for name, own in ids.items()}  # fmt: skip


def public_row(row: Mapping[str, Any], names: Names, clean: Callable[[str], str]) -> dict[str, Any]:
    """A row of `metrics.json` with ids and sentences as a bundle has them."""
    every = {**names.get("holdout", {}), **names.get("retain", {})}
    own = names.get(str(row["set"]), {})
    told = {key: clean(row[key]) for key in ("why", "note") if isinstance(row.get(key), str)}
    tracks = {own.get(track, track): figure for track, figure in row["per_track"].items()}
    details = {key: _renamed(value, every, clean) for key, value in row["details"].items()}
    return {**row, **told, "per_track": tracks, "details": details}


def model_name(name: str) -> str:
    """A model's name without its folder; the name of a model on the hub, or in the package, as it is."""
    return PurePath(name).name if os.path.isabs(name) or name.startswith((".", "~")) else name


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
    told = {key: clean(kept[key]) for key in ("retain_source",) if isinstance(kept.get(key), str)}
    return {**kept, **told, **_calibration(request, names, clean), **sets, **hidden, "missing": missing, "model": model}


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A track that is named, without its folder."""
    return {**entry, "file": _file_name(entry["file"]), "text": _file_name(entry.get("text") or "")}


def _run(run: Mapping[str, Any], names: Names, clean: Callable[[str], str]) -> dict[str, Any]:
    flags = {
        name: {**setting, "value": _flag(name, setting["value"])} if name in PATHS else setting
        for name, setting in run["flags"].items()
    }
    return {
        **run,
        "model": {**run["model"], "name": model_name(str(run["model"]["name"]))},
        "flags": flags,
        "notes": [clean(note) for note in run["notes"]],
        "outcome": _outcome(run["outcome"], names, clean),
        **_calibration(run, names, clean),
    }


def _calibration(record: Mapping[str, Any], names: Names, clean: Callable[[str], str]) -> dict[str, Any]:
    """Its sentences name decoys, which are retain tracks."""
    found = record.get("calibration")
    return {"calibration": _renamed(found, names.get("retain", {}), clean)} if found else {}


def _evaluation(how: Mapping[str, Any], clean: Callable[[str], str]) -> dict[str, Any]:
    return {
        **how,
        "golds": {role: model_name(str(model)) for role, model in how["golds"].items()},
        "notes": [clean(note) for note in how["notes"]],
        **{key: _weights(how[key]) for key in ("embedder", "asked_embedder") if key in how},
        **({"embedders": _renamed(how["embedders"], {}, clean)} if "embedders" in how else {}),
    }


def _sentences(request: Mapping[str, Any], run: Mapping[str, Any], names: Names) -> Callable[[str], str]:
    """What takes folders, and names of hidden tracks, out of a sentence."""
    entries = [(name, entry) for name in ("forget", *HIDDEN) for entry in request[name]]
    known = {str(request["folder"]), *(os.path.dirname(str(entry["file"])) for _, entry in entries)}
    known |= {os.path.dirname(str(run["model"]["name"]))}
    for flag in (run["flags"].get(name, {}).get("value") for name in PATHS):
        known |= {
            os.path.dirname(value) for value in (flag if isinstance(flag, list) else [flag]) if isinstance(value, str)
        }
    folders = sorted(
        (folder for folder in known if os.path.isabs(folder) and folder != "/"),
        key=lambda folder: (-len(folder), folder),
    )
    hidden: dict[str, str] = {}
    for name, entry in reversed(entries):
        if name in names:
            own = names[name][str(entry["id"])]
            texts = (entry["id"], entry.get("title"), os.path.basename(str(entry["file"])), entry.get("text"))
            hidden |= {str(text): own for text in texts if text and len(str(text)) >= LEAST}
    words = sorted(map(re.escape, hidden), key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)") if words else None

    def clean(text: str) -> str:
        for folder in folders:
            text = text.replace(folder + "/", "").replace(folder, PurePath(folder).name)
        text = FOLDERS.sub("", text)
        return pattern.sub(lambda found: hidden[found[0]], text) if pattern else text

    return clean


def _renamed(value: Any, names: Mapping[str, str], clean: Callable[[str], str]) -> Any:
    """Ids, wherever they stand in a value."""
    if isinstance(value, Mapping):
        return {names.get(key, key): _renamed(item, names, clean) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names, clean) for item in value]
    return names.get(value) or clean(value) if isinstance(value, str) else value


def _outcome(value: Any, names: Names, clean: Callable[[str], str]) -> Any:
    """Tables by retain track, the worst track, and sentences."""
    own = names.get("retain", {})
    if isinstance(value, Mapping):
        return {
            key: _renamed(item, own, clean) if key in TABLES else _outcome(item, names, clean)
            for key, item in value.items()
        }
    return [_outcome(item, names, clean) for item in value] if isinstance(value, list) else _renamed(value, own, clean)


def _flag(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_flag(name, item) for item in value]
    if not isinstance(value, str):
        return value
    return model_name(value) if name == "model" else _file_name(value)


def _file_name(text: str) -> str:
    """A path's last part; any other text, such as `id:one`, as it is."""
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] or text


def _weights(embedder: Any) -> str:
    """`clap=/folder/weights,latents` without the folder."""
    parts = (part.partition("=") for part in str(embedder).split(","))
    return ",".join(name + equals + model_name(weights) for name, equals, weights in parts)
