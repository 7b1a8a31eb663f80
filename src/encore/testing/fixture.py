"""What methods, metrics and embedders are tried on: a small model and a few short clips of the embedded music."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encore import assets, plugins
from encore.api import Backend, BackendSpec, Batch, Clip, Embedder
from encore.data.catalog import Catalog
from encore.data.decode import load
from encore.errors import UsageError
from encore.evaluate.embedder_choice import open_embedders
from encore.testing.state import undisturbed
from encore.unlearn.sampling import Clips

FRAMES, SECONDS = 60, 1.5  # of a clip; longer than the second of prompt that `verbatim` gives
LENGTHS = {"forget": (1.0, 1.0, 1.0, 0.7), "retain": (1.0, 1.0, 1.0, 0.8, 1.0, 1.0), "holdout": (1.0, 0.9, 1.0)}
LEAST_NLL = 1e-12  # of a token, in a square root, whose gradient at 0 is infinite
MEMORISED = 0.8  # the forget clips are memorised where their loss is below this share of the holdout's


@dataclass(frozen=True)
class Fixture:
    """A loaded backend with clips.

    Args:
        base: the model.
        clips: forget (two clips are of one track), retain, holdout.
    """

    base: Backend
    clips: Clips

    @classmethod
    def load(cls, backend: str, model: str, *, offline: bool = False) -> Fixture:
        """Open a model and encode the beginnings of a few embedded tracks with its codec.

        Raises:
            UnknownNameError, PluginError, MissingExtraError: there is no such backend.
            InputError: there is no such model.
        """
        base = plugins.backends().resolve(backend).load(model, offline=offline)
        rate, catalog = base.frame_rate, Catalog.open(assets.CATALOG)
        frames = max(4, min(base.max_frames, max(FRAMES, round(1.2 * rate)), round(SECONDS * rate)))
        samples = round((frames + 4) / rate * base.sample_rate)
        sets: dict[str, list[Clip]] = {}
        for name, lengths in LENGTHS.items():
            sets[name] = []
            for track, share in zip(catalog.tracks(split=name), lengths, strict=False):
                audio = load(str(track.path), sample_rate=base.sample_rate, channels=base.channels).samples
                codes = base.encode(torch.from_numpy(audio)[None, :, :samples])[0, :, : round(share * frames)]
                sets[name].append(Clip(track.id, track.caption, codes.cpu().contiguous()))
        forget = sets["forget"]
        forget[-1] = replace(forget[-1], track=forget[0].track, caption=forget[0].caption)
        return cls(base, Clips(**sets))

    @property
    def all_clips(self) -> list[Clip]:
        return [*self.clips.forget, *self.clips.retain, *self.clips.holdout]

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Restore the base, the clips and the shared random generators at the end."""
        codes = [(clip.codes, clip.codes.clone()) for clip in self.all_clips]
        try:
            with undisturbed(self.base):
                yield
        finally:
            for value, before in codes:
                value.copy_(before)

    @cached_property
    def memorised(self) -> bool:
        """Whether the model's loss on the forget clips is far below that on held-out clips."""
        with torch.no_grad():
            forget, holdout = (
                float(self.base.losses(Batch.of(clips, self.base.device)).mean())
                for clips in (self.clips.forget, self.clips.holdout)
            )
        return forget < MEMORISED * holdout

    @cached_property
    def clap(self) -> Mapping[str, Embedder]:
        """An embedder that reads text and has tags, for all metrics: it takes longer to open than to use."""
        return open_embedders("clap-tiny", self.base, offline=True)[0]

    def without_tokens(self) -> Fixture:
        """The same model and music as a backend without tokens; see `LatentBackend`."""
        if not self.base.has_tokens:
            return self
        sets = {name: as_latents(clips) for name, clips in vars(self.clips).items()}
        return Fixture(LatentBackend(self.base), Clips(**sets))


def as_latents(clips: Sequence[Clip]) -> list[Clip]:
    """Clips for `LatentBackend`."""
    return [replace(clip, codes=clip.codes.float()) for clip in clips]


class Subject:
    """A plugin's class with the fixture it is tried on.

    Args:
        target: the class, with its `spec`.
        fixture: the model and clips.
    """

    def __init__(self, target: Any, fixture: Fixture) -> None:
        self.target, self.fixture = target, fixture
        self.needs = frozenset(getattr(target.spec, "needs", ()))

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        with self.fixture.undisturbed():
            yield


class LatentBackend(Backend):
    """A token model as a backend without tokens: how a diffusion model looks to a method or metric.

    Clips hold float32 [K, T], the codes of the inner model. As in diffusion, the loss depends on `batch.noise_index`:
    it is added to the codes.
    """

    spec = BackendSpec("tokenless", "a backend without tokens", "encore.testing.fixture:LatentBackend")
    has_tokens = False
    name = "tokenless"

    def __init__(self, inner: Backend) -> None:
        self.inner, self.module, self.device = inner, inner.module, inner.device
        self.sample_rate, self.channels, self.frame_rate = inner.sample_rate, inner.channels, inner.frame_rate
        self.codebooks, self.codebook_size, self.max_frames = inner.codebooks, 0, inner.max_frames
        self.text_embeddings = inner.text_embeddings

    @classmethod
    def load(cls, model: str, **settings: Any) -> LatentBackend:
        return cls(plugins.backends().resolve("musicgen").load(model, **settings))

    def frozen(self) -> Mapping[str, nn.Module]:
        return self.inner.frozen()

    def encode(self, waveforms: Tensor) -> Tensor:
        return self.inner.encode(waveforms).float()

    def decode(self, codes: Tensor) -> Tensor:
        return self.inner.decode(self._codes(codes))

    def encode_text(self, captions: Sequence[str]) -> list[Tensor]:
        return self.inner.encode_text(captions)

    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        raise UsageError(f"the backend {self.name} has no tokens", "choose a method or metric that needs none")

    def token_mask(self, batch: Batch) -> Tensor:
        return self.logits(batch)

    def losses(self, batch: Batch) -> Tensor:
        return self.inner.losses(replace(batch, codes=self._codes(batch.codes + batch.noise_index), noise_index=0))

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The square root of each token's NLL, toward 0, [N, 1, K, T]; of the tokens that are not predicted, 0."""
        shifted = replace(batch, codes=self._codes(batch.codes + batch.noise_index), noise_index=0)
        mask = self.inner.token_mask(shifted)
        nll = torch.where(mask, -self.inner.token_logprobs(shifted), 1).clamp(min=LEAST_NLL)
        scale = batch.frames * batch.codes.shape[1] / mask.sum((1, 2))  # losses are means over predicted tokens
        outputs = ((nll * scale[:, None, None]).sqrt() * mask)[:, None]
        return outputs, torch.zeros_like(outputs)

    def random_losses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        codes = torch.randint(self.inner.codebook_size, batch.codes.shape, generator=generator)
        return self.inner.losses(replace(batch, codes=codes.to(batch.codes.device), noise_index=0))

    def generate(self, captions: Sequence[str], *, prompt: Tensor | None = None, **settings: Any) -> Tensor:
        if prompt is not None:
            raise UsageError(f"the backend {self.name} can't continue a prompt", "leave the prompt out")
        return self.inner.generate(captions, **settings).float()

    def reinitialise(self, seed: int) -> None:
        self.inner.reinitialise(seed)

    def clone(self) -> LatentBackend:
        return type(self)(self.inner.clone())

    def save(self, folder: Path) -> None:
        self.inner.save(folder)

    def _codes(self, values: Tensor) -> Tensor:
        return values.round().long() % self.inner.codebook_size
