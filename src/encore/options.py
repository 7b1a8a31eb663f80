"""Options of methods: pydantic models that refuse unknown keys.

Unlike `encore.api`, this module imports pydantic; import it where a method is defined, not where it is registered.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """Base of every method's `Options`. Values arrive as strings (`-o key=value`), as TOML, or from the environment."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """A field redeclared with another default (`lr: float = 1e-4`) keeps its limits and description."""
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
    """Options of the training loop. A method overrides the defaults with tuned values."""

    steps: int = Field(60, ge=1, description="optimiser steps at most")
    lr: float | None = Field(5e-4, gt=0, le=1e6, description="peak learning rate")
    batch_size: int = Field(6, ge=1, description="retain clips per step")
    forget_batch_size: int = Field(8, ge=1, description="forget clips per step (fewer where fewer are left to forget)")
    micro_batch_size: int = Field(16, ge=1, description="clips per forward pass; fewer only save memory")
    warmup: int = Field(5, ge=0, description="steps of linear warm-up")
    schedule: Literal["linear", "cosine", "constant", "adaptive"] = Field(
        "linear",
        description="decay after the warm-up; adaptive: constant until the forget tracks are near their target NLLs, "
        "a cosine over decay_steps, then the lowest rate until retain has recovered",
    )
    decay_steps: int = Field(90, ge=1, description="length of an adaptive schedule's decay")
    max_seconds: float | None = Field(None, gt=0, description="seconds of training at most")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="global gradient norm is clipped to this")
    per_track_clip: float | None = Field(
        None, gt=0, description="a track's gradient, summed over its clips in the step, is clipped to this norm"
    )
    optim: Literal["adamw", "sam", "sign", "repselect"] = Field(
        "adamw",
        description="adamw: the method's optimiser; sam: it receives the forget gradient at the worst nearby weights; "
        "sign: signSGD; repselect: the forget gradient first loses its principal components",
    )
    sam_radius: float = Field(0.001, gt=0, description="sam: distance of the worst weights, as a share of their norm")
    components: int = Field(4, ge=1, description="repselect: principal components removed from each weight matrix")
    retain_budget: float | None = Field(
        None,
        ge=0,
        description="allowed rise of the retain tracks' NLL, nats per token; adapts the retain loss's weight",
    )
    dual_rate: float = Field(10.0, gt=0, description="retain_budget: change of that weight per nat and snapshot")
    robust_to: Literal["int4", "int8"] | None = Field(
        None, description="compute the losses with weights rounded to 4 or 8 bits"
    )
    dropout: bool = Field(False, description="train with the model's dropout on")
    eval_every: int = Field(10, ge=1, description="steps between two snapshots of forget, retain and holdout")
    checkpoint_seconds: float = Field(60.0, ge=0, description="least time between two checkpoints on disk")
    select: Literal["best", "last"] = Field(
        "best", description="weights that the run ends with: of the snapshot with the best score, or the last ones"
    )
    stop: Literal["target", "never"] = Field(
        "target",
        description="target: a track at its target NLL is no longer trained on; the run ends when all are, with retain "
        "within its tolerances",
    )


class FisherOptions(Options):
    """Options of methods that compute a Fisher diagonal.

    By default labels are sampled from a token model: the codes of a memorised track have almost no gradient.
    """

    labels: Literal["auto", "empirical", "sampled"] = Field(
        "auto",
        description="labels of the Fisher's gradients: the clips' codes (empirical) or codes sampled from the model "
        "(sampled); auto: sampled for a model with tokens",
    )
    micro_batch_size: int = Field(8, ge=1, description="clips per pass; fewer only save memory")
