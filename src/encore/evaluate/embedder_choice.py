"""Which embedders an evaluation hears with: `latents,clap-tiny`, `clap=FOLDER`, or what fits the model."""

from __future__ import annotations

import json
from collections.abc import Mapping

from encore import assets, plugins
from encore.api import Backend, Embedder
from encore.errors import InputError, UsageError
from encore.hashing import module_sha256


def parsed(asked: str) -> dict[str, str]:
    """`name,name=WEIGHTS` -> name -> weights, empty where none are named.

    Raises:
        UsageError: a name is missing or given twice. UnknownNameError: there is no such embedder.
    """
    found: dict[str, str] = {}
    for part in (part.strip() for part in asked.split(",")):
        name, _, weights = part.partition("=")
        if not name or name in found:
            raise UsageError(
                f"--embedder {asked!r} {'names one twice' if name else 'lacks a name'}", "encore embedders"
            )
        plugins.embedders().get(name)
        found[name] = weights
    return found


def fitting(model: Backend) -> str:
    """The embedders of an evaluation that names none: `latents`, and beside the embedded codec the embedded CLAP.

    None that has to be downloaded, nor one that was trained on other music than the model's.
    """
    codec = model.frozen().get("codec")
    known = json.loads((assets.FOLDER / "build.json").read_text(encoding="utf-8")).get("clap", {}).get("codec_sha256")
    return "latents,clap-tiny" if codec is not None and module_sha256(codec) == known else "latents"


def open_embedders(asked: str, model: Backend, *, offline: bool = False) -> tuple[dict[str, Embedder], dict[str, str]]:
    """Opened embedders by name, in the order asked for; and why those can't be used that can't, by name.

    An embedder that was asked for and is not there is no reason to measure nothing, nor to measure with another.

    Raises:
        UsageError, UnknownNameError: see `parsed`. MissingExtraError: an embedder's package is not installed.
    """
    opened: dict[str, Embedder] = {}
    unopened: dict[str, str] = {}
    for name, weights in parsed(asked).items():
        target = plugins.embedders().resolve(name)
        try:
            opened[name] = target.open_weights(model, weights, offline=offline)
        except InputError as error:
            unopened[name] = f"{error.message}; {error.hint}" if error.hint else error.message
    return opened, unopened


def by_name(given: Embedder | Mapping[str, Embedder] | None) -> dict[str, Embedder]:
    """Embedders that are open already; one alone goes by the name of its spec, where it has one."""
    if isinstance(given, Embedder):
        return {given.spec.name if hasattr(given, "spec") else "": given}
    return dict(given or {})
