"""A metric under test: evaluations of a small model in several roles, which notice when they are written into."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encore.api import Backend, Clip, ClipSet, Metric, Result, Role
from encore.errors import EncoreError
from encore.evaluate.evaluation import SharedEvaluation
from encore.hashing import module_sha256
from encore.testing.core import ContractViolation, Skip, raised
from encore.testing.global_state import Globals, disturb, undisturbed
from encore.testing.small_model import Fixture

ROLES: tuple[Role, ...] = ("base", "unlearned", "gold", "gold2")
NOISE: Mapping[Role, float] = {"base": 0.0, "unlearned": 0.05, "gold": 0.1, "gold2": 0.12}
"""How far each role's weights are from base's, in standard deviations of each parameter."""
SHARED = ("nll", "token_mask", "token_logprobs", "predictions", "kl", "continuations", "generations", "embeddings")
FORGET, RETAIN, HOLDOUT = 3, 4, 2  # clips a set


class Guarded(SharedEvaluation):
    """Remembers what it handed out, to tell later whether it is still that."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self.handed: list[tuple[str, Any, str]] = []
        super().__init__(*given, **named)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name not in SHARED:
            return value

        def ask(*given: Any, **named: Any) -> Any:
            found = value(*given, **named)
            self.handed.append((name, found, _digest(found)))
            return found

        return ask

    def written(self) -> list[str]:
        """The functions whose results are not what they were."""
        return sorted({name for name, found, digest in self.handed if _digest(found) != digest})


@dataclass
class Seen:
    """What runs of a metric did beside measuring.

    Args:
        moved: whose shared random generators they moved. clips: tracks whose codes they wrote into.
        models: roles whose model they changed. written: functions of the evaluation whose results they wrote into.
    """

    moved: set[str] = field(default_factory=set)
    clips: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)


class MetricSubject:
    """What the checks of a metric look at.

    Args:
        target: the class, with its `spec`. fixture: the model and music.
    """

    def __init__(self, target: type[Metric], fixture: Fixture) -> None:
        self.target, self.fixture = target, fixture
        self._rows: dict[Any, list[Result]] = {}
        self.seen = Seen()

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        with self.fixture.undisturbed(), undisturbed(*self.models.values()):
            yield

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.target.spec.needs)

    @cached_property
    def models(self) -> dict[Role, Backend]:
        """The base in four roles: itself, and with more and more noise on its weights."""
        return {role: _noisy(self.fixture.base, NOISE[role], seed) for seed, role in enumerate(ROLES)}

    @cached_property
    def clips(self) -> dict[ClipSet, list[Clip]]:
        """A few clips a set; the last forget clip is another window of the first one's track."""
        given = self.fixture.clips
        forget = [*given.forget[: FORGET - 1], given.forget[-1]]
        return {"forget": forget, "retain": list(given.retain[:RETAIN]), "holdout": list(given.holdout[:HOLDOUT])}

    @property
    def track_metadata(self) -> dict[str, dict[str, str]]:
        """An artist for the first forget and the first retain track, and a genre for all."""
        first = {self.clips[name][0].track for name in ("forget", "retain")}
        tracks = {clip.track for chosen in self.clips.values() for clip in chosen}
        return {
            track: {"artist": "A" if track in first else f"of {track}", "genre": f"of {track}"}
            for track in sorted(tracks)
        }

    def evaluation(
        self, without: Sequence[str] = (), *, turned: bool = False, tokens: bool = True, empty: bool = False
    ) -> Guarded:
        """An evaluation of everything but what is named; two generations a caption, artists and the files known.

        Args:
            without: roles, sets, "embedder". turned: tracks in reverse order. tokens: False for models without them.
            empty: what is named of the sets is there and has no clips.
        """
        models = {role: model for role, model in self.models.items() if role not in without}
        clips: dict[ClipSet, list[Clip]] = {
            name: [] if name in without else list(chosen)
            for name, chosen in self.clips.items()
            if empty or name not in without
        }
        if not tokens:
            from encore.testing.latent_backend import LatentBackend

            models = {role: LatentBackend(model) for role, model in models.items()}
            clips = {n: [replace(clip, codes=clip.codes.float()) for clip in chosen] for n, chosen in clips.items()}
        if turned:
            clips = {name: _turned(chosen) for name, chosen in clips.items()}
        recordings = {
            name: partial(_recorded, next(iter(models.values())), chosen) for name, chosen in clips.items() if chosen
        }
        heard = "latents,clap-tiny" if "embedder" in self.needs else "latents"  # the second also reads, and has tags
        return Guarded(
            models, clips, embedder=None if "embedder" in without else heard, force=True, draws=2,
            track_metadata=self.track_metadata, recordings=recordings,
        )  # fmt: skip

    def rows(self, without: Sequence[str] = (), *, salt: int = 1, **how: Any) -> list[Result]:
        """What the metric measures, once for each set of arguments.

        Raises:
            Skip: its needs are not met, so that Encore does not ask it.
            EncoreError: what the metric raised to say that it can't measure.
        """
        key = (tuple(without), salt, tuple(how.items()))
        if key not in self._rows:
            evaluation = self.evaluation(without, **how)
            unmet = evaluation.unmet(self.target.spec)
            if unmet:
                raise Skip(f"{unmet}, which it needs")
            codes = {clip: clip.codes.clone() for chosen in evaluation.clips.values() for clip in chosen}
            before = _weights(evaluation.models)
            disturb(salt)
            shared = Globals()
            found: Iterable[Any] = self.target().measure(evaluation)
            self._rows[key] = list(found)
            self.seen.moved |= {shared.moved()} - {""}
            self.seen.clips |= {clip.track for clip, was in codes.items() if not torch.equal(was, clip.codes)}
            self.seen.models |= {role for role, digest in _weights(evaluation.models).items() if digest != before[role]}
            self.seen.written |= set(evaluation.written())
        return self._rows[key]

    def measured(self) -> list[Result]:
        """Rows with everything there; the check is skipped where the metric does not run, which another one tells."""
        try:
            return self.rows()
        except Skip:
            raise
        except Exception as error:
            raise Skip("the metric does not run, see 'measure'") from error

    def optional(self) -> list[str]:
        """What may be absent from an evaluation by the metric's own word; one model and the forget set are always."""
        things = [*ROLES, "retain", "holdout", "embedder"]
        free = [thing for thing in things if thing not in self.needs]
        if not {"base", "gold", "gold2"} & self.needs:
            free.remove("unlearned")
        return free


def told(error: Exception) -> str:
    """An EncoreError is a metric's way to say that it can't measure; anything else is a fault."""
    if isinstance(error, EncoreError):
        return error.message
    raise ContractViolation(raised(error)) from error


def _weights(models: Mapping[Role, Backend]) -> dict[str, str]:
    """Role -> hash of all its weights, modes and what requires a gradient."""
    return {
        role: f"{module_sha256(model.module, *model.frozen().values())} {model.module.training} "
        f"{[weight.requires_grad for weight in model.module.parameters()]}"
        for role, model in models.items()
    }


@torch.no_grad()
def _recorded(model: Backend, clips: Sequence[Clip]) -> list[Tensor]:
    """Stands for the clips' files: what the codec plays of them, a little softer, mono [S] each."""
    return [0.9 * model.decode(clip.codes[None].to(model.device))[0].float().mean(0).cpu() for clip in clips]


def _turned(clips: Sequence[Clip]) -> list[Clip]:
    """Tracks in reverse order; the windows of a track stay in theirs."""
    tracks = list(dict.fromkeys(clip.track for clip in clips))
    return sorted(clips, key=lambda clip: -tracks.index(clip.track))


@torch.no_grad()
def _noisy(base: Backend, amount: float, seed: int) -> Backend:
    model, generator = base.clone(), torch.Generator().manual_seed(seed)
    for weight in model.module.parameters():
        if amount and weight.numel() > 1:
            weight.add_(amount * weight.std() * torch.randn(weight.shape, generator=generator).to(weight.device))
    return model


def _digest(value: Any) -> str:
    """A hash of tensors, arrays and mappings of figures."""
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Tensor):
            digest.update(str((part.dtype, tuple(part.shape))).encode())
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}".encode() + bytes(part.tobytes()))
        elif isinstance(part, Mapping):
            digest.update(repr(sorted(part.items())).encode())
        elif isinstance(part, (list, tuple)):
            for one in part:
                add(one)
        else:
            digest.update(repr(part).encode())

    add(value)
    return digest.hexdigest()
