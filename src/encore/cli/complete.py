"""What the shell completes a value with. Names come from the registries, which import no plugin's target, nor torch."""

from __future__ import annotations

from collections.abc import Callable

Offer = list[tuple[str, str]]  # name, and what it is


def methods(incomplete: str) -> Offer:
    """Names of methods."""
    return _names("methods", incomplete)


def backends(incomplete: str) -> Offer:
    """Names of model families."""
    return _names("backends", incomplete)


def metrics(incomplete: str) -> Offer:
    """Names of metrics."""
    return _names("metrics", incomplete)


def embedders(incomplete: str) -> Offer:
    """Names of embedders."""
    return _names("embedders", incomplete)


def devices(incomplete: str) -> Offer:
    """Devices by the names that torch gives them; which of them are here, only torch could say."""
    known = {
        "auto": "the best here",
        "cpu": "",
        "cuda": "NVIDIA GPU",
        "cuda:0": "the first GPU",
        "mps": "Apple GPU",
    }
    return [(name, text) for name, text in known.items() if name.startswith(incomplete)]


def cache_kinds(incomplete: str) -> Offer:
    """What `encore cache --clear` takes."""
    from encore.store.cache_entries import KINDS

    return [(name, text) for name, text in {**KINDS, "all": "everything"}.items() if name.startswith(incomplete)]


def listed(complete: Callable[[str], Offer]) -> Callable[[str], Offer]:
    """Completes the last of several names with commas between; those that stand there already are not offered."""

    def last(incomplete: str) -> Offer:
        before, comma, rest = incomplete.rpartition(",")
        given = before.split(",")
        return [(f"{before}{comma}{name}", text) for name, text in complete(rest) if name not in given]

    return last


def _names(plural: str, incomplete: str) -> Offer:
    from encore import plugins

    registry = plugins.registries()[plural]
    return [(entry.spec.name, entry.spec.summary) for entry in registry if entry.spec.name.startswith(incomplete)]
