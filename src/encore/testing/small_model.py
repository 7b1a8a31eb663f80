"""What methods, metrics and embedders are tried on: a small model, and a few short clips of the embedded music."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from encore import assets, plugins
from encore.api import Backend, Batch, Clip
from encore.data.catalog import Catalog
from encore.data.decode import load
from encore.testing.global_state import undisturbed
from encore.unlearn.engine import Clips

FRAMES = 60  # of a clip, or less than a second and a half: longer than the second of prompt that `verbatim` gives
SECONDS = 1.5
SIZES = {"forget": (1.0, 1.0, 1.0, 0.7), "retain": (1.0, 1.0, 1.0, 0.8, 1.0, 1.0), "holdout": (1.0, 0.9, 1.0)}
KNOWN = 0.8  # a model knows the forget clips where their loss is below this share of the holdout's


@dataclass(frozen=True)
class Fixture:
    """A loaded backend with clips. What is tried on it works on clones; what it changes all the same is put back.

    Args:
        base: the model. clips: forget (two clips are of one track), retain, holdout.
    """

    base: Backend
    clips: Clips

    @classmethod
    def load(cls, backend: str, model: str, *, offline: bool = False) -> Fixture:
        """Open a model and encode the beginnings of a few embedded tracks with its codec.

        Raises:
            UnknownNameError, PluginError, MissingExtraError: there is no such backend. InputError: or no such model.
        """
        base = plugins.backends().resolve(backend).load(model, offline=offline)
        catalog = Catalog.open(assets.CATALOG)
        frames = max(
            4, min(base.max_frames, max(FRAMES, round(1.2 * base.frame_rate)), round(SECONDS * base.frame_rate))
        )
        sets: dict[str, list[Clip]] = {}
        for name, shares in SIZES.items():
            tracks = catalog.tracks(split=name)[: len(shares)]
            sets[name] = [
                Clip(track.id, track.caption, cls._heard(base, str(track.path), frames)[:, : round(share * frames)])
                for track, share in zip(tracks, shares, strict=True)
            ]
        first, *_, last = sets["forget"]
        sets["forget"][-1] = Clip(first.track, first.caption, last.codes)
        return cls(base, Clips(sets["forget"], sets["retain"], sets["holdout"]))

    @staticmethod
    def _heard(base: Backend, path: str, frames: int) -> Tensor:
        """Codes or latents [K, T] of a file's beginning."""
        audio = torch.from_numpy(load(path, sample_rate=base.sample_rate, channels=base.channels).samples)
        samples = round((frames + 4) / base.frame_rate * base.sample_rate)
        return base.encode(audio[None, :, :samples])[0, :, :frames].cpu().contiguous()

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """The base, the clips and the shared random generators are afterwards what they were before."""
        codes = [(clip, clip.codes.clone()) for clip in self.everything]
        try:
            with undisturbed(self.base):
                yield
        finally:
            for clip, before in codes:
                clip.codes.copy_(before)

    @property
    def everything(self) -> list[Clip]:
        return [*self.clips.forget, *self.clips.retain, *self.clips.holdout]

    def sets(self) -> dict[str, Sequence[Clip]]:
        return {"forget": self.clips.forget, "retain": self.clips.retain, "holdout": self.clips.holdout}

    @cached_property
    def known(self) -> bool:
        """Whether the forget clips are better known to the model than music it never heard."""
        with torch.no_grad():
            forget, unheard = (
                float(self.base.losses(Batch.of(clips, self.base.device)).mean())
                for clips in (self.clips.forget, self.clips.holdout)
            )
        return forget < KNOWN * unheard

    def without_tokens(self) -> Fixture:
        """The same model and music as a backend without tokens would give them; see `LatentBackend`."""
        from encore.testing.latent_backend import LatentBackend

        if not self.base.has_tokens:
            return self
        twins = {clip: replace(clip, codes=clip.codes.float()) for clip in self.everything}
        sets = ([twins[clip] for clip in chosen] for chosen in self.sets().values())
        return Fixture(LatentBackend(self.base), Clips(*sets))
