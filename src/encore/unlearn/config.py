"""The configurations of `encore forget` and `encore train`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from encore.errors import UsageError

WeightType = Literal["fp32", "bf16"]
OptimizerStates = Literal["fp32", "8bit"]


@dataclass(frozen=True)
class Lora:
    """Settings of an adapter; see `encore.unlearn.adapter`.

    Args:
        rank: r.
        alpha: α; the update is scaled by α / r.
        layers: linear layers: "attention", "mlp", "all" (both: not the output heads, of which LoRA would hold two more
            copies of the logits), or a regular expression that matches whole names of layers.
    """

    rank: int = 16
    alpha: float = 32.0
    layers: str = "all"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The flags that `encore forget` and `encore train` share."""

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
    weights: str = "fp32"
    optimizer_states: str = "fp32"
    resume: bool = False
    fsdp: bool = False
    adapter: str | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_layers: str | None = None
    keep_adapter: bool = False
    checkpoint_activations: str = "auto"

    @property
    def lora(self) -> Lora | None:
        """Settings of the adapter; None without one.

        Raises:
            UsageError: the kind is unknown, or its settings are given without one.
        """
        settings = {"rank": self.lora_rank, "alpha": self.lora_alpha, "layers": self.lora_layers}
        given = {name: value for name, value in settings.items() if value is not None}
        if self.adapter is None:
            if given or self.keep_adapter:
                flag = f"--lora-{next(iter(given))}" if given else "--keep-adapter"
                raise UsageError(f"{flag} is a setting of an adapter, and there is none", "give --adapter lora")
            return None
        if self.adapter != "lora":
            raise UsageError(f"--adapter can't be {self.adapter!r}", "lora is the only kind")
        if self.lora_alpha is not None and not (self.lora_alpha > 0 and math.isfinite(self.lora_alpha)):
            raise UsageError(f"--lora-alpha can't be {self.lora_alpha:g}", "it is a number above 0, such as 32")
        return Lora(**given)  # type: ignore[arg-type]

    def flags(self) -> dict[str, Any]:
        """Every value in a form that JSON can hold."""
        return {item.name: _json_value(getattr(self, item.name)) for item in fields(self)}


@dataclass(frozen=True)
class ForgetConfig(RunConfig):
    """The flags of `encore forget`, one to one."""

    tracks: Path | str
    out: Path
    retain: str | None = None
    holdout: Path | None = None
    drop_duplicates: bool = False
    skip_unreadable: bool = False
    requester: str | None = None
    requested: str | None = None
    calibrate: bool = False


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """The flags of `encore train`, one to one; those of the recipe are options of `encore.unlearn.training`."""

    tracks: Path | str
    out: Path
    without: Path | None = None


def _json_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return str(value) if isinstance(value, Path) else value
