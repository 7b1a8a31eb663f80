"""The exact commands that make a run, its figures and its report again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from encore.report.files import RunFiles

NAMED = {"roots": "root"}  # field of the record -> flag
OWN = {"resume", "out", "tracks"}  # flags that are said apart, or not at all


def commands(files: RunFiles) -> list[str]:
    """What to type, one command a line, with everything that was not a default.

    The list of a run that was one of several requests names the tracks of all of them: the report says so in words.
    """
    versions = {name: str(version).partition("+")[0] for name, version in files.run["versions"].items()}
    install = ["pip", "install", f"encore-music=={versions['encore']}", f"torch=={versions['torch']}"]
    return [
        shlex.join(install),
        shlex.join(_forget(files.run)),
        shlex.join(_evaluate(files)),
        shlex.join(_report(files)),
    ]


def _forget(run: Mapping[str, Any]) -> Iterator[str]:
    flags = run["flags"]
    yield from ("encore", "forget", "--tracks", str(flags["tracks"]["value"]), "--out", str(flags["out"]["value"]))
    yield from ("--method", str(run["method"]), "--seed", str(run["seed"]))
    for name, setting in flags.items():
        value = setting["value"]
        if name in OWN or name in ("method", "seed") or value is None or value == []:
            continue
        if setting["from"] == "default" and name not in NAMED:
            continue
        flag = "--" + NAMED.get(name, name).replace("_", "-")
        if value is True:
            yield flag
        elif value is not False:
            for item in value if isinstance(value, list) else [value]:
                yield from (flag, str(item))
    for name, setting in run["options"].items():
        if setting["from"] != "default":
            yield from ("-o", f"{name}={setting['value']}")


def _evaluate(files: RunFiles) -> Iterator[str]:
    yield from ("encore", "eval", _run(files))
    how = files.evaluation
    for role, model in (how.get("golds") or {}).items():
        yield from (f"--{role}", str(model))
    if how.get("metrics"):
        yield from ("--metrics", ",".join(map(str, how["metrics"])))
    if how.get("full"):
        yield "--full"
    if how.get("seed"):
        yield from ("--seed", str(how["seed"]))
    if how.get("embedder"):  # as it came out: another model's, or another Encore's, default may be another
        yield from ("--embedder", str(how["embedder"]))
    if how.get("draws", 1) != 1:
        yield from ("--draws", str(how["draws"]))
    if how.get("force"):
        yield "--force"


def _report(files: RunFiles) -> Iterator[str]:
    yield from ("encore", "report", _run(files))


def _run(files: RunFiles) -> str:
    return str(files.run["flags"]["out"]["value"])
