"""Settings of a method: a pydantic model that refuses what it does not know.

This module, unlike `encore.api`, imports pydantic; import it where a method is defined, not where one is listed.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """Base of every method's `Options`. Values arrive as strings (`-o key=value`), as TOML, or from the environment."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """A field declared again for another default (`lr: float = 1e-4`) keeps its limits and description."""
        parents = [getattr(parent, "__pydantic_fields__", {}) for parent in cls.__mro__[1:]]
        changed = False
        for name in cls.__annotations__.keys() & cls.__pydantic_fields__.keys():
            field = cls.__pydantic_fields__[name]
            inherited = next((fields[name] for fields in parents if name in fields), None)
            if inherited is not None and not field.metadata and field.description is None:
                field.metadata, field.description = list(inherited.metadata), inherited.description
                changed = True
        if changed:
            cls.model_rebuild(force=True)


class TrainOptions(Options):
    """What the engine's loop needs to know. A method overrides the defaults with the settings tuned for it."""

    steps: int = Field(60, ge=1, description="optimiser steps at most")
    lr: float | None = Field(5e-4, gt=0, description="peak learning rate of AdamW")
    batch_size: int = Field(6, ge=1, description="retain clips a step")
    forget_batch_size: int = Field(8, ge=1, description="forget clips a step (fewer where fewer are left to forget)")
    micro_batch_size: int = Field(16, ge=1, description="clips a forward pass; fewer save memory, change nothing else")
    warmup: int = Field(5, ge=0, description="steps of linear warm-up")
    schedule: Literal["linear", "cosine", "constant", "adaptive"] = Field(
        "linear",
        description="decay after the warm-up; adaptive: constant until the forget tracks are near their levels, a "
        "cosine over decay_steps, then the lowest rate until retain has recovered",
    )
    decay_steps: int = Field(90, ge=1, description="length of an adaptive schedule's decay")
    max_seconds: float | None = Field(None, gt=0, description="seconds of training at most")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="global gradient norm is clipped to this")
    per_track_clip: float | None = Field(
        None, gt=0, description="a track's gradient, summed over its clips in the step, is clipped to this norm"
    )
    dropout: bool = Field(False, description="train with the model's dropout on")
    eval_every: int = Field(10, ge=1, description="steps between two looks at forget, retain and holdout")
    checkpoint_seconds: float = Field(60.0, ge=0, description="least time between two checkpoints on disk")
    stop: Literal["target", "never"] = Field(
        "target",
        description="target: a track at the unseen level is left alone; the run ends when all are there, retain kept",
    )

    @property
    def usual_steps(self) -> int:
        """What a run usually takes: all steps, or where the schedule is adaptive one decay, begun at the first look."""
        if self.schedule != "adaptive":
            return self.steps
        return min(self.steps, self.eval_every + self.decay_steps)


class FisherOptions(Options):
    """What a method that takes a Fisher asks of it.

    Labels are drawn from the model where it has tokens: a track known by heart leaves hardly any gradient on its own.
    """

    labels: Literal["auto", "empirical", "sampled"] = Field(
        "auto",
        description="the Fisher's gradients are of the clips' own codes (empirical) or of codes the model draws "
        "(sampled); auto: sampled for a model with tokens",
    )
    micro_batch_size: int = Field(8, ge=1, description="clips a pass; fewer save memory, change nothing else")
