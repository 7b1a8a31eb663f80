"""The exact commands that make a run, its figures and its report again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from encore.report.run_files import RunFiles

OWN_DISTRIBUTION = "encore-music"
NAMED = {"roots": "root"}  # field of the record -> flag
OWN = {"resume", "out", "tracks", "calibrate"}  # flags that are given separately, or not at all


def commands(files: RunFiles) -> list[str]:
    """What to type, one command per line, with everything that was not a default.

    Comments name by SHA-256 what the commands need: the list, the model, and the code of each plugin. The list of a run
    that was one of several requests names the tracks of all of them: the report says so in words.
    """
    plugins = list(_plugins(files))
    versions = {name: str(version).partition("+")[0] for name, version in files.run["versions"].items()}
    install = ["pip", "install", f"{OWN_DISTRIBUTION}=={versions['encore']}", f"torch=={versions['torch']}"]
    install += [f"{plugin['distribution']}=={plugin['version']}" for plugin in plugins]
    return [
        *_hashes(files, plugins),
        shlex.join(install),
        shlex.join(_forget(files.run)),
        shlex.join(_evaluate(files)),
        shlex.join(_report(files)),
    ]


def _plugins(files: RunFiles) -> Iterator[Mapping[str, Any]]:
    """The distributions other than Encore's own that provided the method, a backend, a metric or an embedder."""
    records = (files.run, files.evaluation)
    used = {str(name) for record in records for name in record.get("distributions") or ()} - {OWN_DISTRIBUTION}
    known = {plugin["distribution"]: plugin for record in records for plugin in record.get("plugins") or ()}
    yield from (known[name] for name in sorted(used & known.keys()))


def _hashes(files: RunFiles, plugins: list[Mapping[str, Any]]) -> Iterator[str]:
    flags = files.run["flags"]
    if files.request.get("list_sha256"):
        yield _comment(f"{flags['tracks']['value']}: SHA-256 {files.request['list_sha256']}")
    revision = files.run["model"].get("revision")
    at = f" at revision {revision}" if revision else ""
    yield _comment(f"weights of {files.run['model']['name']}{at}: SHA-256 {files.run['model']['sha256']}")
    for role, digest in (files.evaluation.get("models") or {}).items():
        if role in (files.evaluation.get("golds") or {}):
            yield _comment(f"weights of {files.evaluation['golds'][role]} ({role}): SHA-256 {digest}")
    for plugin in plugins:
        if plugin.get("sha256"):
            yield _comment(f"code of {plugin['distribution']} {plugin['version']}: SHA-256 {plugin['sha256']}")


def _comment(text: str) -> str:
    """A line that a shell passes over, whatever a name contains."""
    return "# " + " ".join(text.split())


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
    if how.get("embedder"):  # as it came out: the default of another model, or of another Encore, may be another
        yield from ("--embedder", str(how["embedder"]))
    if how.get("samples_per_caption", 1) != 1:
        yield from ("--samples-per-caption", str(how["samples_per_caption"]))
    if how.get("force"):
        yield "--force"


def _report(files: RunFiles) -> Iterator[str]:
    yield from ("encore", "report", _run(files))


def _run(files: RunFiles) -> str:
    return str(files.run["flags"]["out"]["value"])
