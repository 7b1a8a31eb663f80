"""The configurations of `encore forget` and `encore train`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ForgetConfig:
    """The flags of `encore forget`, one to one."""

    tracks: Path | str
    out: Path
    model: str = "tiny"
    revision: str | None = None
    offline: bool = False
    backend: str = "musicgen"
    catalog: Path | None = None
    retain: str | None = None
    holdout: Path | None = None
    roots: tuple[Path, ...] = ()
    allow_missing: bool = False
    drop_duplicates: bool = False
    skip_unreadable: bool = False
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    resume: bool = False
    requester: str | None = None
    requested: str | None = None
    calibrate: bool = False

    def flags(self) -> dict[str, Any]:
        """Every value in a form that JSON can hold."""
        return _flags(self)


@dataclass(frozen=True)
class TrainConfig:
    """The flags of `encore train`, one to one; those of the recipe are options of `encore.unlearn.training`."""

    tracks: Path | str
    out: Path
    without: Path | None = None
    model: str = "tiny"
    revision: str | None = None
    offline: bool = False
    backend: str = "musicgen"
    catalog: Path | None = None
    roots: tuple[Path, ...] = ()
    allow_missing: bool = False
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    resume: bool = False

    def flags(self) -> dict[str, Any]:
        """Every value in a form that JSON can hold."""
        return _flags(self)


def _flags(config: ForgetConfig | TrainConfig) -> dict[str, Any]:
    return {item.name: _json_value(getattr(config, item.name)) for item in fields(config)}


def _json_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return str(value) if isinstance(value, Path) else value
