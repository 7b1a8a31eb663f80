"""The settings of a check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CheckConfig:
    """Settings of a check, one per flag of `encore check`.

    Args:
        model: `tiny`, a run folder, a model folder, or a hub name.
        backend: name of the model family.
        tracks: list or folder of tracks to check.
        catalog: catalogue that supplies captions and held-out tracks.
        holdout: list or folder of held-out tracks.
        gold: a model that was trained without the tracks.
        roots: further folders that paths in lists may lead into.
        revision: of a hub model.
        samples: sampled continuations of a second of each track, at least 1.
        full: search all offsets of long tracks.
        seed: of samples, and of the choice of held-out tracks.
        device: as in `encore.store.environment.pick_device`.
        offline: use downloaded files only.
        cache: read and store results of models.
    """

    model: str
    backend: str
    tracks: str
    catalog: Path | None = None
    holdout: str | None = None
    gold: str | None = None
    roots: Sequence[Path] = ()
    revision: str | None = None
    samples: int = 3
    full: bool = False
    seed: int = 0
    device: str = "auto"
    offline: bool = False
    cache: bool = True
