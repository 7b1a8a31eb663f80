"""Selection of embedders: `latents,clap-tiny`, `clap=FOLDER`, or the default for a model."""

from __future__ import annotations

import json
from collections.abc import Mapping

from encore import assets, plugins
from encore.api import Backend, Embedder
from encore.errors import InputError, UsageError
from encore.hashing import module_sha256


def parsed(choice: str) -> dict[str, str]:
    """Parse `name,name=WEIGHTS` into weights by name, "" if none are given.

    Raises:
        UsageError: a name is missing or given twice.
        UnknownNameError: there is no such embedder.
    """
    weights_by_name: dict[str, str] = {}
    for part in (part.strip() for part in choice.split(",")):
        name, _, weights = part.partition("=")
        if not name or name in weights_by_name:
            problem = f"names {name} twice" if name else "lacks a name"
            raise UsageError(f"--embedder {choice!r} {problem}", "encore embedders")
        plugins.embedders().get(name)
        weights_by_name[name] = weights
    return weights_by_name


def default_embedders(model: Backend) -> str:
    """The default choice: `latents`, and for the embedded codec also the embedded CLAP.

    Never an embedder that must be downloaded, nor one trained on other music than the model.
    """
    codec = model.frozen().get("codec")
    embedded = json.loads((assets.FOLDER / "build.json").read_text(encoding="utf-8")).get("clap", {})
    known = embedded.get("codec_sha256")
    return "latents,clap-tiny" if codec is not None and module_sha256(codec) == known else "latents"


def open_embedders(choice: str, model: Backend, *, offline: bool = False) -> tuple[dict[str, Embedder], dict[str, str]]:
    """The opened embedders by name, in order; and the reason for each that could not be opened, by name.

    A missing embedder neither fails the evaluation nor is replaced by another.

    Raises:
        UsageError: see `parsed`.
        UnknownNameError: see `parsed`.
        MissingExtraError: an embedder's package is not installed.
    """
    opened: dict[str, Embedder] = {}
    unopened: dict[str, str] = {}
    for name, weights in parsed(choice).items():
        target = plugins.embedders().resolve(name)
        try:
            opened[name] = target.open_weights(model, weights, offline=offline)
        except InputError as error:
            unopened[name] = f"{error.message}; {error.hint}" if error.hint else error.message
    return opened, unopened


def by_name(embedders: Embedder | Mapping[str, Embedder] | None) -> dict[str, Embedder]:
    """Opened embedders by name; a single one under the name of its spec, or "" without a spec."""
    if isinstance(embedders, Embedder):
        return {embedders.spec.name if hasattr(embedders, "spec") else "": embedders}
    return dict(embedders or {})
