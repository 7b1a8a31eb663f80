"""`encore doctor`: what this installation can do, and why not more."""

from __future__ import annotations

import os
import platform
import sys
from typing import Annotated, Any

import typer

from encore.cli import console

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "av",
    "soundfile",
    "soxr",
    "pydantic",
    "typer",
)


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    build: Annotated[bool, typer.Option("--build", help="Compile the native extension now if it is missing.")] = False,
) -> None:
    """Show versions, devices and the native extension."""
    found = examine(build=build)
    if json:
        console.data_json({"schema": 1, **found})
        return
    console.table(["what", "found"], _rows(found))


def examine(*, build: bool = False) -> dict[str, Any]:
    """Everything the command shows. Nothing that is missing or broken raises."""
    from encore import __version__, plugins

    return {
        "encore": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "extension": _extension(build),
        "devices": _devices(),
        "cache": _cache(),
        "plugins": [{"plugin": str(problem.source), "problem": str(problem)} for problem in plugins.plugin_errors()],
    }


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
    except Exception as error:  # a broken torch is what this command is asked about
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
    return {"folder": str(folder), "writable": os.access(near, os.W_OK)}


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    extension = found["extension"]
    built = extension["built"]
    native = (
        f"loaded, built {extension['how']} with torch {built['torch']} and {built['compiler']}; CPU: {extension['cpu']}"
        if built
        else f"not loaded: {extension['why']}; pure torch serves"
    )
    return [
        ("encore", found["encore"]),
        ("python", f"{found['python']} ({sys.executable})"),
        ("platform", found["platform"]),
        *((name, version or "not installed") for name, version in found["packages"].items()),
        ("native extension", native),
        *((device["device"], _device(device)) for device in found["devices"]),
        ("cache", found["cache"]["folder"] + ("" if found["cache"]["writable"] else " (not writable)")),
        *(("plugin problem", row["problem"]) for row in found["plugins"]),
    ]


def _device(device: dict[str, Any]) -> str:
    memory = device.get("memory")
    return device["name"] + (f", {memory / 2**30:.1f} GiB" if memory else "")
