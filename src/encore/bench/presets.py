"""Benches that others have run, laid out."""

from __future__ import annotations

from dataclasses import dataclass

from encore.errors import UnknownNameError


@dataclass(frozen=True)
class Preset:
    """What `--preset` stands in for; a flag that is given wins.

    Args:
        summary: what it is, and whose.
        methods: in the order of the table. metrics: what is measured.
        embedder, options: for any other model than the embedded one, whose own are tuned.
    """

    summary: str
    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    embedder: str
    options: tuple[str, ...] = ()


PRESETS = {
    "no-encore": Preset(
        "gradient ascent and random labels on MusicGen; FAD, KL and CLAP on what stays (arXiv 2509.06277)",
        methods=("ga", "rl"),
        metrics=("nll", "kl_gold", "verbatim", "membership_auc", "relearn", "fad", "mmd", "tag_kl", "clap_score"),
        embedder="latents,clap,ast",
        options=("ga.lr=1e-5", "rl.lr=1e-5"),
    )
}


def preset(name: str) -> Preset:
    """One of them by name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in PRESETS:
        raise UnknownNameError(f"there is no preset {name!r}", f"there is {', '.join(PRESETS)}")
    return PRESETS[name]
