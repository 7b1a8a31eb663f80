"""`encore doctor`: what this installation can do, and its problems."""

from __future__ import annotations

import os
import platform
import sys
from typing import Annotated, Any

import typer

from encore.cli import console
from encore.errors import EncoreError
from encore.text import counted

PACKAGES = (
    "torch", "transformers", "safetensors", "numpy", "av", "soundfile", "soxr", "pydantic", "typer",
)  # fmt: skip


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    build: Annotated[bool, typer.Option("--build", help="Compile the native extension now if it is missing.")] = False,
) -> None:
    """Show the features of this installation, and its problems; exit code 1 if there are any."""
    facts = examine(build=build)
    if json:
        console.data_json({"schema": 1, **facts})
    else:
        console.table(["component", "status"], _rows(facts))
        for problem in facts["problems"]:
            console.data(f"problem: {problem}")
        console.data(f"verdict: {_verdict(facts)}")
    if not facts["ok"]:
        raise EncoreError(f"this installation has {_count(facts)}", _ADVICE)


def examine(*, build: bool = False) -> dict[str, Any]:
    """Everything the command shows. Nothing that is missing or broken raises."""
    from encore import __version__, plugins

    facts: dict[str, Any] = {
        "encore": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "extension": _extension(build),
        "devices": _devices(),
        "cache": _cache(),
        "plugins": [{"plugin": str(problem.source), "problem": str(problem)} for problem in plugins.plugin_errors()],
    }
    needed, facts["missing_extras"] = _requirements()
    facts["problems"] = [*needed, *_problems(facts)]
    facts["ok"] = not facts["problems"]
    return facts


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """What is wrong with packages that Encore needs, and those of each extra that are not there."""
    import importlib.metadata

    from packaging.requirements import InvalidRequirement, Requirement

    from encore.plugins import OWN

    wrong: list[str] = []
    missing: dict[str, list[str]] = {}
    try:
        listed = importlib.metadata.requires(OWN) or []
    except importlib.metadata.PackageNotFoundError:
        return ["encore-music itself is not installed: its metadata can't be found"], {}
    extras = importlib.metadata.metadata(OWN).get_all("Provides-Extra") or []
    for text in listed:
        try:
            needed = Requirement(text)
        except InvalidRequirement:
            continue
        version = _version(needed.name)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            if version is None:
                wrong.append(f"{needed.name} is not installed")
            elif not needed.specifier.contains(version, prereleases=True):
                wrong.append(f"{needed.name} {version} is installed, and {needed.specifier} is needed")
        elif version is None:
            for extra in (extra for extra in extras if needed.marker.evaluate({"extra": extra})):
                missing.setdefault(extra, []).append(needed.name)
    return wrong, missing


def _problems(facts: dict[str, Any]) -> list[str]:
    extension, cache = facts["extension"], facts["cache"]
    broken = [device["name"] for device in facts["devices"] if device["device"] == "none"]
    wrong = [extension["cpu"]] if str(extension["cpu"] or "").startswith("ENCORE_") else []
    closed = [] if cache["writable"] else [f"the cache {cache['folder']} can't be written: set ENCORE_CACHE"]
    return [*broken, *wrong, *closed, *(row["problem"] for row in facts["plugins"])]


_ADVICE = "pip install --upgrade encore-music repairs packages"


def _count(facts: dict[str, Any]) -> str:
    return counted(len(facts["problems"]), "problem")


def _verdict(facts: dict[str, Any]) -> str:
    """One line: whether all is well, and what could be better."""
    if not facts["ok"]:
        return _count(facts)
    return "ok" if facts["extension"]["loaded"] else "ok (slower without the native extension)"


def _version(distribution: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extension(build: bool) -> dict[str, Any]:
    from encore.ops import native

    module, why, how = native.find(build=build)
    if module is None:
        return {"loaded": False, "why": why, "how": None, "built": None, "cpu": None}
    try:
        cpu = module.cpu_isa()
    except ValueError as error:  # ENCORE_CPU_ISA names what is not there
        cpu = str(error)
    return {"loaded": True, "why": None, "how": how, "built": module.build_info(), "cpu": cpu}


def _devices() -> list[dict[str, Any]]:
    try:
        import torch
    except Exception as error:  # this command is for a broken torch, too
        return [{"device": "none", "name": f"torch can't be imported: {error}"}]
    devices: list[dict[str, Any]] = [
        {"device": "cpu", "name": f"{platform.machine()}, {torch.get_num_threads()} threads", "memory": _memory()}
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append({"device": f"cuda:{index}", "name": properties.name, "memory": properties.total_memory})
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "name": "Apple GPU", "memory": None})
    return devices


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _cache() -> dict[str, Any]:
    from encore.settings import cache_folder

    folder = cache_folder()
    near = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return {"folder": str(folder), "writable": near.is_dir() and os.access(near, os.W_OK)}


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    extension = facts["extension"]
    built = extension["built"]
    native = (
        f"loaded, built {extension['how']} with torch {built['torch']} and {built['compiler']}; CPU: {extension['cpu']}"
        if built
        else f"not loaded: {extension['why']}; PyTorch is used instead"
    )
    return [
        ("encore", facts["encore"]),
        ("python", f"{facts['python']} ({sys.executable})"),
        ("platform", facts["platform"]),
        *((name, version or "not installed") for name, version in facts["packages"].items()),
        ("native extension", native),
        *((device["device"], _device(device)) for device in facts["devices"]),
        ("cache", facts["cache"]["folder"] + ("" if facts["cache"]["writable"] else " (not writable)")),
        *((f"extra {name}", f"lacks {', '.join(lacks)}") for name, lacks in facts["missing_extras"].items()),
    ]


def _device(device: dict[str, Any]) -> str:
    memory = device.get("memory")
    return device["name"] + (f", {memory / 2**30:.1f} GiB" if memory else "")
