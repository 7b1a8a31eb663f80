"""Clips and batches: what a model is given."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Clip:
    """One encoded window of one track. Two clips are equal only when they are the same object.

    Args:
        track: the track's id; several clips share it where the track is longer than the model's window.
        caption: the text the model is conditioned on.
        codes: codec tokens, int64 [K, T]; for a backend without tokens, latents float32 [K, T].
    """

    track: str
    caption: str
    codes: Tensor


def by_length(clips: Sequence[Clip]) -> list[Clip]:
    """Clips from the longest to the shortest, those of one length as they were: neighbours need the least padding."""
    return sorted(clips, key=lambda clip: -clip.codes.shape[-1])


class LazyClips(Sequence[Clip]):
    """Clips that are read or made when they are accessed; a subclass gives their number and `clip`."""

    @abstractmethod
    def clip(self, place: int) -> Clip:
        """The clip at a place from 0 to `len(self) - 1`."""

    @overload
    def __getitem__(self, place: int) -> Clip: ...
    @overload
    def __getitem__(self, place: slice) -> list[Clip]: ...
    def __getitem__(self, place: int | slice) -> Clip | list[Clip]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return self.clip(range(len(self))[place])  # counts from the end, or raises IndexError


@dataclass(frozen=True)
class Batch:
    """Clips stacked for one forward pass, zero-padded to the longest.

    Args:
        clips: the N clips; the backend looks up their captions' frozen encodings.
        codes: int64 (latents: float32) [N, K, T].
        frames: int64 [N], number of frames of each clip that are not padding.
        noise_index: which noise a backend without tokens adds. 0 is a fixed noise, at which losses compare; the engine
            gives every training step another index.
    """

    clips: tuple[Clip, ...]
    codes: Tensor
    frames: Tensor
    noise_index: int = 0

    @classmethod
    def of(cls, clips: Sequence[Clip], device: torch.device | str | None = None, *, noise_index: int = 0) -> Batch:
        """Stack clips.

        Args:
            clips: at least one, of any lengths.
            device: where the batch goes; by default that of the clips.
            noise_index: see the class.
        """
        import torch

        frames = [clip.codes.shape[-1] for clip in clips]
        codes = clips[0].codes.new_zeros(len(clips), *clips[0].codes.shape[:-1], max(frames))  # [N, K, T]
        for row, clip in zip(codes, clips, strict=True):
            row[..., : clip.codes.shape[-1]] = clip.codes
        device = device or codes.device
        return cls(tuple(clips), codes.to(device), torch.tensor(frames, device=device), noise_index)

    @property
    def frame_mask(self) -> Tensor:
        """The frames that are not padding, bool [N, T]."""
        import torch

        return torch.arange(self.codes.shape[-1], device=self.frames.device) < self.frames[:, None]

    @property
    def captions(self) -> list[str]:
        """The N captions."""
        return [clip.caption for clip in self.clips]

    def __len__(self) -> int:
        return len(self.clips)
