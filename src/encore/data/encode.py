"""From tracks on disk to clips a model hears: decode, cut into windows, encode once and keep the codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from encore.api import Backend, Clip
from encore.cache import TensorCache
from encore.data.decode import Audio, load
from encore.data.file_info import Facts, FileCache, decoder_sha256
from encore.data.tracks import Piece, Track
from encore.errors import InputError, together
from encore.hashing import module_sha256
from encore.text import printable

MIN_WINDOW_SECONDS = 0.5  # a last window shorter than this adds nothing that the one before it has not
MARGIN = 64  # samples


@dataclass(frozen=True)
class EncodedTrack:
    """A track as it was read.

    Args:
        track: its captions are asked for.
        clips: one per caption and window (or piece): the windows of the first caption, then those of the next.
        facts: what decoding its file found.
    """

    track: Track
    clips: tuple[Clip, ...]
    facts: Facts

    @property
    def pcm_sha256(self) -> str:
        """Hash of the decoded samples."""
        return self.facts.sha256_pcm

    @property
    def seconds(self) -> float:
        """Length as decoded."""
        return self.facts.seconds


class TrackEncoder:
    """Turns tracks into clips for one backend; what was decoded or encoded once comes from the cache.

    Args:
        backend: whose codec and text encoder are used; the cache is keyed by their weights and settings.
        cache: where tensors are kept between runs; what is known of files lies in the same folder.

    Attributes:
        codes_key: what a track's codes depend on beside its samples.
    """

    def __init__(self, backend: Backend, cache: TensorCache) -> None:
        self.backend = backend
        self.cache = cache
        self.files = FileCache(cache.folder)
        self._frozen = (module_sha256(*backend.frozen().values()), backend.settings)
        shape = (backend.sample_rate, backend.channels, backend.codebooks, backend.max_frames)
        self.codes_key = ("codes", decoder_sha256(), *map(str, shape), *self._frozen)

    def hear(
        self,
        tracks: Sequence[Track],
        progress: Callable[[int, int], None] = lambda done, of: None,
        *,
        skip: Callable[[Track, InputError], bool] = lambda track, error: False,
    ) -> list[EncodedTrack]:
        """Decode and encode tracks in order.

        Args:
            progress: is given how many are done, and of how many.
            skip: is asked for each track that can't be read; where it answers yes, the track is left out.

        Raises:
            InputError: files that can't be read, or are too short for the model; it names all of them.
        """
        heard: list[EncodedTrack] = []
        errors: list[InputError] = []
        for done, track in enumerate(tracks):
            progress(done, len(tracks))
            try:
                heard.append(self._hear(track))
            except InputError as error:
                refusal = track.refusal(error)
                if not skip(track, refusal):
                    errors.append(refusal)
        if errors:
            raise together(errors)
        self._condition([caption for one in heard for caption in one.track.captions])
        progress(len(tracks), len(tracks))
        return heard

    def _hear(self, track: Track) -> EncodedTrack:
        backend = self.backend
        facts, codes = self._encoded(track)
        windows = [codes[name] for name in sorted(codes)]
        if not windows or windows[0].shape[-1] <= (backend.codebooks if backend.has_tokens else 0):
            raise InputError(f"{printable(track.path)} is too short for the model to hear", "take it off the list")
        clips = tuple(Clip(track.id, caption, wide(window)) for caption in track.captions for window in windows)
        return EncodedTrack(track, clips, facts)

    def _encoded(self, track: Track) -> tuple[Facts, dict[str, torch.Tensor]]:
        """What decoding found, and the codes; the file is read only where one of them is not in the cache."""
        facts = self.files.facts(track.sha256)
        key = (*self.codes_key, *(f"{piece.start} {piece.samples}" for piece in track.pieces))
        codes = None if facts is None else self.cache.get((*key, facts.sha256_pcm))
        if facts is not None and codes is not None:
            return facts, codes
        audio = self.load(track)
        samples = torch.from_numpy(audio.samples)
        codes = self.cache.get_or_make((*key, audio.sha256_pcm), lambda: self._encode(samples, track.pieces))
        return Facts.of(audio), codes

    def load(self, track: Track) -> Audio:
        """Decode a track at the model's rate.

        Raises:
            InputError: it can't be read, or is another file by now.
        """
        rate, channels = self.backend.sample_rate, self.backend.channels
        return self.files.load(track.path, track.sha256, sample_rate=rate, channels=channels)

    def _encode(self, samples: torch.Tensor, cuts: Sequence[Piece]) -> dict[str, torch.Tensor]:
        """Samples [C, S] -> one [K, T] a window (int16 codes, float32 latents), by a name that sorts in order."""
        pieces = enumerate(pieces_of(self.backend, samples, cuts))
        return {f"{i:05d}": narrow(self.backend.encode(piece[None])[0]).cpu().contiguous() for i, piece in pieces}

    def _condition(self, captions: Sequence[str]) -> None:
        """Give the backend its captions' text encodings, each run through the text encoder once ever."""
        for caption in sorted(set(captions) - set(self.backend.text_embeddings)):
            states = self.cache.get_or_make(("text", caption, *self._frozen), partial(self._read, caption))
            self.backend.text_embeddings[caption] = states["states"].to(self.backend.device)

    def _read(self, caption: str) -> dict[str, torch.Tensor]:
        return {"states": self.backend.encode_text([caption])[0]}


def window_samples(backend: Backend) -> int:
    """Samples of the longest window."""
    return int(backend.max_frames * backend.sample_rate / backend.frame_rate)


def windows(backend: Backend, samples: torch.Tensor) -> list[torch.Tensor]:
    """Samples [C, S] -> as the model hears them, a window each."""
    pieces = list(samples.split(window_samples(backend), dim=-1))
    if len(pieces) > 1 and pieces[-1].shape[-1] < MIN_WINDOW_SECONDS * backend.sample_rate:
        pieces.pop()
    return pieces


def pieces_of(backend: Backend, samples: torch.Tensor, cuts: Sequence[Piece]) -> list[torch.Tensor]:
    """Samples [C, S] -> what a track's clips are encoded from: its pieces, or its windows where it has none.

    Raises:
        InputError: a piece begins behind the end.
    """
    if any(one.start >= samples.shape[-1] for one in cuts):
        raise InputError("a piece of a track begins behind its end", "was request.json edited? run encore forget again")
    return [cut(samples, one.start, one.samples) for one in cuts] or windows(backend, samples)


def cut(samples: torch.Tensor, start: float, count: int) -> torch.Tensor:
    """`count` samples of [C, S] from `start` on; a start between two samples by a band-limited shift (in the frequency
    domain, with `MARGIN` samples on either side)."""
    whole = math.floor(start)
    if start == whole:
        return samples[:, whole : whole + count]
    before, after = min(whole, MARGIN), MARGIN
    part = samples[:, whole - before : whole + count + after]
    spectrum = torch.fft.rfft(part, 2 * part.shape[-1])
    turn = torch.arange(spectrum.shape[-1], dtype=torch.float64) * (math.pi * (start - whole) / part.shape[-1])
    shifted = torch.fft.irfft(spectrum * torch.polar(torch.ones_like(turn), turn).to(spectrum.dtype))
    return shifted[:, before : before + count]


def recordings(backend: Backend, tracks: Sequence[Track]) -> list[torch.Tensor]:
    """The windows of tracks as their files have them, mono [S]: what their clips were encoded from."""
    pieces: list[torch.Tensor] = []
    for track in tracks:
        samples = load(track.path, sample_rate=backend.sample_rate, channels=backend.channels).samples
        own = [piece.mean(0) for piece in pieces_of(backend, torch.from_numpy(samples), track.pieces)]
        pieces += own * len(track.captions)
    return pieces


def narrow(codes: torch.Tensor) -> torch.Tensor:
    """Codes as they are kept on disk; latents as they are."""
    return codes if codes.is_floating_point() else codes.to(torch.int16)


def wide(codes: torch.Tensor) -> torch.Tensor:
    return codes if codes.is_floating_point() else codes.long()


def clips_of(heard: Sequence[EncodedTrack]) -> list[Clip]:
    """The clips of tracks, in order."""
    return [clip for one in heard for clip in one.clips]
