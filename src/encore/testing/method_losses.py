"""Of a method: its options, and, where it is a loss, what the loss of a clip is and depends on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import ValidationError
from torch import Tensor

from encore.api import Clip
from encore.errors import EncoreError
from encore.options import Options
from encore.settings import describe_options, resolve_options
from encore.testing.core import ContractViolation, Suite, named, need
from encore.testing.global_state import apart, close
from encore.testing.method_subject import MethodSubject

suite: Suite[MethodSubject] = Suite("method")


@suite.check("options", "Options refuses what it does not know, has valid defaults, and says what each option is")
def options(subject: MethodSubject) -> None:
    cls: type[Options] = subject.target.Options
    try:
        defaults = cls()
    except ValidationError as error:
        raise ContractViolation(f"Options() is refused, so there are no defaults: {_first(error)}") from error
    try:
        cls.model_validate({"no_such_option": 1})
    except ValidationError:
        pass
    else:
        raise ContractViolation('an unknown option is taken without a word: Options lacks extra="forbid"')
    silent = [info.name for info in describe_options(cls) if not info.description]
    need(not silent, f"{named(silent)} has no description: `encore methods` shows nothing beside it")
    for name, value in defaults.model_dump().items():
        if value is None or isinstance(value, (list, dict, tuple)):
            continue
        try:
            again = resolve_options(cls, environ={}, assignments=[f"{name}={value}"]).options
        except EncoreError as error:
            raise ContractViolation(f"-o {name}={value}, the default, is refused: {error.message}") from error
        need(getattr(again, name) == value, f"-o {name}={value} comes out as {getattr(again, name)!r}")


@suite.check(
    "losses", "forget_loss and retain_loss give one finite loss a clip, [N], with a gradient; penalty a scalar"
)
def losses(subject: MethodSubject) -> None:
    made = subject.prepared()
    for name in made.asked:
        clips = made.clips(name)
        found, _ = made.ask(name, clips)
        need(isinstance(found, Tensor), f"{name} returns a {type(found).__name__}, not a tensor")
        need(found.shape == (len(clips),), f"{name} returns shape {list(found.shape)} for {len(clips)} clips")
        need(found.isfinite().all(), f"{name} is not finite: {found.tolist()}")
        need(found.requires_grad, f"{name} has no gradient")
    penalty = made.method.penalty(made.step())
    if penalty is not None:
        need(
            penalty.dim() == 0 and bool(penalty.isfinite()), f"penalty returns {list(penalty.shape)}, or is not finite"
        )


@suite.check("independence", "the loss of a clip depends on that clip, not on those that share its batch")
def independence(subject: MethodSubject) -> str | None:
    """Its companions are exchanged; where nothing is drawn at random, they are also left out."""
    made = subject.prepared()
    random = []
    for name in made.asked:
        first, second, third = _alike(made.clips(name))
        beside, drew = made.ask(name, [first, second])
        other, _ = made.ask(name, [first, third])
        if not close(beside[0], other[0]):
            raise ContractViolation(
                f"{name} of a clip is {beside[0]:.5f} beside one clip and {other[0]:.5f} beside another: the engine "
                "cuts batches as memory demands, which would change what is optimised"
            )
        if drew:
            random.append(name)
            continue
        alone, _ = made.ask(name, [first])
        short = min(made.clips(name), key=lambda clip: clip.codes.shape[-1])
        padded, _ = made.ask(name, [short, first])
        alone_short, _ = made.ask(name, [short])
        for a, b, what in ((alone[0], beside[0], "a clip"), (alone_short[0], padded[0], "a short clip")):
            need(close(a, b), f"{name} of {what} is {a:.5f} alone and {b:.5f} beside another")
    return _drawn(random)


@suite.check("micro-batches", "clips one at a time give the gradient that they give together")
def micro_batches(subject: MethodSubject) -> str | None:
    made = subject.prepared()
    random = []
    for name in made.asked:
        clips = made.clips(name)
        together, drew = made.ask(name, clips)
        if drew:
            random.append(name)
            continue
        weights = [weight for weight in made.session.backend.module.parameters() if weight.requires_grad]
        whole = _gradient(together.sum(), weights)
        parts = [_gradient(made.ask(name, [clip])[0].sum(), weights) for clip in clips]
        for i, value in enumerate(whole):
            added = torch.stack([part[i] for part in parts]).sum(0)
            scale = max(float(part[i].abs().max()) for part in parts)
            if apart(added, value) > 1e-3 * scale + 1e-6:
                raise ContractViolation(
                    f"the gradient of {name} over {len(clips)} clips together is not the sum of theirs one at a time: "
                    f"they differ by {apart(added, value) / max(scale, 1e-12):.0%} of a clip's own"
                )
    return _drawn(random)


def _alike(clips: Sequence[Clip]) -> tuple[Clip, Clip, Clip]:
    """Three clips of one length."""
    frames = clips[0].codes.shape[-1]
    same = [clip for clip in clips if clip.codes.shape[-1] == frames]
    return same[0], same[1], same[2]


def _gradient(loss: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    parts: Sequence[Tensor | None] = found
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, parts, strict=True)]


def _drawn(names: list[str]) -> str | None:
    """What can't be said of losses that draw at random: a batch that is cut otherwise draws otherwise."""
    return f"{' and '.join(names)} draws at random, so batches of one size were compared" if names else None


def _first(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
